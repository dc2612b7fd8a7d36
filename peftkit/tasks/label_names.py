"""Labels by name: as the data has them, as the data set declares them, or as the recipe orders them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from datasets import ClassLabel

from peftkit.errors import UserError


def distinct_names(values: Iterable[Any]) -> tuple[str, ...]:
    """The values as names, sorted: numbers by size, names by alphabet."""
    found = {value for value in values if not is_missing(value)}
    # Numbers and names in one column, as JSON allows, have no order among each other.
    order = found if len({isinstance(value, str) for value in found}) < 2 else {str(value) for value in found}
    return tuple(str(value) for value in sorted(order))


def check_label_names(names: Sequence[str], values: Iterable[Any], column: str) -> tuple[str, ...]:
    """The recipe's `label_names`. Raises UserError when training data has a value that is none of them."""
    if len(set(names)) < len(names):
        raise UserError(f"task.label_names: a name stands twice among {', '.join(names)}")
    for value in sorted((value for value in values if not is_missing(value)), key=str):
        number = _number(value, names)
        if number is not None and not 0 <= number < len(names):
            raise UserError(
                f"task.label_names: {len(names)} names, but train, column '{column}', has the number {value}"
            )
        if number is None and str(value) not in names:
            raise UserError(f"task.label_names: '{value}' of train, column '{column}', is not among them")
    return tuple(names)


def label_name(value: Any, feature: Any, label_names: Sequence[str]) -> str | None:
    """A value's name; None for no label, and for the -1 by which hub data sets mark one."""
    if is_missing(value) or (isinstance(feature, ClassLabel) and value < 0):
        return None
    number = _number(value, label_names) if label_names else None
    if number is not None:
        return label_names[number] if 0 <= number < len(label_names) else str(value)
    return feature.names[value] if isinstance(feature, ClassLabel) else str(value)


def is_missing(value: Any) -> bool:
    """Whether a cell holds no label: null, or nothing but space."""
    return value is None or (isinstance(value, str) and not value.strip())


def _number(value: Any, label_names: Sequence[str]) -> int | None:
    """The number that stands for a name; as text too, as in a CSV's list of them, unless it is a name itself."""
    if isinstance(value, str):
        return int(value) if value.strip().isdecimal() and value not in label_names else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def check_weights(weights: str | Mapping[str, float], labels: Sequence[str]) -> None:
    """Raise UserError for a weight of a label that does not exist, or that is not positive."""
    if isinstance(weights, str):
        return
    for name, weight in weights.items():
        if name not in labels:
            raise UserError(f"task.class_weights: no label '{name}' among {', '.join(labels[:20])}")
        if weight <= 0:
            raise UserError(f"task.class_weights: {name}: {weight} is not a positive number")


def class_weight_tensor(weights: str | Mapping[str, float], counts: np.ndarray, labels: Sequence[str]) -> torch.Tensor:
    """A weight a label: as given by name (1 where not), or `balanced`: rows / (labels x rows of the label).

    The second as scikit-learn's `compute_class_weight` has it; its mean over the rows is 1.
    """
    if not isinstance(weights, str):
        return torch.tensor([float(weights.get(name, 1.0)) for name in labels])
    return torch.tensor(counts.sum() / (len(labels) * np.maximum(counts, 1)), dtype=torch.float32)
