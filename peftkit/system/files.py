"""Files appear whole or not at all, and carry no home path. Standard library only."""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from peftkit.errors import UserError


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` in UTF-8 under a temporary name, then rename."""
    with atomic_open(path) as file:
        file.write(text)


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path` under a temporary name, then rename."""
    with atomic_open(path) as file:
        file.buffer.write(content)  # type: ignore[attr-defined]


@contextmanager
def atomic_open(path: Path) -> Iterator[IO[str]]:
    """A text file in UTF-8 under a temporary name, renamed to `path` at the end and removed on any failure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
            yield file
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON; NaN and infinity are refused by raising ValueError."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def check_new_directory(path: Path) -> None:
    """Raise UserError when `path` exists and is not an empty folder."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path.resolve().name}: already exists; use another folder or remove it")


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Give a temporary sibling of `path` to fill; rename it to `path` at the end, remove it on any failure.

    Raises UserError when `path` already exists and is not an empty folder.
    """
    check_new_directory(path)
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        yield temporary
        temporary.chmod(0o755)
        if path.exists():
            path.rmdir()
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def redact_home_in_text(text: str) -> str:
    """The text with the user's home folder written as `~` wherever it stands."""
    home = str(Path.home())
    return text if home == "/" else text.replace(home + os.sep, "~" + os.sep)


def redact_home(path: str | Path) -> str:
    """Return the path with the user's home folder written as `~`, so that saved files name no one."""
    text, home = str(path), str(Path.home())
    if home != "/" and (text == home or text.startswith(home + os.sep)):
        return "~" + text[len(home) :]
    return text


def redact_password(text: str) -> str:
    """The text with the password of any `scheme://user:password@host` in it written as `***`; `$NAME` may stay."""
    return re.sub(r"(\w://[^/\s:@]*):(?!\$)[^/\s@]*@", r"\1:***@", text)
