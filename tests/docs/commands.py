"""The commands in the documentation, checked against the parsers without running them."""

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path

import peft
from transformers import Seq2SeqTrainingArguments

from peftkit.cli.main import build_parser
from peftkit.errors import UserError
from peftkit.recipe.schema import DataConfig, ModelConfig
from peftkit.tasks import TASKS
from tests.docs.page import read_page, split_console

OPTIONS_OF_RECIPES = {"--name", "--task", "--ds", "--resume", "--debug", "--plugin", "--method.name", "--method.peft"}
SEPARATORS = {"|", "||", "&&", ";", "&", ">", "2>", "<"}


def list_fields() -> set[str]:
    """List the options that set a field of a recipe."""
    parts: Mapping[str, tuple] = {
        "model": (ModelConfig,), "data": (DataConfig,), "task": tuple(TASKS), "training": (Seq2SeqTrainingArguments,),
        "method.peft": tuple(peft.PEFT_TYPE_TO_CONFIG_MAPPING.values()),
    }  # fmt: skip
    return {f"--{part}.{f.name}" for part, kinds in parts.items() for kind in kinds for f in fields(kind)}


def list_commands(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the line of the block and the arguments of each command in the bash and console blocks of a page."""
    for block in read_page(path):
        if block.language not in ("bash", "console"):
            continue
        lines = re.split(r"(?<!\\)\n", block.text)
        if block.language == "console":
            lines = [command for command, _ in split_console(block.text)]
        for line in lines:
            try:
                words = shlex.split(line, comments=True)
            except ValueError:
                # A quoted text of several lines.
                continue
            for place, word in enumerate(words):
                if word == "peftkit" and (place == 0 or words[place - 1] in SEPARATORS or "=" in words[place - 1]):
                    rest = words[place:]
                    end = next((index for index, other in enumerate(rest) if other in SEPARATORS), len(rest))
                    yield block.line, rest[:end]


def find_problem(words: list[str], known_fields: set[str]) -> str | None:
    """Find an argument of a `peftkit` command that its parser does not accept."""
    if "--help" in words or "--version" in words or "--plugin" in words:
        return None
    try:
        parsed, rest = build_parser().parse_known_args(words[1:])
    except UserError as error:
        return str(error)
    if rest and not parsed.takes_fields:
        return f"unknown argument '{rest[0]}'"
    for word in rest:
        name = word.split("=")[0]
        if name.startswith("--") and name not in OPTIONS_OF_RECIPES and name not in known_fields:
            if not re.match(r"--(training|task\.generation|data\.data_files|method\.quantization)\..+\.?", name):
                return f"unknown field '{name}'"
            if name.startswith("--training.") and ".".join(name.split(".")[:2]) not in known_fields:
                return f"unknown field '{name}'"
    return None
