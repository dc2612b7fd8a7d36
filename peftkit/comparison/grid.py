"""Rows of a comparison: one recipe per combination of the compared values."""

import hashlib
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from peftkit.comparison.options import METHOD, check_learning_rates
from peftkit.errors import UserError
from peftkit.recipe.method import find_method, get_default_learning_rate
from peftkit.recipe.parser import parse_recipe, read_recipe
from peftkit.recipe.schema import Recipe
from peftkit.system.files import redact_home

# Training arguments that a method from a recipe file also sets.
METHOD_ARGUMENTS = ("learning_rate", "optim", "optim_args")
MAX_FOLDER_NAME_BYTES = 120


@dataclass(frozen=True, kw_only=True)
class ComparisonRow:
    """One row of a comparison.

    Attributes:
        name: Name of the row in tables.
        recipe: Recipe with the default learning rate of the row and without an output folder.
        values: Compared values by field.
    """

    name: str
    recipe: Recipe
    values: Mapping[str, str] = field(default_factory=dict)

    @property
    def folder(self) -> str:
        """Folder name of the row."""
        return make_folder_name(self.name)


def make_folder_name(name: str) -> str:
    """Convert a row name to a folder name; shorten a long name and append a digest."""
    plain = re.sub(r"[^\w.=-]+", "-", name).strip("-.") or "row"
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    is_short = len(plain.encode()) <= MAX_FOLDER_NAME_BYTES
    return plain if is_short else f"{plain[: MAX_FOLDER_NAME_BYTES // 4]}-{digest}"


def make_rows(
    recipe: Recipe, over: Mapping[str, Sequence[str]], learning_rates: Mapping[str, float] | None = None
) -> list[ComparisonRow]:
    """Make one row per combination of the values in `over`; the learning rate also depends on the method.

    A value of `method` is the name of a method, or a recipe file that provides method, learning rate and optimizer.
    Raises UserError.
    """
    rates = dict(learning_rates or {})
    check_learning_rates(rates)
    fields = [name for name in over if name != METHOD]
    rows: list[ComparisonRow] = []
    for method in over.get(METHOD, [recipe.method.name]):
        base, name = _set_method(recipe, method, rates)
        for combination in itertools.product(*(over[key] for key in fields)):
            values = dict(zip(fields, combination, strict=True))
            parts = [name] if METHOD in over or not fields else []
            parts += [_format_value(key, value, over[key]) for key, value in values.items()]
            row = base
            if values:
                try:
                    row = parse_recipe([f"--{key}={value}" for key, value in values.items()], base)
                except UserError as error:
                    raise UserError(f"--over, row '{', '.join(parts)}': {error}") from error
            if METHOD in over:
                values = {METHOD: name, **values}
            values = {key: redact_home(value) for key, value in values.items()}
            rows.append(ComparisonRow(name=", ".join(parts), recipe=row, values=values))
    for first, second in itertools.combinations(rows, 2):
        if first.folder.lower() == second.folder.lower():
            raise UserError(
                f"--over: '{first.name}' and '{second.name}' have the same folder name; rename or remove one"
            )
    if unknown := set(rates) - {row.recipe.method.name for row in rows}:
        names = ", ".join(dict.fromkeys(row.recipe.method.name for row in rows))
        raise UserError(f"--learning_rates: method '{sorted(unknown)[0]}' is not compared; use one of {names}")
    return rows


def _set_method(recipe: Recipe, method_or_file: str, rates: Mapping[str, float]) -> tuple[Recipe, str]:
    """Set method, learning rate and, from a recipe file, the optimizer; also return the method's name."""
    training = dict(recipe.training)
    training.pop("output_dir", None)
    if method_or_file.endswith((".py", ".yaml", ".yml")):
        other = read_recipe(method_or_file)
        method = other.method
        for name in METHOD_ARGUMENTS:
            training.pop(name, None)
            if name in other.training:
                training[name] = other.training[name]
    else:
        method = find_method(method_or_file, recipe.method)
        if method.name != recipe.method.name:
            training.pop("learning_rate", None)
    if method.name in rates:
        training["learning_rate"] = rates[method.name]
    training.setdefault("learning_rate", get_default_learning_rate(method))
    return replace(recipe, method=method, training=training), method.name


def _format_value(name: str, value: str, all_values: Sequence[str]) -> str:
    """Format a value for a row name; shorten paths to their last parts if these differ between rows."""
    last = name.rsplit(".", 1)[-1]
    if last in ("name_or_path", "path", "deepspeed"):
        ends = [_get_last_part(other) for other in all_values]
        return _get_last_part(value) if len(set(ends)) == len(ends) else redact_home(value)
    return f"{last}={value}"


def _get_last_part(path: str) -> str:
    return path.rstrip("/").rsplit("/", 1)[-1].removesuffix(".json")
