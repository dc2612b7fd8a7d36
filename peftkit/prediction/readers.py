"""The rows of a file or of standard input, one after another, as training reads and numbers them; never all at once."""

import csv
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import StringIO, TextIOWrapper
from pathlib import Path
from typing import IO, Any

import pandas
import pyarrow
from pyarrow import ipc, parquet

from peftkit.errors import UserError

# File name ending -> input format.
ENDINGS = {
    ".jsonl": "jsonl", ".json": "json", ".csv": "csv", ".tsv": "tsv", ".parquet": "parquet", ".arrow": "arrow",
    ".txt": "text",
}  # fmt: skip
INPUT_FORMATS = tuple(ENDINGS.values())
# Rows of a Parquet or Arrow file that are held at a time.
ROWS_AT_A_TIME = 1000
# A quotation mark that is never closed would make one cell of all that follows.
LONGEST_CELL = 2**24


@dataclass(frozen=True, kw_only=True)
class StreamedRow:
    """A row, numbered from 0 as training numbers rows; one that can't be read has no values and says why."""

    number: int
    values: dict[str, Any]
    problem: str | None = None


# A row without its number: its values, or why it can't be read.
Unnumbered = tuple[dict[str, Any], str | None]


def stream_rows(file: Path | None, input_format: str | None = None) -> Iterator[StreamedRow]:
    """The rows of `file`, or of standard input (None), in memory that does not grow with their number.

    `input_format` is one of INPUT_FORMATS; by default what the file's ending says, and jsonl of standard input. Only a
    JSON file that is an array (`json`, first character `[`) is read whole. A key that a JSON row lacks is not among
    its values. Raises UserError: at once for a file that isn't there or a format that isn't known, while rows are
    read for a file that is not of its format.
    """
    where = "standard input" if file is None else str(file)
    if file is not None and (not file.exists() or file.is_dir()):
        raise UserError(f"{where}: no such file")
    known = f"one of {', '.join(INPUT_FORMATS)}"
    if input_format is None:
        input_format = "jsonl" if file is None else ENDINGS.get(file.suffix.lower())
        if input_format is None:
            assert file is not None
            raise UserError(f"{where}: unknown file format '{file.suffix}'; say --input_format, {known}")
    if input_format not in INPUT_FORMATS:
        raise UserError(f"--input_format {input_format}: must be {known}")
    if file is None and input_format in BATCH_READERS:
        raise UserError(f"--input_format {input_format}: can't be read from standard input; name a file")
    return _numbered(file, input_format, where)


def _numbered(file: Path | None, input_format: str, where: str) -> Iterator[StreamedRow]:
    try:
        for number, (values, problem) in enumerate(_rows(file, input_format, where)):
            yield StreamedRow(number=number, values=values, problem=problem)
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"{where}: can't be read: {' '.join(str(error).split())[:300]}") from error


def _rows(file: Path | None, input_format: str, where: str) -> Iterator[Unnumbered]:
    if file is not None and input_format in BATCH_READERS:
        yield from _batch_rows(BATCH_READERS[input_format](file))
        return
    # In a table a cell may hold line breaks, which stay what they are.
    with _opened(file, newline="" if input_format in ("csv", "tsv") else None) as text:
        yield from TEXT_READERS[input_format](text, where)


@contextmanager
def _opened(file: Path | None, newline: str | None) -> Iterator[IO[str]]:
    """UTF-8 without a byte order mark; bytes that are not UTF-8 become lone surrogates, for `_is_unicode` to find."""
    binary = sys.stdin.buffer if file is None else file.open("rb")
    text = TextIOWrapper(binary, encoding="utf-8-sig", errors="surrogateescape", newline=newline)
    try:
        yield text
    finally:
        text.detach()
        if file is not None:
            binary.close()


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
        return True
    except UnicodeEncodeError:
        return False


def _text_rows(text: IO[str], where: str) -> Iterator[Unnumbered]:
    """A text a line; a blank line is a text too, so rows are numbered as lines are."""
    for line in text:
        yield ({"text": line.rstrip("\n")}, None) if _is_unicode(line) else ({}, "not UTF-8")


def _jsonl_rows(lines: Iterable[str], where: str) -> Iterator[Unnumbered]:
    """An object a line; a blank line is no row."""
    for line in lines:
        if line.strip(" \t\n"):
            yield _json_row(line)


def _json_row(line: str) -> Unnumbered:
    if not _is_unicode(line):
        return {}, "not UTF-8"
    try:
        return _object(json.loads(line), escaped="\\u" in line)
    except json.JSONDecodeError as error:
        return {}, f"not JSON ({error.msg} at column {error.colno})"
    except (ValueError, RecursionError) as error:
        return {}, f"not JSON ({error})"


def _object(value: Any, escaped: bool) -> Unnumbered:
    """The row of a JSON value, of which an escape may have made text that no UTF-8 can hold."""
    if not isinstance(value, dict):
        return {}, "not a JSON object"
    if escaped and not _is_unicode(json.dumps(value, ensure_ascii=False)):
        return {}, "not Unicode (half of a surrogate pair)"
    return value, None


def _json_rows(text: IO[str], where: str) -> Iterator[Unnumbered]:
    """The objects of an array, or an object a line. An array of strings is one of texts, as it is for `datasets`."""
    first = next((line for line in text if line.strip(" \t\n")), "")
    if not first.lstrip(" \t").startswith("["):
        yield from _jsonl_rows([first], where)
        yield from _jsonl_rows(text, where)
        return
    try:
        items = json.loads(first + text.read())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not JSON: {error}") from error
    texts = bool(items) and isinstance(items[0], str)
    for item in items:
        yield _object({"text": item} if texts and isinstance(item, str) else item, escaped=True)


def _table_rows(text: IO[str], where: str, tab: bool = False) -> Iterator[Unnumbered]:
    """A row a record: cells are text, missing ones are empty; a blank line is a row, but not at the end of the file."""
    csv.field_size_limit(max(csv.field_size_limit(), LONGEST_CELL))
    ended = False

    def lines() -> Iterator[str]:
        nonlocal ended
        # Not `yield from`: a generator that is dropped would close the file, which may be standard input.
        for line in text:  # noqa: UP028
            yield line
        ended = True

    options: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if tab else {}
    reader = csv.reader(lines(), **options)
    columns = _columns(reader, options, where)
    if columns and ended:
        raise UserError(f"{where}: a quotation mark in the first line is not closed")
    # Blank rows that are the file's last ones unless another follows, each with how often it is repeated.
    blank: list[tuple[list[str], int]] = []
    while True:
        try:
            cells = next(reader, None)
            problem = None
        except csv.Error as error:
            cells, problem = [], str(error)
        if cells is None:
            return
        # The reader asks for the line after a record only where a quotation mark keeps the record open.
        if ended:
            problem = "a quotation mark is not closed"
        elif len(cells) > len(columns):
            problem = f"{len(cells)} cells for {len(columns)} columns"
        elif not _is_unicode("".join(cells)):
            problem = "not UTF-8"
        if problem is None and not any(map(str.strip, cells)):
            times = blank.pop()[1] if blank and blank[-1][0] == cells else 0
            blank.append((cells, times + 1))
            continue
        for before, times in blank:
            yield from ((_cells(columns, before), None) for _ in range(times))
        blank.clear()
        yield ({}, problem) if problem else (_cells(columns, cells), None)


def _cells(columns: list[str], cells: list[str]) -> dict[str, str]:
    return dict(zip(columns, cells + [""] * (len(columns) - len(cells)), strict=True))


def _columns(reader: Iterator[list[str]], options: dict[str, Any], where: str) -> list[str]:
    """The columns' names as pandas gives them, where one is missing or is there twice; none of an empty file."""
    try:
        names = next(reader, None)
    except csv.Error as error:
        raise UserError(f"{where}: the first line can't be read: {error}") from error
    if names is None:
        return []
    if not names:
        raise UserError(f"{where}: the first line is empty; it must name the columns")
    if not _is_unicode("".join(names)):
        raise UserError(f"{where}: not UTF-8; save it as UTF-8")
    header = StringIO()
    csv.writer(header, quotechar=None if options else '"', **options).writerow(names)
    header.seek(0)
    return list(pandas.read_csv(header, skip_blank_lines=False, **options).columns)


def _tsv_rows(text: IO[str], where: str) -> Iterator[Unnumbered]:
    """A quotation mark is one of the text's."""
    return _table_rows(text, where, tab=True)


def _parquet_batches(file: Path) -> Iterator[pyarrow.RecordBatch]:
    # Otherwise a row group is read ahead whole.
    with parquet.ParquetFile(file, pre_buffer=False, buffer_size=2**16) as opened:
        yield from opened.iter_batches(ROWS_AT_A_TIME, use_threads=False)


def _arrow_batches(file: Path) -> Iterator[pyarrow.RecordBatch]:
    """Those of either of Arrow's formats, cut where they are large."""
    with pyarrow.memory_map(str(file)) as mapped:
        try:
            batches: Iterable[pyarrow.RecordBatch] = ipc.open_stream(mapped)
        except pyarrow.ArrowInvalid:
            opened = ipc.open_file(mapped)
            batches = (opened.get_batch(number) for number in range(opened.num_record_batches))
        for batch in batches:
            for start in range(0, batch.num_rows, ROWS_AT_A_TIME):
                yield batch.slice(start, ROWS_AT_A_TIME)


def _batch_rows(batches: Iterable[pyarrow.RecordBatch]) -> Iterator[Unnumbered]:
    for batch in batches:
        try:
            yield from ((values, None) for values in batch.to_pylist())
        except UnicodeDecodeError:
            yield from (_single_row(batch.slice(place, 1)) for place in range(batch.num_rows))


def _single_row(batch: pyarrow.RecordBatch) -> Unnumbered:
    try:
        return batch.to_pylist()[0], None
    except UnicodeDecodeError:
        return {}, "not UTF-8"


TEXT_READERS: dict[str, Callable[[IO[str], str], Iterator[Unnumbered]]] = {
    "jsonl": _jsonl_rows,
    "json": _json_rows,
    "csv": _table_rows,
    "tsv": _tsv_rows,
    "text": _text_rows,
}
BATCH_READERS = {"parquet": _parquet_batches, "arrow": _arrow_batches}
