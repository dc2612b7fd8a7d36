"""Text of a starter recipe, in YAML or Python, with comments on its fields."""

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from peftkit.recipe.method import Method
from peftkit.recipe.schema import Recipe
from peftkit.recipe.serialization import list_differences, to_class_dict


def format_yaml(recipe: Recipe, fields: Mapping[str, Any], comments: Mapping[str, str], notes: Sequence[str]) -> str:
    """Format the recipe in YAML.

    `fields` are those of the task. `comments` are by dotted name, `notes` are lines above the recipe.
    """
    lines = [f"# {make_printable(note)}".rstrip() for note in notes]
    lines += [f"name: {_to_yaml(recipe.name)}", ""]
    parts: dict[str, Any] = {
        "model": {"name_or_path": recipe.model.name_or_path},
        "data": list_differences(recipe.data) | {"path": recipe.data.path},
        "task": {"class_path": type(recipe.task).__name__, "init_args": dict(fields)},
        "method": _list_method(recipe.method),
        "training": dict(recipe.training),
    }
    for part, values in parts.items():
        lines += [f"{part}:", *_format_mapping(values, part, comments, depth=1), ""]
    return "\n".join(lines[:-1]) + "\n"


def format_python(recipe: Recipe, fields: Mapping[str, Any], comments: Mapping[str, str], notes: Sequence[str]) -> str:
    """Format the recipe in Python, as `format_yaml` does in YAML."""
    method, names, config = _format_method(recipe.method)
    task = type(recipe.task).__name__
    imported = sorted(
        {"DataConfig", "ModelConfig", "Recipe", task, "main", *names}, key=lambda name: (name.islower(), name)
    )
    data = list_differences(recipe.data) | {"path": recipe.data.path}
    lines = [f"# {make_printable(note)}".rstrip() for note in notes]
    lines += ["" for _ in lines[:1]]
    lines += [f"from peft import {config}", ""] if config else []
    lines += [f"from peftkit import {', '.join(imported)}", "", "recipe = Recipe("]
    lines += [f"    name={recipe.name!r},"]
    lines += _format_call("model", "ModelConfig", {"name_or_path": recipe.model.name_or_path}, comments)
    lines += _format_call("data", "DataConfig", data, comments)
    lines += _format_call("task", task, fields, comments)
    lines += [f"    method={method},{_format_comment('method', comments)}"]
    lines += _format_call("training", "dict", recipe.training, comments)
    return "\n".join([*lines, ")", "", 'if __name__ == "__main__":', "    main(recipe)"]) + "\n"


def make_printable(text: str) -> str:
    """Return the text as one printable line: a name from data may hold line breaks and control characters."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def _format_mapping(values: Mapping[str, Any], above: str, comments: Mapping[str, str], depth: int) -> list[str]:
    lines = []
    for name, value in values.items():
        path = f"{above}.{name}".replace(".init_args", "")
        comment = _format_comment(path, comments)
        if isinstance(value, Mapping) and value and name in ("init_args", "peft"):
            lines += [f"{'  ' * depth}{name}:{comment}", *_format_mapping(value, path, comments, depth + 1)]
        else:
            lines.append(f"{'  ' * depth}{name}: {_to_yaml(value)}{comment}")
    return lines


def _format_call(name: str, call: str, values: Mapping[str, Any], comments: Mapping[str, str]) -> list[str]:
    fields = [f"        {key}={value!r},{_format_comment(f'{name}.{key}', comments)}" for key, value in values.items()]
    return [f"    {name}={call}(", *fields, "    ),"]


def _format_comment(path: str, comments: Mapping[str, str]) -> str:
    return f"  # {make_printable(comments[path])}" if path in comments else ""


def _list_method(method: Method) -> dict[str, Any]:
    found: dict[str, Any] = {"name": method.name}
    if method.peft is not None:
        found["peft"] = to_class_dict(method.peft)
    if method.quantization is not None:
        found["quantization"] = {"bnb_4bit_quant_type": method.quantization.bnb_4bit_quant_type}
    return found


def _format_method(method: Method) -> tuple[str, list[str], str | None]:
    """Return the method as a Python expression, the names to import from peftkit, and the class from peft."""
    if method.peft is None:
        return "full()", ["full"], None
    plain = to_class_dict(method.peft)
    arguments = ", ".join(f"{name}={value!r}" for name, value in plain.get("init_args", {}).items())
    if method.name in ("lora", "qlora"):
        return f"{method.name}({arguments})", [method.name], None
    config = plain["class_path"].rpartition(".")[2]
    return f"Method(name={method.name!r}, peft={config}({arguments}))", ["Method"], config


def _to_yaml(value: Any) -> str:
    """Return a value on one line of YAML."""
    return yaml.safe_dump([value], default_flow_style=True, width=10**9, allow_unicode=True).strip()[1:-1]
