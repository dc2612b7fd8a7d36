"""Answers written as they come: JSONL, CSV or Parquet in a file that appears whole, or JSONL on standard output."""

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

Answers = Sequence[Mapping[str, Any]]
Write = Callable[[Answers], None]

ENDINGS = (".jsonl", ".csv", ".parquet")
# Answers of a row group, from the first of which the columns' types are known.
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
    """Raise UserError if answers can't be written there."""
    if output is None:
        return
    if output.suffix.lower() not in ENDINGS:
        raise UserError(f"--output {output}: must end in .jsonl, .csv or .parquet")
    if output.exists():
        raise UserError(f"--output {output}: already exists; name another file or remove it")


@contextmanager
def answer_writer(output: Path | None, *, ranked: bool = False) -> Iterator[Write]:
    """A function that writes some answers, each a mapping whose first key is `row`, in the order it is given them.

    The file appears under its name at the end, and not at all on failure; without `output` answers go to standard
    output, each call's at once. An answer may be only `row` and `error`. In a table the columns are those of the first
    answer without an error, then `error`. `ranked` says that `probabilities` are of each row's first labels only, so
    that they can't be a column a label. Raises UserError as `check_output` does.
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
            table = _Table(partial(_begin_csv, file, ranked), 1)
        else:
            table = _Table(partial(_begin_parquet, file, ranked, opened), ROW_GROUP)
        yield table.write
        table.write_waiting()


def _jsonl(answers: Answers) -> str:
    return "".join(json.dumps(answer, ensure_ascii=False) + "\n" for answer in answers)


def _write_jsonl(file: IO[str], answers: Answers) -> None:
    file.write(_jsonl(answers))


def _write_to_standard_output(answers: Answers) -> None:
    sys.stdout.buffer.write(_jsonl(answers).encode())
    sys.stdout.buffer.flush()


class _Table:
    """Answers that wait until there are `enough` and one is good, from which `begin` fixes the columns."""

    def __init__(self, begin: Callable[[Answers], Write], enough: int) -> None:
        self._begin = begin
        self._enough = enough
        self._waiting: list[Mapping[str, Any]] = []
        self._one_is_good = False
        self._write: Write | None = None

    def write(self, answers: Answers) -> None:
        self._waiting += answers
        self._one_is_good = self._one_is_good or any("error" not in answer for answer in answers)
        if self._one_is_good and len(self._waiting) >= self._enough:
            self.write_waiting()

    def write_waiting(self) -> None:
        if self._write is None:
            good = [answer for answer in self._waiting if "error" not in answer]
            self._write = self._begin(good or [{"row": 0}])
        if self._waiting:
            self._write(self._waiting)
        self._waiting = []


class _Lines:
    r"""What `csv` writes with \r\n after a row, so that it quotes a text that holds either, with \n after a row."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file

    def write(self, line: str) -> int:
        return self._file.write(line.removesuffix("\r\n") + "\n")


def _begin_csv(file: IO[str], ranked: bool, good: Answers) -> Write:
    writer = csv.DictWriter(_Lines(file), [*_cells(good[0], ranked), "error"], restval="")
    writer.writeheader()
    return lambda answers: writer.writerows(_cells(answer, ranked) for answer in answers)


def _cells(answer: Mapping[str, Any], ranked: bool) -> dict[str, Any]:
    """A column a value, the probabilities last; NAME.column for each of the columns of a model NAME."""
    cells: dict[str, Any] = {}
    for name in sorted(answer, key=lambda name: name == "probabilities"):
        value = answer[name]
        if name == "probabilities" and not ranked:
            cells |= {f"probability of {label}": probability for label, probability in value.items()}
        elif isinstance(value, Mapping) and name != "probabilities":
            cells |= {f"{name}.{column}": cell for column, cell in _cells(value, ranked).items()}
        else:
            cells[name] = _cell(name, value)
    return cells


def _cell(name: str, value: Any) -> Any:
    """A space between tags, a comma between labels; entities and ranked probabilities as JSON."""
    if name in ("entities", "probabilities"):
        return json.dumps(value, ensure_ascii=False)
    return (" " if name == "tags" else ",").join(map(str, value)) if isinstance(value, list) else value


def _begin_parquet(file: IO[str], ranked: bool, opened: ExitStack, good: Answers) -> Write:
    types = {**_types([_arrow_values(answer, ranked) for answer in good]), "error": pyarrow.string()}
    schema = pyarrow.schema(types)
    writer = opened.enter_context(parquet.ParquetWriter(file.buffer, schema))  # type: ignore[attr-defined]

    def write(answers: Answers) -> None:
        # Arrow would leave out what has no column without a word.
        if unknown := {name for answer in answers for name in answer} - set(types):
            raise ValueError(f"answers with columns that the first ones lack: {', '.join(sorted(unknown))}")
        rows = [_arrow_values(answer, ranked) for answer in answers]
        writer.write_table(pyarrow.Table.from_pylist(rows, schema=schema))

    return write


def _arrow_values(answer: Mapping[str, Any], ranked: bool) -> dict[str, Any]:
    """The answer with ranked probabilities as a list, which keeps their order."""
    values: dict[str, Any] = {}
    for name, value in answer.items():
        if name == "probabilities":
            pairs = value.items()
            values[name] = [{"label": label, "probability": found} for label, found in pairs] if ranked else value
        else:
            values[name] = _arrow_values(value, ranked) if isinstance(value, Mapping) else value
    return values


def _types(rows: Iterable[Mapping[str, Any]]) -> dict[str, pyarrow.DataType]:
    """The type of each key, by its name where that is a word of a task, else by its values."""
    columns: dict[str, list[Any]] = {}
    for row in rows:
        for name, value in row.items():
            columns.setdefault(name, []).append(value)
    return {name: _type(name, [value for value in values if value is not None]) for name, values in columns.items()}


def _type(name: str, values: list[Any]) -> pyarrow.DataType:
    if name == "probabilities":
        if isinstance(values[0], list):
            return RANKED_TYPE
        return pyarrow.struct(dict.fromkeys((label for value in values for label in value), pyarrow.float64()))
    if name == "entities":
        found = _types(entity for value in values for entity in value)
        return pyarrow.list_(
            pyarrow.struct({key: ENTITY_TYPES.get(key, found.get(key)) for key in found or ENTITY_TYPES})
        )
    if values and isinstance(values[0], Mapping):
        return pyarrow.struct(_types(values))
    if name in TYPES:
        return TYPES[name]
    inferred = pyarrow.infer_type(values)
    return pyarrow.string() if pyarrow.types.is_null(inferred) else inferred
