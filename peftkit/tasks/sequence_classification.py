"""Task: predict one label for a text or a pair of texts."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from datasets import ClassLabel, Dataset

from peftkit.errors import UserError
from peftkit.metrics.base import MetricSet
from peftkit.metrics.calibration import fit_temperature
from peftkit.metrics.classification import METRICS, score_classes
from peftkit.tasks.base import ColumnSpec, EncodedSplit, ModelSpec, TrainerSpec
from peftkit.tasks.default import locate_cell, reduce_losses
from peftkit.tasks.labels import (
    check_label_names,
    describe_unknown_label,
    get_label_name,
    make_class_weights,
    sort_names,
)
from peftkit.tasks.text import TextTask, make_text_classifier

# With more labels, evaluation stores only the largest logits of each row.
MAX_STORED_LABELS = 64


@dataclass(frozen=True, kw_only=True)
class SequenceClassification(TextTask):
    """One label for a text or for a pair of texts.

    Args:
        text: Column of the text.
        text_pair: Column of the second text, if rows are pairs.
        label: Column of the label, a name or a number.
        label_names: Label names in the order of their ids.
        max_length: Maximum number of tokens of a text or a pair; activation memory grows with this length.
        class_weights: `balanced` for an equal weight of all classes in the loss, or weights by label name.
        temperature: Divisor of logits before softmax; by default fitted on validation.
    """

    label_names: list[str] = field(default_factory=list)
    class_weights: Literal["balanced"] | dict[str, float] | None = None
    temperature: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.temperature is not None and not self.temperature > 0:
            raise UserError(f"task.temperature: expected a number above 0, got {self.temperature}")

    trainer: ClassVar[TrainerSpec] = TrainerSpec(supports_label_smoothing=True)

    @property
    def model(self) -> ModelSpec:
        """A classifier; its config stores the temperature."""
        return make_text_classifier(
            "single_label_classification",
            lambda config: config.num_labels > 1 and config.problem_type in (None, "single_label_classification"),
            {"temperature": "calibration_temperature"},
        )

    @property
    def metrics(self) -> MetricSet:
        """Accuracy, macro F1 and calibration error, per class and as a confusion matrix."""
        return self.build_metrics(
            METRICS,
            main=("accuracy", "f1_macro"),
            is_correct=lambda prediction, target: prediction["label"] == target,
            per_class=lambda predictions, targets: score_classes([one["label"] for one in predictions], targets),
            confusion=lambda predictions, targets: Counter(
                zip(targets, (one["label"] for one in predictions), strict=True)
            ),
            class_counts=Counter,
        )

    @property
    def columns(self) -> ColumnSpec:
        """The columns of a text task, stratified by label."""
        return replace(super().columns, stratify=self.label)

    def find_labels(self, train: Dataset) -> tuple[str, ...]:
        """Return the names from the recipe or the dataset, else the sorted values of the training rows."""
        feature = train.features[self.label]
        values = [value for value in train[self.label] if not isinstance(value, list | dict)]
        if self.label_names:
            names = check_label_names(self.label_names, set(values), feature, self.label)
        elif isinstance(feature, ClassLabel):
            names = tuple(feature.names)
        else:
            names = sort_names(values)
        if values and len(names) < 2:
            where = "task.label_names" if self.label_names else f"train, column '{self.label}'"
            raise UserError(f"{where}: a classifier needs at least 2 labels, got {len(names)}; use another column")
        return names

    def check_labels(self, rows: Dataset, labels: Sequence[str], where: str) -> Iterator[str]:
        """Yield one line per row whose label is missing or unknown."""
        known, names = set(labels), self.targets(rows, labels)
        for row, (value, name) in enumerate(zip(rows[self.label], names, strict=True)):
            location = locate_cell(where, row, self.label)
            if isinstance(value, list | dict):
                yield f"{location}: expected one label, got {type(value).__name__}; use MultiLabelClassification"
            elif name is None:
                yield f"{location}: no label; remove the row or use another split"
            elif name not in known:
                fix = "correct it or remove the row"
                fix += ", or use SequenceRegression for numbers" if isinstance(value, float) else ""
                yield f"{location}: {describe_unknown_label(name, self.label_names)}; {fix}"

    def encode_labels(self, encoded: Dataset, rows: Dataset, labels: Sequence[str]) -> Dataset:
        """Add the label id of each row."""
        ids = {name: index for index, name in enumerate(labels)}
        return encoded.add_column("labels", [ids[name] for name in self.targets(rows, labels)])

    def loss(self, train: Dataset, labels: Sequence[str], label_smoothing: float) -> Callable[..., Any] | None:
        """Return cross entropy weighted by the class of the target; None without class weights."""
        if self.class_weights is None:
            return None
        weights = make_class_weights(self.class_weights, np.bincount(train["labels"], minlength=len(labels)), labels)

        def compute_loss(outputs: Any, targets: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
            logits = outputs["logits"].float()
            losses = torch.nn.functional.cross_entropy(
                logits, targets, reduction="none", label_smoothing=label_smoothing
            )
            return reduce_losses(losses * weights.to(losses.device)[targets], num_items_in_batch)

        return compute_loss

    def postprocess(self, logits: torch.Tensor, *, detail: bool = False) -> torch.Tensor:
        """Return float32 logits, (rows, labels); above 64 labels the largest and their ids, (rows, 64, 2).

        With `detail`: calibrated probabilities, (rows, labels).
        """
        logits = logits.float()
        if detail:
            return (logits / (self.temperature or 1.0)).softmax(-1)
        if logits.shape[-1] <= MAX_STORED_LABELS:
            return logits
        largest, ids = logits.topk(MAX_STORED_LABELS)
        return torch.stack([largest, ids.float()], -1)

    def calibrate(self, split: EncodedSplit) -> "SequenceClassification":
        """Return the task with the temperature that maximizes the likelihood of the references."""
        if self.temperature is not None:
            return self
        logits, ids = _split_logits(split.outputs)
        here = ids == np.asarray(split.encoded["labels"][:])[:, None]
        rows = here.any(-1)
        return replace(self, temperature=fit_temperature(logits[rows], here[rows].argmax(-1)))

    def decode(self, split: EncodedSplit, *, detail: bool = False) -> list[Mapping[str, Any]]:
        """Return `label` and `confidence` of each row; with `detail` the probabilities of all labels."""
        labels = split.labels
        if detail:
            return [
                {"label": labels[int(row.argmax())], "probabilities": dict(zip(labels, map(float, row), strict=True))}
                for row in split.outputs
            ]
        from scipy.special import softmax

        logits, ids = _split_logits(split.outputs)
        best = logits.argmax(-1)[:, None]
        confidences = np.take_along_axis(softmax(logits / (self.temperature or 1.0), axis=-1), best, -1)[:, 0]
        indices = np.take_along_axis(ids, best, -1)[:, 0]
        return [
            {"label": labels[index], "confidence": round(float(p), 6)}
            for index, p in zip(indices, confidences, strict=True)
        ]

    def targets(self, rows: Dataset, labels: Sequence[str]) -> list[Any]:
        """Return the label name of each row; None if the label is missing."""
        feature = rows.features[self.label]
        return [get_label_name(value, feature, self.label_names) for value in rows[self.label]]


def _split_logits(outputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return logits and label ids, each (rows, stored labels), from the outputs of `postprocess`."""
    if outputs.ndim == 3:
        return outputs[..., 0], outputs[..., 1].astype(int)
    return outputs, np.broadcast_to(np.arange(outputs.shape[1]), outputs.shape)
