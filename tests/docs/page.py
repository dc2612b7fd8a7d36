"""Markdown pages whose commands and code are executed; CONTRIBUTING.md describes the comments that control it."""

import contextlib
import fnmatch
import json
import os
import re
import shlex
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).resolve().parents[2]
SESSION = Path(__file__).with_name("python_session.py")
COMMENT = re.compile(r"<!-- test: (\w+)[ \t]*([^\n]*?)\n?(?:\n(.*?))?\s*-->\s*", re.DOTALL)
EXECUTED = ("python", "console", "bash")
OF_THE_NEXT_BLOCK = ("skip", "file", "exit", "output")
SECONDS = 120


class PageError(AssertionError):
    """A block that fails, or a comment that is wrong: `PAGE:LINE: what`."""


@dataclass(frozen=True)
class Block:
    """A fenced block, or an invisible block in a comment, with the comments before it."""

    line: int
    language: str
    text: str
    comments: dict[str, str] = field(default_factory=dict)


def read_page(path: Path) -> Iterator[Block]:
    """Yield the blocks of a page; the language `options` is a comment that holds for the rest of the page."""
    comments: dict[str, str] = {}
    for token in MarkdownIt("commonmark").parse(path.read_text(encoding="utf-8")):
        line = token.map[0] + 1 if token.map else 0
        if token.type == "fence":
            language = token.info.split()[0] if token.info.split() else ""
            # The code block of MyST, which has options such as a caption.
            yield Block(line, language, token.content, comments)
            comments = {}
        elif token.type == "html_block" and token.content.startswith("<!-- test:"):
            if not (match := COMMENT.fullmatch(token.content)):
                raise PageError(f"{path.name}:{line}: malformed comment; expected <!-- test: NAME ... -->")
            name, argument, text = match.groups()
            if name in (*EXECUTED, "options"):
                yield Block(line + 1, name, argument if name == "options" else f"{text or ''}\n", comments)
                comments = {}
            elif name in OF_THE_NEXT_BLOCK:
                comments = comments | {name: argument}
            else:
                raise PageError(f"{path.name}:{line}: unknown comment 'test: {name}'")
        elif comments and token.nesting >= 0 and token.type not in ("html_block", "list_item_open"):
            raise PageError(f"{path.name}:{line}: 'test: {next(iter(comments))}' is not followed by a block")


def split_console(text: str) -> list[tuple[str, list[str]]]:
    """Split a console block into commands, which start with `$ `, and the output below each."""
    found: list[tuple[str, list[str]]] = []
    for line in text.splitlines():
        if line.startswith("$ "):
            found.append((line.removeprefix("$ "), []))
        elif found and found[-1][0].endswith("\\") and not found[-1][1]:
            found[-1] = (f"{found[-1][0]}\n{line.removeprefix('> ')}", [])
        elif found:
            found[-1][1].append(line)
        elif line.strip():
            raise ValueError("a console block starts with a command: '$ COMMAND'")
    return found


def add_options(script: str, options: dict[str, str]) -> str:
    """Add the options of the page to each command of a script that starts with the given prefix."""
    lines = []
    for line in re.split(r"(?<!\\)\n", script):
        for prefix, added in options.items():
            if f"{line} ".startswith(f"{prefix} "):
                command, rest = re.match(r"(.*?)((?:\s+(?:#|\||>|2>|<|&).*)?\s*)$", line, re.DOTALL).groups()
                line = f"{command} {added}{rest}"
        lines.append(line)
    return "\n".join(lines)


def find_missing_line(expected: list[str], output: str) -> str | None:
    """Find the first line that the output lacks; the lines are in order, `...` stands for any text or lines."""
    got = iter(" ".join(line.split()) for line in output.splitlines())
    for line in expected:
        pattern = re.sub(r"([*?[])", r"[\1]", " ".join(line.split())).replace("...", "*")
        if pattern.strip("*") and not any(fnmatch.fnmatchcase(other, pattern) for other in got):
            return line
    return None


class PageRunner:
    """Runs the blocks of one page in a folder: commands as processes, Python in one process with one namespace."""

    def __init__(self, folder: Path, checkpoints: Path):
        self.folder, self.options, self.output = folder, {}, ""
        self.python: subprocess.Popen | None = None
        for name in ("recipes", "ds_configs"):
            (folder / name).symlink_to(ROOT / name)
        programs = folder / ".bin"
        programs.mkdir()
        scripts = Path(sysconfig.get_path("scripts"))
        started = {"python": "", "python3": "", "peftkit": "-m peftkit"}
        started |= {name: shlex.quote(str(scripts / name)) for name in ("torchrun", "deepspeed")}
        for name, arguments in started.items():
            (programs / name).write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {arguments} "$@"\n')
            (programs / name).chmod(0o755)
        self.environment = {
            **os.environ, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT),
            "CHECKPOINTS": str(checkpoints), "OMP_NUM_THREADS": "1", "COLUMNS": "120",
        }  # fmt: skip

    def run(self, path: Path) -> int:
        """Run a page and return the number of its blocks that were executed or written. Raises PageError."""
        count = 0
        with contextlib.closing(self):
            for block in read_page(path):
                try:
                    count += self.run_block(block)
                except (AssertionError, ValueError) as error:
                    raise PageError(f"{path.name}:{block.line}: {error}") from None
        return count

    def run_block(self, block: Block) -> bool:
        """Run a block; return whether it was executed or written."""
        comments = block.comments
        if not block.language:
            raise ValueError("the block has no language; use python, console, bash, yaml, json or text")
        if "skip" in comments:
            if not comments["skip"]:
                raise ValueError("test: skip needs a reason")
            return False
        if block.language == "options":
            prefix, *added = shlex.split(block.text)
            self.options[prefix] = block.text.removeprefix(shlex.quote(prefix)).split('"', 2)[-1].strip()
            if not added:
                raise ValueError('expected test: options "COMMAND" OPTIONS')
        elif name := comments.get("file"):
            file = self.folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(block.text, encoding="utf-8")
            return True
        elif "output" in comments and block.language not in EXECUTED:
            self.check_output(block.text.splitlines())
        elif block.language == "python":
            self.run_python(block)
            return True
        elif block.language == "bash":
            self.run_command(f"set -e\n{block.text}", int(comments.get("exit") or 0))
            return True
        elif block.language == "console":
            for command, output in split_console(block.text):
                self.run_command(command, int(comments.get("exit") or 0))
                self.check_output(output)
            return True
        return False

    def run_command(self, script: str, code: int) -> None:
        """Run a command or a script and check its exit code."""
        done = subprocess.run(
            ["bash", "-c", add_options(script, self.options)], cwd=self.folder, env=self.environment, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=SECONDS,
        )  # fmt: skip
        self.output = done.stdout
        if done.returncode != code:
            raise ValueError(f"exit code {done.returncode} (expected {code}):\n{script}\n{done.stdout[-3000:]}")

    def run_python(self, block: Block) -> None:
        """Run code in the page's namespace."""
        if self.python is None:
            self.python = subprocess.Popen(
                [sys.executable, str(SESSION)], cwd=self.folder, env=self.environment, text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            )  # fmt: skip
        self.python.stdin.write(json.dumps({"line": block.line, "code": block.text}) + "\n")
        self.python.stdin.flush()
        answer = json.loads(self.python.stdout.readline() or '{"output": "", "error": "the process ended"}')
        self.output = answer["output"]
        if answer["error"]:
            raise ValueError(f"{answer['error']}\n{self.output[-3000:]}")

    def check_output(self, expected: list[str]) -> None:
        """Check that the last command or code printed these lines."""
        if (missing := find_missing_line(expected, self.output)) is not None:
            raise ValueError(f"the output lacks the line '{missing}':\n{self.output[-3000:]}")

    def close(self) -> None:
        """End the process of the page's Python code."""
        if self.python is not None:
            self.python.stdin.close()
            self.python.stdout.close()
            self.python.wait(timeout=SECONDS)
