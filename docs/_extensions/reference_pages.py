"""Sphinx extension: replace `<!-- generated: NAME -->` in a page by Markdown that a function makes from the code."""

import argparse
import dataclasses
import inspect
import math
import re
from collections.abc import Callable, Iterable, Sequence
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from sphinx.application import Sphinx

MARKER = re.compile(r"^<!-- generated: (\w+) -->$", re.MULTILINE)


def format_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Format a Markdown table; a cell is Markdown in one line."""
    lines = [head, ["---"] * len(head), *rows]
    cells = [[" ".join(cell.split()).replace("|", "\\|") for cell in line] for line in lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in cells)


def format_code(value: Any) -> str:
    """Format a value as code; empty for an empty text."""
    return f"`{value}`" if str(value) else ""


def format_text(text: str) -> str:
    """Format the text of a help line or a docstring: placeholders in angle brackets are no HTML."""
    return text.replace("%%", "%").replace("<", "&lt;").replace("*", "\\*")


def format_default(value: Any) -> str:
    """Format a default as in YAML."""
    if value is None or isinstance(value, bool):
        return format_code({None: "null", True: "true", False: "false"}[value])
    if dataclasses.is_dataclass(value):
        return format_code(type(value).__name__)
    return format_code(repr(value) if isinstance(value, list | dict) or value == "" else value)


def name_type(kind: Any) -> str:
    """Return the name of a type without its modules."""
    if get_origin(kind) in (Union, UnionType):
        return " | ".join(name_type(one) for one in get_args(kind))
    if get_origin(kind) is Literal:
        return " | ".join(map(repr, get_args(kind)))
    name = "None" if kind is NoneType else kind.__name__ if isinstance(kind, type) else str(kind)
    return re.sub(r"\b\w+\.(?=\w)", "", name)


def format_type(kind: Any) -> str:
    """Format a type as code."""
    return format_code(name_type(kind))


def lower_first(text: str) -> str:
    """Return the text with a small first letter."""
    return text[:1].lower() + text[1:]


# Commands.


def list_options(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """List the arguments of a parser, without help."""
    return [action for action in parser._actions if "--help" not in action.option_strings]


def get_commands() -> dict[str, argparse.ArgumentParser]:
    """Return the parser of each command."""
    from peftkit.cli.main import build_parser

    (commands,) = (action for action in build_parser()._actions if isinstance(action, argparse._SubParsersAction))
    return dict(commands.choices)


def split_default(action: argparse.Action) -> tuple[str, str]:
    """Split the help of an option into its text and its default, which the help has as `(default: X)`."""
    described = re.search(r" \(default: ([^()]+)\)", action.help or "")
    text = (action.help or "").replace(described.group() if described else "", "")
    if action.default in (None, False, "", argparse.SUPPRESS) or action.default == []:
        return text, format_text(described.group(1) if described else "")
    return text, format_code(action.default)


def format_options(actions: Iterable[argparse.Action]) -> str:
    """Format arguments and options as a table."""
    rows = []
    for action in actions:
        metavar = action.metavar or (f"{{{','.join(map(str, action.choices))}}}" if action.choices else "")
        if not action.option_strings:
            name = format_code(metavar or action.dest.upper())
        else:
            value = "" if action.nargs == 0 else f" {metavar or action.dest.upper()}"
            value = f" [{value.strip()}]" if action.nargs == "?" else value
            name = ", ".join(format_code(f"{option}{value}") for option in action.option_strings)
        text, default = split_default(action)
        rows.append((name, format_text(text), default))
    return format_table(("argument", "description", "default"), rows)


def render_commands() -> str:
    """Render every command with its arguments and options."""
    from peftkit.cli.recipe_arguments import add_recipe_options

    commands = get_commands()
    shared = {"--debug", "--plugin"}
    parts = [
        "## All commands\n\n"
        + format_table(
            ("command", "task"),
            [
                (f"[`{name}`](#peftkit-{name})", lower_first((parser.description or "").splitlines()[0].rstrip(".")))
                for name, parser in commands.items()
            ],
        )
        + "\nEvery command has these options:\n\n"
        + format_options(
            action for action in list_options(commands["train"]) if shared & set(action.option_strings)
        )
    ]  # fmt: skip
    for name, parser in commands.items():
        actions = [action for action in list_options(parser) if not shared & set(action.option_strings)]
        fields = ""
        if parser.get_default("takes_fields"):
            more = argparse.ArgumentParser(add_help=False)
            add_recipe_options(more, training=name == "train")
            known = {*shared, *(option for action in actions for option in action.option_strings)}
            actions += [action for action in more._actions if not known & set(action.option_strings)]
            fields = (
                "\nEvery [field of the recipe](recipe_fields.md) is an option too: `--FIELD VALUE`, such as "
                "`--training.max_steps 100`.\n"
            )
        usage = " ".join(parser.format_usage().removeprefix("usage: ").split())
        parts.append(
            f"## peftkit {name}\n\n{format_text(inspect.cleandoc(parser.description or ''))}\n\n"
            f"```text\n{usage}\n```\n\n{format_options(actions)}{fields}"
        )
    return "\n".join(parts)


# Fields.


def format_fields(kind: Any, prefix: str = "", *, types: bool = True) -> str:
    """Format the fields of a data class as a table; descriptions come from its docstring."""
    from peftkit.recipe.messages import read_field_help
    from peftkit.recipe.serialization import get_default

    help_texts: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if dataclasses.is_dataclass(base):
            help_texts |= read_field_help(base)
    hints, rows = get_type_hints(kind), []
    for field in dataclasses.fields(kind):
        row = (format_code(prefix + field.name), format_type(hints[field.name]))
        row += (format_default(get_default(field)),) if types else ()
        rows.append((*row, format_text(help_texts.get(field.name, ""))))
    head = ("field", "type", "default", "description") if types else ("field", "type", "description")
    return format_table(head, rows)


def get_summary(kind: Any) -> str:
    """Return the docstring of a class up to its fields."""
    return format_text(re.split(r"\n\s*(?:Args|Attributes):\n", inspect.cleandoc(kind.__doc__ or ""))[0])


def render_recipe_fields() -> str:
    """Render every field of a recipe."""
    from peftkit.recipe.method import Method, Quantization
    from peftkit.recipe.schema import DataConfig, ModelConfig, Recipe
    from peftkit.tasks.registry import TASKS

    built_in = [task for task in TASKS if task.__module__.startswith("peftkit.")]
    sections = [
        ("The recipe", Recipe, ""), ("model", ModelConfig, "model."), ("data", DataConfig, "data."),
        ("method", Method, "method."), ("method.quantization", Quantization, "method.quantization."),
        *((f"task: {task.__name__}", task, "task.") for task in built_in),
    ]  # fmt: skip
    return "\n".join(f"## {title}\n\n{get_summary(kind)}\n\n{format_fields(kind, at)}" for title, kind, at in sections)


def render_training_defaults() -> str:
    """Render the training arguments whose default peftkit changes."""
    from transformers import TrainingArguments

    from peftkit.recipe.serialization import get_default
    from peftkit.training.arguments import DEFAULTS

    own = {field.name: get_default(field) for field in dataclasses.fields(TrainingArguments)}
    rows = [(format_code(f"training.{name}"), format_default(value), format_default(own[name]))
            for name, value in DEFAULTS.items()]  # fmt: skip
    return format_table(("field", "default in peftkit", "default in transformers"), rows)


def render_training_needed() -> str:
    """Render the training arguments that accept one value only."""
    from peftkit.training.arguments import REQUIRED_FOR_EVALUATION

    rows = [(format_code(f"training.{name}"), format_default(value)) for name, value in REQUIRED_FOR_EVALUATION.items()]
    return format_table(("field", "only accepted value"), rows)


def render_report() -> str:
    """Render the fields of report.json."""
    from peftkit.runs.report import Report

    return format_fields(Report, types=False)


def render_round_trip() -> str:
    """Render the fields of `round_trip` in report.json."""
    from peftkit.runs.verification import Difference

    return format_fields(Difference, types=False)


def render_receipt() -> str:
    """Render the fields of receipt.json."""
    from peftkit.export.receipt import Receipt

    return format_fields(Receipt, types=False)


def render_checkpoint() -> str:
    """Render the fields of checkpoint.json."""
    from peftkit.checkpoints.manifest import CheckpointManifest

    return format_fields(CheckpointManifest, types=False)


def render_checkpoint_identity() -> str:
    """Render the training arguments that a resumed run must not change."""
    from peftkit.checkpoints.manifest import IDENTITY_OPTIONS

    return ", ".join(format_code(name) for name in IDENTITY_OPTIONS) + "\n"


def render_metrics() -> str:
    """Render the metrics of every task."""
    from peftkit.tasks.registry import TASKS

    parts = []
    for task in TASKS:
        if not task.__module__.startswith("peftkit."):
            continue
        found = task().metrics
        rows = []
        for metric in found.metrics:
            low, high = ("∞" if math.isinf(end) else f"{end:g}" for end in metric.bounds)
            is_shown = metric.name in found.main
            has_interval = is_shown and (metric.name == found.main[0] or metric.statistic or metric.interval)
            marks = ("yes" if is_shown else "", "yes" if has_interval else "")
            rows.append((format_code(metric.name), metric.description, f"{low} to {high}", metric.direction, *marks))
        table = format_table(("metric", "definition", "range", "better", "in tables", "interval"), rows)
        parts.append(f"## {task.__name__}\n\nThe main metric is `{found.main[0]}`.\n\n{table}")
    return "\n".join(parts)


RENDERERS: dict[str, Callable[[], str]] = {
    name.removeprefix("render_"): function for name, function in list(globals().items()) if name.startswith("render_")
}


def replace_markers(text: str) -> str:
    """Replace the markers of a page by generated Markdown."""
    return MARKER.sub(lambda match: RENDERERS[match.group(1)](), text)


def read_page(app: Sphinx, page: str, source: list[str]) -> None:
    """Replace the markers of a page before Sphinx parses it; such a page is read again in every build."""
    if MARKER.search(source[0]):
        source[0] = replace_markers(source[0])
        app.env.note_reread()


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the extension."""
    app.connect("source-read", read_page)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
