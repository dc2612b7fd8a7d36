"""Read recipes from the command line, YAML and Python files with jsonargparse."""

import dataclasses
import importlib
import runpy
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonargparse
import yaml
from jsonargparse import ArgumentParser, Namespace
from peft import PeftConfig
from transformers import TrainingArguments

from peftkit.errors import UserError
from peftkit.recipe.messages import format_fields_help, read_field_help, shorten_parser_error, suggest_nearest
from peftkit.recipe.method import Method, Quantization
from peftkit.recipe.schema import DataConfig, ModelConfig, Recipe, check_name
from peftkit.recipe.serialization import (
    get_default,
    list_differences,
    list_dotted_paths,
    recipe_to_dict,
    to_plain,
)
from peftkit.system.logging import logger
from peftkit.system.shipped_files import find_shipped_recipe_file
from peftkit.tasks import TASKS, Task, get_task_path

TRUST = "--model.trust_remote_code"


class RecipeParser(ArgumentParser):
    """A jsonargparse parser with one-line errors and help on the fields of method and task."""

    method_help = ""

    def error(self, message: str, ex: Exception | None = None) -> Any:
        """Raise UserError instead of printing the usage; parsers of nested classes behave as in jsonargparse."""
        if not self.exit_on_error:
            return super().error(message, ex)
        raise UserError(shorten_parser_error(message, _list_field_names(self)))

    def format_help(self, formatter: Any = None) -> str:
        """Return the help of jsonargparse, then the fields of the recipe's `peft` config and task."""
        return super().format_help(formatter) + self.method_help


def build_parser(base: Recipe, prog: str) -> RecipeParser:
    """Build a parser of every field of a recipe, with the values of `base` as defaults."""
    # Set for every parser, because a task can be registered at any time.
    jsonargparse.set_parsing_settings(subclasses_enabled=[PeftConfig, *TASKS])
    parser = RecipeParser(
        prog=prog,
        usage=f"{prog} [--FIELD VALUE ...]",
        description="Train a model from this recipe. Set any field by its dotted name.",
        allow_abbrev=False,
    )
    parser.add_argument("--name", type=str, default=base.name, help="name of the run folder and of the run in tables")
    parser.add_class_arguments(ModelConfig, "model", instantiate=False)
    parser.add_class_arguments(DataConfig, "data", instantiate=False)
    parser.add_argument("--task", type=Task, help="the task; a data class of peftkit.tasks")
    parser.add_class_arguments(Method, "method", instantiate=False)
    parser.add_class_arguments(TrainingArguments, "training", instantiate=False, fail_untyped=False)
    known = read_field_help(TrainingArguments)
    for action in parser._actions:
        if action.dest.startswith("training."):
            action.help = known.get(action.dest.removeprefix("training."), "an argument of the Trainer")
    parser.set_defaults(_flatten_defaults(base))
    if "peft" in (plain := recipe_to_dict(base)["method"]):
        parser.method_help += format_fields_help(
            type(base.method.peft), "method.peft", plain["peft"].get("init_args", {})
        )
    if base.method.quantization is not None:
        parser.method_help += format_fields_help(
            Quantization, "method.quantization", list_differences(base.method.quantization)
        )
    parser.method_help += format_fields_help(type(base.task), "task", list_differences(base.task))
    return parser


def parse_recipe(arguments: Sequence[str], base: Recipe, prog: str = "recipe") -> Recipe:
    """Return the recipe `base` with the fields of the arguments. Raises UserError with the nearest field."""
    return parse_fields(arguments, base, prog)[0]


def parse_fields(
    arguments: Sequence[str], base: Recipe, prog: str, add_options: Callable[[RecipeParser], None] = lambda parser: None
) -> tuple[Recipe, Namespace]:
    """Return the recipe `base` with the fields of the arguments, and the options of `add_options`.

    Raises UserError with the nearest field.
    """
    # The values of a Python recipe are not checked before.
    dict_to_recipe(recipe_to_dict(base))
    parser = build_parser(base, prog)
    add_options(parser)
    arguments = _complete_task_arguments(arguments)
    if task := next((value for value in map(_find_task, arguments, ["", *arguments]) if value), None):
        _set_default_task(parser, task, list_differences(base.task))
    given = {argument.removeprefix("--").split("=")[0] for argument in arguments if argument.startswith("--")}
    named = {name.split(".")[1]: None for name in sorted(given) if name.startswith("training.")}
    # A value from the command line stays in the recipe even if it equals the library's default.
    parsed = parser.parse_args(list(arguments))
    recipe = _to_recipe(parsed, replace(base, training={**base.training, **named}))
    if "method.name" not in given and base.method.name == base.method.kind:
        recipe = replace(recipe, method=replace(recipe.method, name=""))
    check_name(recipe.name)
    return recipe, parsed


def read_recipe(path: str | Path) -> Recipe:
    """Read a recipe from a YAML file, or from a Python file that defines `recipe`. Raises UserError.

    A missing file `recipes/NAME` is read from the recipes of the package.
    """
    path = Path(path)
    if shipped := find_shipped_recipe_file(path):
        logger.info("%s: not in the current folder, using the recipe of the package", path)
        path = shipped
    if not path.is_file():
        raise UserError(f"{path}: no such recipe file; pass a .yaml or a .py file")
    if path.suffix == ".py":
        try:
            found = runpy.run_path(str(path), run_name="peftkit_recipe").get("recipe")
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
        except (Exception, SystemExit) as error:
            raise UserError(f"{path}: {type(error).__name__}: {' '.join(str(error).split())}") from error
        if not isinstance(found, Recipe):
            raise UserError(f"{path}: no recipe found; define `recipe = Recipe(...)`")
        return found
    if path.suffix not in (".yaml", ".yml"):
        raise UserError(f"{path}: not a recipe file; pass a .yaml or a .py file")
    try:
        plain = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise UserError(f"{path}: invalid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(plain, dict):
        raise UserError(
            f"{path}: not a recipe (expected a mapping of name, model, data, task, method and training, got "
            f"{type(plain).__name__})"
        )
    try:
        return dict_to_recipe(plain)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def read_command_recipe(path: str | Path, arguments: Sequence[str]) -> Recipe:
    """Read the recipe of a command line with the remaining `arguments`.

    Raises UserError if a YAML file sets `model.trust_remote_code`: only the command line and Python may set it.
    """
    recipe = read_recipe(path)
    if not recipe.model.trust_remote_code or Path(path).suffix == ".py":
        return recipe
    if not any(argument.split("=")[0] == TRUST for argument in arguments):
        raise UserError(
            f"{path}: model.trust_remote_code is not accepted from a file; pass {TRUST} true to run the model's code"
        )
    return replace(recipe, model=replace(recipe.model, trust_remote_code=False))


def dict_to_recipe(plain: Mapping[str, Any]) -> Recipe:
    """Build the recipe from plain data of YAML or `recipe_to_dict`. Raises UserError."""
    training = plain.get("training") or {}
    base = Recipe(training=dict.fromkeys(training) if isinstance(training, Mapping) else {})
    parser = build_parser(Recipe(), "recipe")
    names = _list_field_names(parser)
    # The parser reports only the outermost unknown part; it checks the fields of classes and mappings.
    inside: tuple[str, ...] = ("task.", "method.peft.", "method.quantization.", "data.data_files.")
    inside += tuple(f"{name}." for name in names if name.startswith("training."))
    for path in list_dotted_paths(plain):
        if path not in names and not path.startswith(inside):
            raise UserError(f"unknown field '{path}'{suggest_nearest(path, names)}")
    _check_class_paths(plain)
    plain = dict(plain)
    if isinstance(task := plain.get("task"), Mapping) and isinstance(name := task.get("class_path"), str):
        plain["task"] = {**task, "class_path": _complete_task(name)}
    elif isinstance(task, str):
        plain["task"] = _complete_task(task)
    if task := plain.get("task"):
        _set_default_task(parser, task.get("class_path") if isinstance(task, Mapping) else task, {})
    try:
        config = parser.parse_object(plain, defaults=True)
    except (TypeError, ValueError, KeyError) as error:
        raise UserError(shorten_parser_error(str(error), names)) from None
    return _to_recipe(config, base)


def _find_task(argument: str, previous: str) -> str:
    """Return NAME for the argument `--task=NAME`, or for NAME after `--task`; empty for other arguments."""
    return argument if previous == "--task" else argument.removeprefix("--task=") * argument.startswith("--task=")


def _set_default_task(parser: ArgumentParser, path: Any, fields: Mapping[str, Any]) -> None:
    """Make the class of a path the default task, so that jsonargparse uses no values of another task."""
    module, _, name = path.rpartition(".") if isinstance(path, str) else ("", "", "")
    task: Any = getattr(sys.modules.get(module), name, None)
    if task in TASKS:
        known = {f.name for f in dataclasses.fields(task)}
        values = {name: value for name, value in fields.items() if name in known}
        parser.set_defaults({"task": {"class_path": path, "init_args": values}})


def _check_class_paths(plain: Any, field: str = "") -> None:
    """Raise UserError for a class of a module that the parser would import."""
    if isinstance(plain, Mapping):
        for name, value in plain.items():
            _check_class_paths(value, field if name == "class_path" else f"{field}.{name}".removeprefix("."))
            # The parser also accepts a string as a class.
            is_class = name == "class_path" or f"{field}.{name}" in (".task", "method.peft")
            module = value.rpartition(".")[0] if is_class and isinstance(value, str) else ""
            if module and module.split(".")[0] not in ("peft", "peftkit") and module not in sys.modules:
                raise UserError(
                    f"{field or name}: '{value}' is not a class of peft or peftkit; pass the --plugin that defines it"
                )


def _complete_task(name: str) -> str:
    """Return `peftkit.tasks.NAME` for the short NAME of a task, else the name. Raises UserError."""
    names = {task.__name__: get_task_path(task) for task in TASKS}
    if "." not in name and name not in names:
        raise UserError(
            f"task: '{name}' is not a task (expected one of {', '.join(names)}){suggest_nearest(name, list(names))}"
        )
    return names.get(name, name)


def _complete_task_arguments(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with the full path of the task in `--task NAME` and `--task=NAME`."""
    full, follows = [], False
    for argument in arguments:
        if argument.startswith("--task="):
            argument = f"--task={_complete_task(argument.removeprefix('--task='))}"
        full.append(_complete_task(argument) if follows else argument)
        follows = argument == "--task"
    return full


def _to_recipe(config: Namespace, base: Recipe) -> Recipe:
    defaults = {f.name: get_default(f) for f in dataclasses.fields(TrainingArguments) if f.init}
    given = {name: to_plain(value) for name, value in config.training.as_dict().items()}
    training = {name: given[name] for name in base.training if name in given}
    training |= {name: value for name, value in given.items() if value != to_plain(defaults.get(name))}
    method = config.method
    return Recipe(
        name=config.name,
        model=ModelConfig(**config.model.as_dict()),
        data=DataConfig(**config.data.as_dict()),
        task=_create_instance(config.task, "task"),
        method=Method(
            name=method.name,
            peft=None if method.peft is None else _create_instance(method.peft, "method.peft"),
            quantization=None if method.quantization is None else Quantization(**method.quantization.as_dict()),
        ),
        training=training,
    )


def _create_instance(config: Namespace, where: str) -> Any:
    """Create an instance of `class_path` with the arguments that differ from the defaults."""
    module, _, name = config.class_path.rpartition(".")
    kind = getattr(importlib.import_module(module), name)
    # The parser's defaults may differ from the defaults of the class.
    bare = ArgumentParser()
    bare.add_argument("--value", type=kind)
    defaults = bare.parse_object({"value": {"class_path": config.class_path}}).value.get("init_args") or Namespace()
    given = config.get("init_args") or Namespace()
    arguments = {key: value for key, value in given.as_dict().items() if to_plain(value) != to_plain(defaults.get(key))}
    try:
        return kind(**arguments)
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: {name}: {' '.join(str(error).split())}") from None


def _flatten_defaults(recipe: Recipe) -> dict[str, Any]:
    """Return the values of the recipe by dotted name; task, peft config, quantization are one value each."""
    plain = recipe_to_dict(recipe)
    flat: dict[str, Any] = {"name": recipe.name, "task": plain["task"]}
    for part in ("model", "data"):
        flat |= {f"{part}.{name}": value for name, value in dataclasses.asdict(getattr(recipe, part)).items()}
    flat["method.name"] = recipe.method.name
    flat["method.peft"] = plain["method"].get("peft")
    flat["method.quantization"] = plain["method"].get("quantization")
    flat |= {f"training.{name}": value for name, value in recipe.training.items() if value is not None}
    return flat


def _list_field_names(parser: ArgumentParser) -> list[str]:
    """List every dotted name of the parser, including fields of task, peft config and quantization."""
    names = [action.dest for action in parser._actions if action.dest not in ("help", "print_shtab")]
    defaults = parser.get_defaults()
    for part, config in (("task", defaults.get("task")), ("method.peft", defaults.get("method.peft"))):
        if isinstance(config, Namespace) and "init_args" in config:
            names += [f"{part}.{name}" for name in config.init_args.as_dict()]
    return names + [f"method.quantization.{f.name}" for f in dataclasses.fields(Quantization)]
