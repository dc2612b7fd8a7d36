"""Read rows of prediction input one by one, with row numbers as in training."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow

from peftkit.data.formats import BadRow, DataFormat, find_format, get_format, iterate_rows, list_format_names
from peftkit.errors import UserError

# Errors of pyarrow for values without a common type.
MIXED_TYPE_ERRORS = (pyarrow.ArrowException, OverflowError, TypeError)


@dataclass(frozen=True, kw_only=True)
class StreamedRow:
    """A row with the row number from 0; a row that cannot be read has a problem and no values."""

    number: int
    values: Mapping[str, Any]
    problem: str | None = None


def stream_rows(file: Path | None, input_format: str | None = None) -> Iterator[StreamedRow]:
    """Read the rows of `file`, or of standard input (None), with constant memory.

    `input_format` is the name of a format. The default is the format of the file extension, and jsonl for standard
    input. Only a JSON array is read completely. A JSON row has only the keys of its object. Raises UserError at once
    for a missing file or an unknown format, and later for a file of another format.
    """
    return _number_rows(file, _choose_format(file, input_format))


def _choose_format(file: Path | None, input_format: str | None) -> DataFormat:
    where = "standard input" if file is None else str(file)
    known = f"one of {', '.join(list_format_names())}"
    if file is not None and (not file.exists() or file.is_dir()):
        raise UserError(f"{where}: no such file; use an existing file")
    if input_format is not None:
        data_format = get_format(input_format)
        if data_format is None:
            raise UserError(f"--input_format {input_format}: unknown format; use {known}")
    else:
        data_format = get_format("jsonl") if file is None else find_format(file)
        if data_format is None:
            assert file is not None
            raise UserError(f"{where}: unknown file format '{file.suffix}'; pass --input_format, {known}")
    if file is None and data_format.needs_path:
        raise UserError(f"--input_format {data_format.name}: cannot read standard input; pass a file")
    return data_format


def _number_rows(file: Path | None, data_format: DataFormat) -> Iterator[StreamedRow]:
    for number, row in enumerate(iterate_rows(data_format, file)):
        if isinstance(row, BadRow):
            yield StreamedRow(number=number, values={}, problem=row.problem)
        else:
            yield StreamedRow(number=number, values=row)
