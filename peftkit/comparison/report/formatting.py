"""Format predictions and targets as one line of text."""

from collections.abc import Iterable, Mapping
from typing import Any

from peftkit.metrics.token_classification import find_entities
from peftkit.tasks import Task


def format_prediction(prediction: Mapping[str, Any]) -> str:
    """Format a prediction as one line."""
    if "entities" in prediction:
        return _format_entities((entity["type"], entity["text"]) for entity in prediction["entities"])
    if "labels" in prediction:
        return _format_labels(prediction["labels"])
    if "score" in prediction:
        return f"{prediction['score']:.3g}"
    return str(next(iter(prediction.values())))


def format_target(task: Task, target: Any) -> str:
    """Format a target as one line."""
    if isinstance(target, float):
        return f"{target:g}"
    if not isinstance(target, list):
        return str(target)
    if task.output_kind == "tokens":
        return _format_entities((kind, f"words {first} to {last}") for kind, first, last in find_entities(target))
    return " | ".join(target) if task.output_kind == "text" else _format_labels(target)


def _format_labels(labels: Iterable[str]) -> str:
    return ", ".join(sorted(labels)) or "none"


def _format_entities(entities: Iterable[tuple[str, str]]) -> str:
    return "; ".join(f"{kind}: {text}" for kind, text in entities) or "no entities"
