"""Plain text, one row per line; decoding of binary files for all text formats."""

from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from typing import IO

from peftkit.data.formats.base import BadRow, DataFormat, Row

NOT_UTF8 = BadRow("not UTF-8")


@contextmanager
def open_text(binary: IO[bytes], newline: str | None = None) -> Iterator[IO[str]]:
    """Decode UTF-8 and skip a byte order mark; other bytes become lone surrogates (see `is_unicode`)."""
    text = TextIOWrapper(binary, encoding="utf-8-sig", errors="surrogateescape", newline=newline)
    try:
        yield text
    finally:
        # Otherwise the wrapper would close the file, which may be standard input.
        text.detach()


def is_unicode(text: str) -> bool:
    """Return whether the text has no lone surrogate."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def stream_text(binary: IO[bytes]) -> Iterator[Row]:
    """Yield one text per line; a blank line is a row, so that row numbers equal line numbers."""
    with open_text(binary) as lines:
        for line in lines:
            yield {"text": line.rstrip("\n")} if is_unicode(line) else NOT_UTF8


TEXT = DataFormat(name="text", extensions=(".txt",), stream=stream_text, is_trainable=False)
