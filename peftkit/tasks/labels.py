"""Label names, from the data, the dataset's features or the recipe; class weights."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from datasets import ClassLabel

from peftkit.errors import UserError


def sort_names(values: Iterable[Any]) -> tuple[str, ...]:
    """Return the distinct values as names, sorted as numbers if all are numbers, else alphabetically."""
    found = {str(value) for value in values if not is_missing(value)}
    sizes = {name: _parse_number(name) for name in found}
    if None in sizes.values():
        return tuple(sorted(found))
    return tuple(sorted(found, key=lambda name: (sizes[name], name)))


def check_label_names(names: Sequence[str], values: Iterable[Any], feature: Any, column: str) -> tuple[str, ...]:
    """Return the recipe's `label_names`. Raises UserError for duplicates and ambiguous values."""
    if len(set(names)) < len(names):
        raise UserError(f"task.label_names: duplicate name in {', '.join(names)}; remove it")
    present = [value for value in values if not is_missing(value)]
    own = {value for value in present if _read_value_name(value, feature) in names}
    numbers = {value for value in present if value not in own and get_label_name(value, feature, names) in names}
    if own and numbers:
        raise UserError(
            f"task.label_names: train, column '{column}', mixes names such as '{min(own, key=str)}' and numbers such "
            f"as '{min(numbers, key=str)}'; use names only or numbers only"
        )
    return tuple(names)


def get_label_name(value: Any, feature: Any, label_names: Sequence[str]) -> str | None:
    """Return the label name of a value; None for a missing label, which is -1 in Hub datasets.

    A value in `label_names` is a name. Any other number is an index into `label_names`.
    """
    if is_missing(value) or (isinstance(feature, ClassLabel) and value < 0):
        return None
    name = _read_value_name(value, feature)
    if not label_names or name in label_names:
        return name
    number = _parse_index(value)
    return label_names[number] if number is not None and 0 <= number < len(label_names) else name


def is_missing(value: Any) -> bool:
    """Return whether a cell has no label: null or white space."""
    return value is None or (isinstance(value, str) and not value.strip())


def describe_unknown_label(name: str, label_names: Sequence[str]) -> str:
    """Return the error text for an unknown label."""
    return f"label '{name}' {'is not in task.label_names' if label_names else 'does not occur in train'}"


def _read_value_name(value: Any, feature: Any) -> str:
    return feature.names[value] if isinstance(feature, ClassLabel) else str(value)


def _parse_index(value: Any) -> int | None:
    """Return a cell as an index, also from text as in a CSV; None for any other value."""
    if isinstance(value, str):
        return int(value) if value.strip().isdecimal() else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _parse_number(name: str) -> float | None:
    try:
        return float(name) if math.isfinite(float(name)) else None
    except ValueError:
        return None


def read_numbers_by_label(numbers: Mapping[Any, Any], labels: Sequence[str], field: str) -> dict[str, float]:
    """Return a recipe's numbers by label name; YAML may parse a name as a number. Raises UserError."""
    found = {}
    for name, number in numbers.items():
        if str(name) not in labels:
            raise UserError(f"task.{field}: unknown label '{name}'; use one of {', '.join(labels[:20])}")
        if isinstance(number, bool) or not isinstance(number, int | float) or number <= 0:
            raise UserError(f"task.{field}: {name}: expected a positive number, got {number}")
        found[str(name)] = float(number)
    return found


def make_class_weights(weights: str | Mapping[str, float], counts: np.ndarray, labels: Sequence[str]) -> torch.Tensor:
    """Return one weight per label: by name (default 1), or rows / (labels x rows of the label).

    `balanced` equals scikit-learn's `compute_class_weight`; the mean over the rows is 1. Raises UserError.
    """
    if not isinstance(weights, str):
        given = read_numbers_by_label(weights, labels, "class_weights")
        return torch.tensor([given.get(name, 1.0) for name in labels])
    return torch.tensor(counts.sum() / (len(labels) * np.maximum(counts, 1)), dtype=torch.float32)
