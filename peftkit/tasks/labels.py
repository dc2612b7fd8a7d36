"""Labels by name: as the data has them, as the data set declares them, or as the recipe orders them."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from datasets import ClassLabel

from peftkit.errors import UserError


def distinct_names(values: Iterable[Any]) -> tuple[str, ...]:
    """The values as names, sorted: by size where all are numbers, also written ones, else by alphabet."""
    found = {str(value) for value in values if not is_missing(value)}
    sizes = {name: _size(name) for name in found}
    if None in sizes.values():
        return tuple(sorted(found))
    return tuple(sorted(found, key=lambda name: (sizes[name], name)))


def check_label_names(names: Sequence[str], values: Iterable[Any], feature: Any, column: str) -> tuple[str, ...]:
    """The recipe's `label_names`. Raises UserError where one stands twice or values of train could mean two of them."""
    if len(set(names)) < len(names):
        raise UserError(f"task.label_names: a name stands twice among {', '.join(names)}")
    present = [value for value in values if not is_missing(value)]
    own = {value for value in present if _own_name(value, feature) in names}
    numbers = {value for value in present if value not in own and label_name(value, feature, names) in names}
    if own and numbers:
        raise UserError(
            f"task.label_names: train, column '{column}', has '{min(own, key=str)}', which is a name among them, and "
            f"'{min(numbers, key=str)}', which is none and could only be a number; name all values or none"
        )
    return tuple(names)


def label_name(value: Any, feature: Any, label_names: Sequence[str]) -> str | None:
    """A value's name; None for no label, and for the -1 by which hub data sets mark one.

    A value whose own name is among `label_names` has that name, whatever their order; any other is a number of one.
    """
    if is_missing(value) or (isinstance(feature, ClassLabel) and value < 0):
        return None
    name = _own_name(value, feature)
    if not label_names or name in label_names:
        return name
    number = _number(value)
    return label_names[number] if number is not None and 0 <= number < len(label_names) else name


def is_missing(value: Any) -> bool:
    """Whether a cell holds no label: null, or nothing but space."""
    return value is None or (isinstance(value, str) and not value.strip())


def unknown_label(name: str, label_names: Sequence[str]) -> str:
    """What is wrong with a label that is none of the known ones."""
    return f"label '{name}' {'is not among task.label_names' if label_names else 'does not occur in train'}"


def _own_name(value: Any, feature: Any) -> str:
    return feature.names[value] if isinstance(feature, ClassLabel) else str(value)


def _number(value: Any) -> int | None:
    """The number that may stand for a name; as text too, as in a CSV."""
    if isinstance(value, str):
        return int(value) if value.strip().isdecimal() else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _size(name: str) -> float | None:
    try:
        return float(name) if math.isfinite(float(name)) else None
    except ValueError:
        return None


def numbers_by_name(numbers: Mapping[Any, Any], labels: Sequence[str], field: str) -> dict[str, float]:
    """A recipe's numbers by label, whose names YAML may have read as numbers. Raises UserError."""
    found = {}
    for name, number in numbers.items():
        if str(name) not in labels:
            raise UserError(f"task.{field}: no label '{name}' among {', '.join(labels[:20])}")
        if isinstance(number, bool) or not isinstance(number, int | float) or number <= 0:
            raise UserError(f"task.{field}: {name}: {number} is not a positive number")
        found[str(name)] = float(number)
    return found


def class_weight_tensor(weights: str | Mapping[str, float], counts: np.ndarray, labels: Sequence[str]) -> torch.Tensor:
    """A weight a label: as given by name (1 where not), or `balanced`: rows / (labels x rows of the label).

    The second as scikit-learn's `compute_class_weight` has it; its mean over the rows is 1. Raises UserError.
    """
    if not isinstance(weights, str):
        given = numbers_by_name(weights, labels, "class_weights")
        return torch.tensor([given.get(name, 1.0) for name in labels])
    return torch.tensor(counts.sum() / (len(labels) * np.maximum(counts, 1)), dtype=torch.float32)
