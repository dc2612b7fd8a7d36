"""Write predictions: JSONL, CSV or Parquet to an atomic file, or JSONL to standard output."""

import csv
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any

import pyarrow
from pyarrow import parquet

from peftkit.errors import UserError
from peftkit.system.files import atomic_open

Predictions = Sequence[Mapping[str, Any]]
Write = Callable[[Predictions], None]

ENDINGS = (".jsonl", ".csv", ".parquet")
# Predictions per row group; the first row group determines the column types.
ROW_GROUP = 10_000
TEXTS = pyarrow.list_(pyarrow.string())
TYPES = {
    "row": pyarrow.int64(), "label": pyarrow.string(), "labels": TEXTS, "tags": TEXTS, "score": pyarrow.float64(),
    "text": pyarrow.string(), "error": pyarrow.string(),
}  # fmt: skip
ENTITY_TYPES = {
    "type": pyarrow.string(), "text": pyarrow.string(), "first_word": pyarrow.int64(), "last_word": pyarrow.int64(),
    "start": pyarrow.int64(), "end": pyarrow.int64(), "score": pyarrow.float64(),
}  # fmt: skip
RANKED_TYPE = pyarrow.list_(pyarrow.struct({"label": pyarrow.string(), "probability": pyarrow.float64()}))


def check_output(output: Path | None) -> None:
    """Raise UserError for an output path with an unknown extension, and for an existing file."""
    if output is None:
        return
    if output.suffix.lower() not in ENDINGS:
        raise UserError(f"--output {output}: unknown extension; use .jsonl, .csv or .parquet")
    if output.exists():
        raise UserError(f"--output {output}: already exists; use another name or remove it")


def check_top_k(where: str, top_k: int | None) -> None:
    """Raise UserError if `top_k` is less than 1; `where` is the name of the argument."""
    if top_k is not None and top_k < 1:
        raise UserError(f"{where}: must be at least 1, got {top_k}")


@contextmanager
def open_writer(output: Path | None, *, is_ranked: bool = False) -> Iterator[Write]:
    """Open the output and return a function that writes predictions in order.

    A prediction is a mapping with the first key `row`; it may have only `row` and `error`. The file gets its name at
    the end, and is removed on failure. Without `output` predictions go to standard output, flushed after each call. The
    columns of a table are those of the first prediction without an error, then `error`. With `is_ranked` each row has
    the probabilities of the most probable labels, without a column per label. Raises UserError like `check_output`.
    """
    check_output(output)
    if output is None:
        yield _write_to_standard_output
        return
    with atomic_open(output) as file, ExitStack() as opened:
        ending = output.suffix.lower()
        if ending == ".jsonl":
            yield partial(_write_jsonl, file)
            return
        if ending == ".csv":
            table = _Table(partial(_begin_csv, file, is_ranked), 1)
        else:
            table = _Table(partial(_begin_parquet, file, is_ranked, opened), ROW_GROUP)
        yield table.write
        table.flush()


def _format_jsonl(predictions: Predictions) -> str:
    return "".join(json.dumps(prediction, ensure_ascii=False) + "\n" for prediction in predictions)


def _write_jsonl(file: IO[str], predictions: Predictions) -> None:
    file.write(_format_jsonl(predictions))


def _write_to_standard_output(predictions: Predictions) -> None:
    sys.stdout.buffer.write(_format_jsonl(predictions).encode())
    sys.stdout.buffer.flush()


class _Table:
    """Buffer of `size` predictions; `begin` determines the columns from predictions without errors."""

    def __init__(self, begin: Callable[[Predictions], Write], size: int) -> None:
        self._begin = begin
        self._size = size
        self._buffer: list[Mapping[str, Any]] = []
        self._has_good = False
        self._write: Write | None = None

    def write(self, predictions: Predictions) -> None:
        self._buffer += predictions
        self._has_good = self._has_good or any("error" not in prediction for prediction in predictions)
        if self._has_good and len(self._buffer) >= self._size:
            self.flush()

    def flush(self) -> None:
        if self._write is None:
            good = [prediction for prediction in self._buffer if "error" not in prediction]
            self._write = self._begin(good or [{"row": 0}])
        if self._buffer:
            self._write(self._buffer)
        self._buffer = []


class _Lines:
    r"""File wrapper that writes \n for \r\n, so that a `csv` writer quotes texts with either character."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file

    def write(self, line: str) -> int:
        return self._file.write(line.removesuffix("\r\n") + "\n")


def _begin_csv(file: IO[str], is_ranked: bool, good: Predictions) -> Write:
    writer = csv.DictWriter(_Lines(file), [*_flatten(good[0], is_ranked), "error"], restval="")
    writer.writeheader()
    return lambda predictions: writer.writerows(_flatten(prediction, is_ranked) for prediction in predictions)


def _flatten(prediction: Mapping[str, Any], is_ranked: bool) -> dict[str, Any]:
    """Return one cell per column, probabilities last; with several models the columns are NAME.column."""
    cells: dict[str, Any] = {}
    for name in sorted(prediction, key=lambda name: name == "probabilities"):
        value = prediction[name]
        if name == "probabilities" and not is_ranked:
            cells |= {f"probability of {label}": probability for label, probability in value.items()}
        elif isinstance(value, Mapping) and name != "probabilities":
            cells |= {f"{name}.{column}": cell for column, cell in _flatten(value, is_ranked).items()}
        else:
            cells[name] = _format_cell(name, value)
    return cells


def _format_cell(name: str, value: Any) -> Any:
    """Join tags with spaces and labels with commas; format entities and ranked probabilities as JSON."""
    if name in ("entities", "probabilities"):
        return json.dumps(value, ensure_ascii=False)
    return (" " if name == "tags" else ",").join(map(str, value)) if isinstance(value, list) else value


def _begin_parquet(file: IO[str], is_ranked: bool, opened: ExitStack, good: Predictions) -> Write:
    types = {**_infer_types([_convert_values(prediction, is_ranked) for prediction in good]), "error": pyarrow.string()}
    schema = pyarrow.schema(types)
    writer = opened.enter_context(parquet.ParquetWriter(file.buffer, schema))  # type: ignore[attr-defined]

    def write(predictions: Predictions) -> None:
        # Arrow silently drops values without a column.
        if unknown := {name for prediction in predictions for name in prediction} - set(types):
            raise ValueError(f"predictions have columns that the first row group lacks: {', '.join(sorted(unknown))}")
        rows = [_convert_values(prediction, is_ranked) for prediction in predictions]
        writer.write_table(pyarrow.Table.from_pylist(rows, schema=schema))

    return write


def _convert_values(prediction: Mapping[str, Any], is_ranked: bool) -> dict[str, Any]:
    """Convert ranked probabilities to a list, which preserves the order."""
    values: dict[str, Any] = {}
    for name, value in prediction.items():
        if name == "probabilities":
            pairs = value.items()
            values[name] = [{"label": label, "probability": found} for label, found in pairs] if is_ranked else value
        else:
            values[name] = _convert_values(value, is_ranked) if isinstance(value, Mapping) else value
    return values


def _infer_types(rows: Iterable[Mapping[str, Any]]) -> dict[str, pyarrow.DataType]:
    """Return the type of each key, by name for keys of the tasks, else by value."""
    columns: dict[str, list[Any]] = {}
    for row in rows:
        for name, value in row.items():
            columns.setdefault(name, []).append(value)
    return {
        name: _infer_type(name, [value for value in values if value is not None]) for name, values in columns.items()
    }


def _infer_type(name: str, values: list[Any]) -> pyarrow.DataType:
    if name == "probabilities":
        if isinstance(values[0], list):
            return RANKED_TYPE
        return pyarrow.struct(dict.fromkeys((label for value in values for label in value), pyarrow.float64()))
    if name == "entities":
        found = _infer_types(entity for value in values for entity in value)
        return pyarrow.list_(
            pyarrow.struct({key: ENTITY_TYPES.get(key, found.get(key)) for key in found or ENTITY_TYPES})
        )
    if values and isinstance(values[0], Mapping):
        return pyarrow.struct(_infer_types(values))
    if name in TYPES:
        return TYPES[name]
    inferred = pyarrow.infer_type(values)
    return pyarrow.string() if pyarrow.types.is_null(inferred) else inferred
