"""Atomic writes of files and folders; redaction of home paths and passwords. Standard library only."""

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
    """Open a UTF-8 text file under a temporary name; rename it to `path` at the end, remove it on failure."""
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
    """Write `value` as indented JSON. Raises ValueError for NaN and infinity."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def check_new_directory(path: Path) -> None:
    """Raise UserError when `path` exists and is not an empty folder."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path.resolve().name}: already exists; use another folder or remove it")


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Create a temporary folder beside `path`; rename it to `path` at the end, remove it on failure.

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
    """Replace the user's home folder by `~` everywhere in the text."""
    home = str(Path.home())
    return text if home == "/" else text.replace(home + os.sep, "~" + os.sep)


def redact_home(path: str | Path) -> str:
    """Replace the home folder by `~` at the start of a path, so that files contain no user name."""
    text, home = str(path), str(Path.home())
    if home != "/" and (text == home or text.startswith(home + os.sep)):
        return "~" + text[len(home) :]
    return text


def redact_password(text: str) -> str:
    """Replace the password in each `scheme://user:password@host` of the text by `***`, except a `$NAME`."""
    return re.sub(r"(\w://[^/\s:@]*):(?!\$)[^/\s@]*@", r"\1:***@", text)
