"""Write a starter recipe for your data."""

import argparse
import difflib
from pathlib import Path
from typing import TYPE_CHECKING

from peftkit.errors import UserError

if TYPE_CHECKING:
    from peftkit.data.detection import DetectedTask
    from peftkit.data.first_rows import FirstRows

COLUMNS = ("text", "text_pair", "label", "tokens", "tags", "source", "target")
SUFFIXES = (".yaml", ".yml", ".py")
EPOCHS = 3
# Rows that are read; more of them only where these do not show the columns.
ROWS = (1_000, 50_000)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the arguments."""
    parser.add_argument(
        "name", nargs="?", type=Path, default=Path("recipe.yaml"), metavar="NAME",
        help="file to write, NAME.yaml or NAME.py (default: recipe.yaml)",
    )  # fmt: skip
    parser.add_argument("--data", default="demo", help="data file, folder, Hub dataset, or demo data (default: demo)")
    parser.add_argument(
        "--task", metavar="NAME",
        help="SequenceClassification, MultiLabelClassification, SequenceRegression, TokenClassification or Seq2Seq "
        "(default: detected from the data)",
    )  # fmt: skip
    parser.add_argument("--model", help="Hub id or local folder (default: demo, or demo-seq2seq for Seq2Seq)")
    parser.add_argument(
        "--method", default="lora", help="full, lora, qlora, or any method of peft by its name (default: lora)"
    )
    for column in COLUMNS:
        parser.add_argument(
            f"--{column}", metavar="COLUMN", help=f"column of task.{column} (default: detected from the data)"
        )
    parser.add_argument(
        "--label_names", metavar="A,B", help="label names in the order of their numbers, separated by commas"
    )
    parser.add_argument("--force", action="store_true", help="overwrite an existing file")


def run(arguments: argparse.Namespace) -> None:
    """Run `peftkit init`. Raises UserError."""
    path: Path = arguments.name
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path}: unknown file type '{path.suffix}' (expected .yaml or .py); use another NAME")
    if path.is_dir() or (path.exists() and not arguments.force):
        raise UserError(f"{path}: already exists; use another NAME or pass --force")

    from peftkit.recipe.method import Method, find_method, get_default_learning_rate
    from peftkit.recipe.schema import DataConfig, ModelConfig, Recipe, check_name
    from peftkit.recipe.starter import format_python, format_yaml, make_printable
    from peftkit.system.files import redact_home, write_text
    from peftkit.system.logging import logger

    check_name(path.stem)
    method = find_method(arguments.method, Method(name="full"), option="--method")
    task = _find_task(arguments.task)
    first, detected = _detect(arguments, task)
    kind = type(detected.task).__name__
    is_generation = kind == "Seq2Seq"
    recipe = Recipe(
        name=path.stem,
        model=ModelConfig(name_or_path=arguments.model or ("demo-seq2seq" if is_generation else "demo")),
        data=DataConfig(path=redact_home(arguments.data), train_split=first.train_split),
        task=detected.task,
        method=method,
        training={
            "num_train_epochs": EPOCHS, "learning_rate": get_default_learning_rate(method),
            "per_device_train_batch_size": 16, "per_device_eval_batch_size": 64, "seed": 1,
        },
    )  # fmt: skip
    rows = f"the {len(first.rows):,} rows" if first.is_whole else f"the first {len(first.rows):,} rows"
    notes = [
        f"Task and columns were {'read' if task else 'detected'} from {rows} of {arguments.data}.",
        f"peftkit check {path}    checks the data of this recipe",
        f"peftkit train {path}    trains a model by this recipe",
        f"peftkit compare {path}  compares full, LoRA and QLoRA",
    ]
    comments = {f"task.{name}": text for name, text in detected.comments.items()} | {
        "model.name_or_path": "a Hub id or a local folder",
        "data.path": _describe_splits(first),
        "training.per_device_train_batch_size": "a smaller batch needs less memory",
    }
    format_recipe = format_python if path.suffix == ".py" else format_yaml
    write_text(path, format_recipe(recipe, detected.fields, comments, notes))
    logger.info("Saved a starter recipe to %s", path)
    print(f"task    {kind}, from {rows} of {make_printable(arguments.data)}")
    for name, text in detected.comments.items():
        if name in detected.fields:
            print(f"        {name}: {make_printable(f'{detected.fields[name]}  ({text})')}")
    print(f"check   peftkit check {path}\ntrain   peftkit train {path}")


def _find_task(name: str | None) -> type | None:
    """Return the class of a task's name. Raises UserError."""
    from peftkit.data.detection import TASKS

    if name is None:
        return None
    for task in TASKS:
        if task.__name__ == name:
            return task
    known = [task.__name__ for task in TASKS]
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"use '{near[0]}'" if near else f"use one of {', '.join(known)}"
    raise UserError(f"--task: unknown task '{name}'; {hint}")


def _detect(arguments: argparse.Namespace, task: type | None) -> tuple["FirstRows", "DetectedTask"]:
    """Read the first rows and detect the task; read more rows where the first ones do not show it."""
    from peftkit.data.columns import profile_columns
    from peftkit.data.detection import detect_task
    from peftkit.data.first_rows import read_first_rows

    given = {name: value for name in COLUMNS if (value := getattr(arguments, name)) is not None}
    label_names = [name.strip() for name in (arguments.label_names or "").split(",") if name.strip()]
    for limit in ROWS:
        first = read_first_rows(arguments.data, limit)
        profiles = profile_columns(first.rows, first.label_names)
        try:
            return first, detect_task(profiles, arguments.data, task=task, given=given, label_names=label_names)
        except UserError:
            if first.is_whole or limit == ROWS[-1]:
                raise
    raise AssertionError("unreachable")


def _describe_splits(first: "FirstRows") -> str:
    """Describe which splits the data has."""
    missing = [split for split in ("validation", "test") if split not in first.splits]
    if not missing:
        return f"splits: {', '.join(first.splits)}"
    held_out = f"{' and '.join(missing)} rows are held out from {first.train_split}"
    others = [split for split in first.splits if split != first.train_split]
    return held_out + (f"; data.{missing[0]}_split names another of {', '.join(others)}" if others else "")
