"""CSV and TSV.

Cells are read as text: 01 is not 1, and NA and None are strings. A missing cell is empty. A blank line is a row, except
at the end of the file. In a TSV a quotation mark is part of the text.
"""

import csv
from collections.abc import Iterator
from functools import partial
from io import StringIO
from typing import IO, Any

from peftkit.data.formats.base import BadRow, DataFormat, Row
from peftkit.data.formats.text import NOT_UTF8, is_unicode, open_text

# Options of both the csv module and pandas.
TSV_OPTIONS: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE}
# Without a limit, an unclosed quotation mark makes one cell of the rest of the file.
MAX_CELL_LENGTH = 2**24


def stream_table(binary: IO[bytes], **options: Any) -> Iterator[Row]:
    """Yield one row per record, with a text in each column."""
    csv.field_size_limit(max(csv.field_size_limit(), MAX_CELL_LENGTH))
    # A cell may contain line breaks of any kind, which must not be translated.
    with open_text(binary, newline="") as text:
        yield from _parse_records(text, options)


def _parse_records(text: IO[str], options: dict[str, Any]) -> Iterator[Row]:
    at_end = False

    def lines() -> Iterator[str]:
        nonlocal at_end
        # Not `yield from`: closing this generator would then close the file, perhaps standard input.
        for line in text:  # noqa: UP028
            yield line
        at_end = True

    reader = csv.reader(lines(), **options)
    columns = _read_columns(reader, options)
    if columns and at_end:
        raise ValueError("a quotation mark in the first line is not closed")
    # Blank rows with their counts; dropped unless another row follows.
    blank: list[tuple[list[str], int]] = []
    while True:
        try:
            cells = next(reader, None)
            problem = None
        except csv.Error as error:
            cells, problem = [], BadRow(str(error))
        if cells is None:
            return
        # The reader reads to the end only if a quotation mark is not closed.
        if at_end:
            problem = BadRow("a quotation mark is not closed")
        elif len(cells) > len(columns):
            problem = BadRow(f"{len(cells)} cells for {len(columns)} columns")
        elif not is_unicode("".join(cells)):
            problem = NOT_UTF8
        if problem is None and not any(map(str.strip, cells)):
            count = blank.pop()[1] if blank and blank[-1][0] == cells else 0
            blank.append((cells, count + 1))
            continue
        for before, count in blank:
            yield from (_name_cells(columns, before) for _ in range(count))
        blank.clear()
        yield problem or _name_cells(columns, cells)


def _name_cells(columns: list[str], cells: list[str]) -> dict[str, str]:
    if len(cells) < len(columns):
        cells = cells + [""] * (len(columns) - len(cells))
    return dict(zip(columns, cells, strict=True))


def _read_columns(reader: Iterator[list[str]], options: dict[str, Any]) -> list[str]:
    """Read the column names; pandas names missing and duplicate columns. An empty file has none."""
    import pandas

    try:
        names = next(reader, None)
    except csv.Error as error:
        raise ValueError(f"the first line cannot be read: {error}") from error
    if names is None:
        return []
    if not names:
        raise ValueError("the first line is empty (expected column names)")
    if not is_unicode("".join(names)):
        raise ValueError("not UTF-8; save it as UTF-8")
    header = StringIO()
    csv.writer(header, quotechar=None if options else '"', **options).writerow(names)
    header.seek(0)
    return list(pandas.read_csv(header, skip_blank_lines=False, **options).columns)


CSV = DataFormat(name="csv", extensions=(".csv",), stream=stream_table)
TSV = DataFormat(name="tsv", extensions=(".tsv",), stream=partial(stream_table, **TSV_OPTIONS))
