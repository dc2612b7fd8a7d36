"""Values as plain data: what YAML and JSON hold, and only what differs from the defaults."""

import dataclasses
import enum
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from peftkit.system.files import redact_home

# Set by `peft` itself or by the run, so never part of a recipe.
NOT_IN_A_RECIPE = {"peft_type", "peft_version", "task_type", "auto_mapping", "inference_mode"}


def as_plain(value: Any) -> Any:
    """Enumerations by their value, sets sorted, data classes and namespaces as mappings: what YAML and JSON hold."""
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, Namespace):
        return as_plain(value.as_dict())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return differences(value)
    if isinstance(value, set | frozenset):
        return sorted(value)
    if isinstance(value, Mapping):
        return {key: as_plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [as_plain(inner) for inner in value]
    if isinstance(value, Path):
        return str(value)
    return value


def default_of(f: dataclasses.Field) -> Any:
    """A field's default value; None for one that has none."""
    if f.default_factory is not dataclasses.MISSING:
        return f.default_factory()
    return None if f.default is dataclasses.MISSING else f.default


def differences(value: Any) -> dict[str, Any]:
    """The fields of a data class that differ from their defaults, as plain data."""
    found = {}
    for f in dataclasses.fields(value):
        plain = as_plain(getattr(value, f.name))
        if f.init and f.name not in NOT_IN_A_RECIPE and plain != as_plain(default_of(f)):
            found[f.name] = plain
    return found


def as_class(value: Any) -> dict[str, Any]:
    """A data class as `class_path` and `init_args`, by the shortest path that a user would write."""
    kind = type(value)
    package = kind.__module__.split(".")[0]
    short = package == "peft" and hasattr(importlib.import_module("peft"), kind.__qualname__)
    module = "peft" if short else "peftkit.tasks" if package == "peftkit" else kind.__module__
    plain: dict[str, Any] = {"class_path": f"{module}.{kind.__qualname__}"}
    if different := differences(value):
        plain["init_args"] = different
    return plain


def whole_class(value: Any) -> dict[str, Any]:
    """As `as_class`, but with every field, so that a later default changes nothing of what was saved."""
    fields = {f.name: as_plain(getattr(value, f.name)) for f in dataclasses.fields(value) if f.init}
    return {"class_path": as_class(value)["class_path"], "init_args": fields}


def as_homeless(value: Any) -> Any:
    """The value with the home folder of any path in it written as `~`."""
    if isinstance(value, str):
        return redact_home(value)
    if isinstance(value, Mapping):
        return {key: as_homeless(inner) for key, inner in value.items()}
    return value


def dotted_paths(plain: Mapping[str, Any], above: str = "") -> list[str]:
    """The dotted name of every value in nested mappings."""
    paths = []
    for name, value in plain.items():
        path = f"{above}{name}"
        paths += dotted_paths(value, f"{path}.") if isinstance(value, Mapping) and value else [path]
    return paths
