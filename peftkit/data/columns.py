"""Column profiles: the kind of values in each column of the first rows, as far as a task needs them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from peftkit.tasks.labels import is_missing

Kind = Literal[
    "texts", "booleans", "whole numbers", "numbers", "lists of texts", "lists of whole numbers", "other values",
    "empty",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ColumnProfile:
    """The values of a column in the rows that were read.

    Attributes:
        name: Name of the column.
        kind: Kind of all values that are not missing.
        values: The values that are not missing; numbers of a CSV file are still text.
        missing: Number of missing values.
        names: Label names that the file declares for a column of numbers.
    """

    name: str
    kind: Kind
    values: Sequence[Any]
    missing: int = 0
    names: tuple[str, ...] = ()

    @property
    def distinct(self) -> frozenset[str]:
        """The different values, or the different items of lists, as text."""
        if self.kind.startswith("lists"):
            return frozenset(str(item) for value in self.values for item in value)
        return frozenset(str(value) for value in self.values)

    @property
    def mean_length(self) -> float:
        """Mean number of characters of a text."""
        return sum(len(str(value)) for value in self.values) / max(1, len(self.values))

    def describe(self) -> str:
        """Return the name and the kind, for messages."""
        return f"'{self.name}' ({self.kind})"


def profile_columns(
    rows: Sequence[Mapping[str, Any]], label_names: Mapping[str, tuple[str, ...]] | None = None
) -> list[ColumnProfile]:
    """Profile every column of the rows, in the order of the columns."""
    columns = dict.fromkeys(name for row in rows for name in row)
    profiles = []
    for name in columns:
        cells = [row.get(name) for row in rows]
        values = [cell for cell in cells if not is_missing(cell)]
        profiles.append(
            ColumnProfile(
                name=name, kind=_find_kind(values), values=values, missing=len(cells) - len(values),
                names=(label_names or {}).get(name, ()),
            )
        )  # fmt: skip
    return profiles


def _find_kind(values: Sequence[Any]) -> Kind:
    if not values:
        return "empty"
    if all(isinstance(value, list) for value in values):
        items = [item for value in values for item in value]
        if not items:
            return "other values"
        if all(isinstance(item, str) for item in items):
            return "lists of texts"
        return "lists of whole numbers" if all(map(_is_whole, items)) else "other values"
    if any(isinstance(value, list | dict) for value in values):
        return "other values"
    if all(isinstance(value, bool) for value in values):
        return "booleans"
    if all(map(_is_whole, values)):
        return "whole numbers"
    if all(map(_is_number, values)):
        return "numbers"
    return "texts" if all(isinstance(value, str) for value in values) else "other values"


def _is_whole(value: Any) -> bool:
    """Return whether the value is an integer, or its text as in a CSV file."""
    if isinstance(value, str):
        return value.strip().removeprefix("-").isdecimal()
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    try:
        return not isinstance(value, bool) and math.isfinite(float(value))
    except (TypeError, ValueError):
        return False
