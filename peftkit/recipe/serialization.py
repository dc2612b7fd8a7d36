"""Recipes and their values as plain data for YAML and JSON."""

import dataclasses
import enum
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace

from peftkit.recipe.schema import Recipe
from peftkit.system.files import redact_home, redact_password

# Set by `peft` or by the run; not part of a recipe.
NOT_IN_A_RECIPE = {"peft_type", "peft_version", "task_type", "auto_mapping", "inference_mode"}


def to_plain(value: Any) -> Any:
    """Convert to plain data: enumerations to values, sets to sorted lists, data classes to mappings."""
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, Namespace):
        return to_plain(value.as_dict())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return list_differences(value)
    if isinstance(value, set | frozenset):
        return sorted(value)
    if isinstance(value, Mapping):
        return {key: to_plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(inner) for inner in value]
    if isinstance(value, Path):
        return str(value)
    return value


def get_default(f: dataclasses.Field) -> Any:
    """Return the default of a field; None for a field without a default."""
    if f.default_factory is not dataclasses.MISSING:
        return f.default_factory()
    return None if f.default is dataclasses.MISSING else f.default


def list_differences(value: Any) -> dict[str, Any]:
    """Return the fields of a data class that differ from their defaults, as plain data."""
    found = {}
    for f in dataclasses.fields(value):
        plain = to_plain(getattr(value, f.name))
        if f.init and f.name not in NOT_IN_A_RECIPE and plain != to_plain(get_default(f)):
            found[f.name] = plain
    return found


def to_class_dict(value: Any) -> dict[str, Any]:
    """Convert a data class to `class_path` and `init_args`, with the shortest public path."""
    kind = type(value)
    package = kind.__module__.split(".")[0]
    short = package == "peft" and hasattr(importlib.import_module("peft"), kind.__qualname__)
    module = "peft" if short else "peftkit.tasks" if package == "peftkit" else kind.__module__
    plain: dict[str, Any] = {"class_path": f"{module}.{kind.__qualname__}"}
    if different := list_differences(value):
        plain["init_args"] = different
    return plain


def to_full_class_dict(value: Any) -> dict[str, Any]:
    """Convert like `to_class_dict`, but with every field, so that new defaults do not change saved values."""
    fields = {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value) if f.init}
    return {"class_path": to_class_dict(value)["class_path"], "init_args": fields}


def redact_home_in_value(value: Any) -> Any:
    """Replace the home folder by `~` in every path of the value."""
    if isinstance(value, str):
        return redact_home(value)
    if isinstance(value, Mapping):
        return {key: redact_home_in_value(inner) for key, inner in value.items()}
    return value


def list_dotted_paths(plain: Mapping[str, Any], above: str = "") -> list[str]:
    """List the dotted name of every value in nested mappings."""
    paths = []
    for name, value in plain.items():
        path = f"{above}{name}"
        paths += list_dotted_paths(value, f"{path}.") if isinstance(value, Mapping) and value else [path]
    return paths


def recipe_to_dict(recipe: Recipe) -> dict[str, Any]:
    """Return the recipe as plain data: fields that differ from the defaults, with `~` for the home folder."""
    plain: dict[str, Any] = {"name": recipe.name}
    for part in ("model", "data"):
        plain[part] = {
            name: redact_home_in_value(value) for name, value in list_differences(getattr(recipe, part)).items()
        }
    plain["model"] |= {"name_or_path": _make_absolute(recipe.model.name_or_path)}
    plain["data"] |= {"path": redact_password(_make_absolute(recipe.data.path))}
    plain["task"] = to_class_dict(recipe.task)
    method: dict[str, Any] = {"name": recipe.method.name}
    if recipe.method.peft is not None:
        method["peft"] = to_class_dict(recipe.method.peft)
    if recipe.method.quantization is not None:
        method["quantization"] = dataclasses.asdict(recipe.method.quantization)
    plain["method"] = method
    # Access tokens are not saved.
    training = {name: value for name, value in recipe.training.items() if not name.endswith("_token")}
    plain["training"] = {name: redact_home_in_value(to_plain(value)) for name, value in training.items()}
    return plain


def recipe_to_yaml(recipe: Recipe) -> str:
    """Return the recipe as YAML for `read_recipe`."""
    return yaml.safe_dump(recipe_to_dict(recipe), sort_keys=False, allow_unicode=True)


def _make_absolute(name: str) -> str:
    """Return a local path as an absolute path, any other name unchanged; a run folder is then relocatable."""
    path = Path(name).expanduser()
    return redact_home(path.resolve() if not name.startswith("demo") and path.exists() else name)
