"""File format record, registry of formats, and reading files by format."""

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow
from datasets import Dataset
from datasets.table import InMemoryTable

from peftkit.errors import UserError

# Rows converted to Arrow columns at a time.
ROWS_PER_CHUNK = 10_000


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be read, and the reason."""

    problem: str


Row = Mapping[str, Any] | BadRow


@dataclass(frozen=True, kw_only=True)
class DataFormat:
    """A file format, for training data and for prediction input.

    Attributes:
        name: Name of the format for `peftkit predict --input_format`.
        extensions: Extensions of file names in lower case, such as `.csv` or `.csv.gz`; the longest match decides.
        stream: Yields the rows of an open binary file one by one, and a `BadRow` for a row that cannot be read.
            Prediction continues after a `BadRow`. Raises ValueError for a file that is not of this format.
        read: Reads a whole file for training. The default collects the rows of `stream`, and the first `BadRow` is an
            error.
        needs_path: Whether `stream` takes the path of the file; such a format cannot read standard input.
        is_trainable: Whether files of this format can be training data.
    """

    name: str
    extensions: tuple[str, ...]
    stream: Callable[[Any], Iterator[Row]]
    read: Callable[[Path], Dataset] | None = None
    needs_path: bool = False
    is_trainable: bool = True


_FORMATS: dict[str, DataFormat] = {}


def register_data_format(data_format: DataFormat) -> DataFormat:
    """Register a format for training and prediction. Raises UserError for a duplicate name or extension."""
    if data_format.name in _FORMATS:
        raise UserError(f"data format '{data_format.name}': already registered; use another name")
    taken = {extension: known.name for known in _FORMATS.values() for extension in known.extensions}
    for extension in data_format.extensions:
        if not extension.startswith(".") or extension != extension.lower():
            raise UserError(f"data format '{data_format.name}': '{extension}' must be lower case and start with a dot")
        if extension in taken:
            raise UserError(f"data format '{data_format.name}': {extension} belongs to '{taken[extension]}'")
    _FORMATS[data_format.name] = data_format
    return data_format


def list_format_names() -> tuple[str, ...]:
    """Return the names of all registered formats."""
    return tuple(_FORMATS)


def get_format(name: str) -> DataFormat | None:
    """Return the format with this name, or None."""
    return _FORMATS.get(name)


def find_format(path: str | Path) -> DataFormat | None:
    """Return the format with the longest extension that matches the end of the file name, or None."""
    name = Path(path).name.lower()
    matches = [
        (len(extension), data_format)
        for data_format in _FORMATS.values()
        for extension in data_format.extensions
        if name.endswith(extension)
    ]
    return max(matches, key=lambda match: match[0])[1] if matches else None


def list_trainable_extensions() -> tuple[str, ...]:
    """Return the extensions of all formats for training data."""
    return tuple(extension for known in _FORMATS.values() if known.is_trainable for extension in known.extensions)


def iterate_rows(data_format: DataFormat, file: Path | None) -> Iterator[Row]:
    """Yield the rows of a file, or of standard input (None), one by one.

    Raises UserError for a file that is not of the format.
    """
    try:
        if data_format.needs_path:
            yield from data_format.stream(file)
        elif file is None:
            yield from data_format.stream(sys.stdin.buffer)
        else:
            with file.open("rb") as binary:
                yield from data_format.stream(binary)
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        where = "standard input" if file is None else str(file)
        raise UserError(f"{where}: cannot be read: {' '.join(str(error).split())[:300]}") from error


def read_dataset(path: Path) -> Dataset:
    """Read a file for training. Raises UserError with the file and the row that cannot be read."""
    data_format = find_format(path)
    if data_format is None or not data_format.is_trainable:
        known = " ".join(list_trainable_extensions())
        raise UserError(
            f"{path}: unknown file format '{path.suffix}' (expected one of {known}); "
            "convert the file, or set data.sql to read a database"
        )
    if data_format.read is None:
        return _collect(iterate_rows(data_format, path), path)
    try:
        return data_format.read(path)
    except Exception:
        _check_rows(data_format, path)
        raise


def _collect(rows: Iterator[Row], path: Path) -> Dataset:
    """Collect rows in Arrow columns, in chunks to limit the number of Python objects."""
    tables: list[pyarrow.Table] = []
    first = 0
    while chunk := list(islice(rows, ROWS_PER_CHUNK)):
        good: list[Mapping[str, Any]] = []
        for number, row in enumerate(chunk, first):
            if isinstance(row, BadRow):
                raise UserError(describe_bad_row(path, number, row))
            good.append(row)
        names = dict.fromkeys(name for row in good for name in row)
        tables.append(pyarrow.table({name: [row.get(name) for row in good] for name in names}))
        first += len(chunk)
    if not tables:
        raise UserError(f"{path}: no rows; use another file")
    return Dataset(InMemoryTable(pyarrow.concat_tables(tables, promote_options="permissive")))


def _check_rows(data_format: DataFormat, path: Path) -> None:
    """Raise UserError for the first row that cannot be read."""
    for number, row in enumerate(iterate_rows(data_format, path)):
        if isinstance(row, BadRow):
            raise UserError(describe_bad_row(path, number, row))


def describe_bad_row(where: str | Path, number: int, row: BadRow) -> str:
    """Return the error text of a row: file, row number from 0 and problem."""
    return f"{where}, row {number} (from 0): {row.problem}"
