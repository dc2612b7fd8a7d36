"""JSON: one object per line, or one array.

For training `datasets` reads the file, infers one type per column and maps the columns from disk. For prediction each
line is parsed alone, so that one bad line does not affect other lines. If training cannot read the file, this parser
finds the bad row.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from datasets import Dataset, load_dataset

from peftkit.data.formats.base import BadRow, DataFormat, Row
from peftkit.data.formats.text import NOT_UTF8, is_unicode, open_text


def stream_jsonl(binary: IO[bytes]) -> Iterator[Row]:
    """Yield one object per line; a blank line is not a row."""
    with open_text(binary) as lines:
        yield from _parse_lines(lines)


def stream_json(binary: IO[bytes]) -> Iterator[Row]:
    """Yield the objects of an array, which is read completely, or one object per line.

    An array of strings is an array of texts, as in `datasets`.
    """
    with open_text(binary) as lines:
        first = next((line for line in lines if line.strip(" \t\n")), "")
        if not first.lstrip(" \t").startswith("["):
            yield from _parse_lines([first])
            yield from _parse_lines(lines)
            return
        try:
            items = json.loads(first + lines.read())
        except (ValueError, RecursionError) as error:
            raise ValueError(f"not JSON: {error}") from error
    are_texts = bool(items) and isinstance(items[0], str)
    for item in items:
        yield _check_object({"text": item} if are_texts and isinstance(item, str) else item, has_escapes=True)


def _parse_lines(lines: Iterable[str]) -> Iterator[Row]:
    for line in lines:
        if line.strip(" \t\n"):
            yield _parse_line(line)


def _parse_line(line: str) -> Row:
    if not is_unicode(line):
        return NOT_UTF8
    try:
        return _check_object(json.loads(line), has_escapes="\\u" in line)
    except json.JSONDecodeError as error:
        return BadRow(f"not JSON ({error.msg} at column {error.colno})")
    except (ValueError, RecursionError) as error:
        return BadRow(f"not JSON ({error})")


def _check_object(value: Any, has_escapes: bool) -> Row:
    """Return the row of a JSON value; an escape sequence may produce text that UTF-8 cannot encode."""
    if not isinstance(value, dict):
        return BadRow("not a JSON object")
    if has_escapes and not is_unicode(json.dumps(value, ensure_ascii=False)):
        return BadRow("not Unicode (half of a surrogate pair)")
    return value


def read_json(path: Path) -> Dataset:
    """Read a whole file with `datasets`."""
    return load_dataset("json", data_files=str(path), split="train")


JSONL = DataFormat(name="jsonl", extensions=(".jsonl",), stream=stream_jsonl, read=read_json)
JSON = DataFormat(name="json", extensions=(".json",), stream=stream_json, read=read_json)
