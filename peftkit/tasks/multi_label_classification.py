"""Task: predict any number of labels for a text or a pair of texts."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from datasets import ClassLabel, Dataset, List, Value
from transformers import PreTrainedTokenizerBase, Trainer

from peftkit.errors import UserError
from peftkit.metrics.base import MetricSet
from peftkit.metrics.classification import score_classes
from peftkit.metrics.multi_label import METRICS
from peftkit.metrics.thresholds import find_best_threshold
from peftkit.tasks.base import EncodedSplit, ModelSpec, TrainerSpec
from peftkit.tasks.default import locate_cell, reduce_losses
from peftkit.tasks.labels import (
    check_label_names,
    describe_unknown_label,
    get_label_name,
    read_numbers_by_label,
    sort_names,
)
from peftkit.tasks.text import TextTask, make_text_classifier

# With more labels, evaluation stores only the largest probabilities of each row.
MAX_STORED_LABELS = 256


class _Trainer(Trainer):
    """A Trainer that does not collect the references in evaluation: one number for every row and label."""

    def prediction_step(self, *args: Any, **kwargs: Any) -> Any:
        loss, logits, labels = super().prediction_step(*args, **kwargs)
        return loss, logits, None if labels is None else labels[:, :1]


@dataclass(frozen=True, kw_only=True)
class MultiLabelClassification(TextTask):
    """Any number of labels for a text or a pair of texts, with one threshold per label.

    Args:
        text: Column of the text.
        text_pair: Column of the second text, if rows are pairs.
        label: Column of the labels: a list of names or numbers, or one string with `separator` between names.
        separator: Separator of the names in a string.
        label_names: Label names in the order of their ids.
        max_length: Maximum number of tokens of a text or a pair; longer inputs are truncated.
        class_weights: `balanced` for an equal weight of rows with and without a label, or weights by label name.
        thresholds: Minimum probability of a predicted label, by label name; by default fitted on validation.
    """

    separator: str = ","
    label_names: list[str] = field(default_factory=list)
    class_weights: Literal["balanced"] | dict[str, float] | None = None
    thresholds: dict[str, float] = field(default_factory=dict)

    trainer: ClassVar[TrainerSpec] = TrainerSpec(trainer_class=_Trainer)

    @property
    def metrics(self) -> MetricSet:
        """F1 over labels, and the share of rows whose labels are all correct."""
        return self.build_metrics(
            METRICS,
            main=("f1_macro", "f1_micro"),
            is_correct=lambda prediction, target: sorted(prediction["labels"]) == sorted(target),
            per_class=lambda predictions, targets: score_classes([one["labels"] for one in predictions], targets),
            class_counts=lambda targets: Counter(name for names in targets for name in names),
        )

    @property
    def model(self) -> ModelSpec:
        """A multi-label classifier; its config stores the thresholds."""
        return make_text_classifier(
            "multi_label_classification",
            lambda config: config.problem_type == "multi_label_classification",
            {"thresholds": "thresholds"},
        )

    def _read_label_lists(self, dataset: Dataset) -> Iterator[list[Any] | None]:
        for value in dataset[self.label]:
            if isinstance(value, str):
                yield [part.strip() for part in value.split(self.separator) if part.strip()]
            else:
                yield list(value) if isinstance(value, list | tuple) else None if value is None else [value]

    def find_labels(self, train: Dataset) -> tuple[str, ...]:
        """Return the names from the recipe or the dataset, else the sorted values of the training rows."""
        feature = getattr(train.features[self.label], "feature", None)
        values = {one for row in self._read_label_lists(train) for one in row or () if not isinstance(one, list | dict)}
        if self.label_names:
            names = check_label_names(self.label_names, values, feature, self.label)
        elif isinstance(feature, ClassLabel):
            names = tuple(feature.names)
        else:
            names = sort_names(values)
        if not names:
            raise UserError(f"train, column '{self.label}': no label found; use another column")
        read_numbers_by_label(self.thresholds, names, "thresholds")
        return names

    def check_labels(self, rows: Dataset, labels: Sequence[str], where: str) -> Iterator[str]:
        """Yield one line per row without a list of labels, or with an unknown or a duplicate label."""
        known = set(labels)
        for row, names in enumerate(self.targets(rows, labels)):
            place, fix = locate_cell(where, row, self.label), "correct it or remove the row"
            if names is None:
                yield f"{place}: missing list of labels (a row without labels has an empty list); {fix}"
            elif unknown := [name for name in names if name not in known]:
                yield f"{place}: {describe_unknown_label(unknown[0], self.label_names)}; {fix}"
            elif twice := [name for name, count in Counter(names).items() if count > 1]:
                yield f"{place}: duplicate label '{twice[0]}' (expected names or ids, not 0/1 indicators); {fix}"

    def encode_labels(self, encoded: Dataset, rows: Dataset, labels: Sequence[str]) -> Dataset:
        """Add the sorted label ids of each row."""
        ids = {name: index for index, name in enumerate(labels)}
        targets = [sorted({ids[name] for name in names}) for names in self.targets(rows, labels)]
        return encoded.add_column("labels", targets, feature=List(Value("int64")))

    def collator(self, tokenizer: PreTrainedTokenizerBase, model: Any) -> Callable[[list[Any]], Any]:
        """Return a collator that pads to the longest row and converts label ids to 0/1, (rows, labels)."""
        pad = super().collator(tokenizer, model)

        def collate(rows: list[Any]) -> Any:
            batch = pad([{name: row[name] for name in row if name != "labels"} for row in rows])
            if "labels" in rows[0]:
                given = [row["labels"] for row in rows]
                batch["labels"] = torch.from_numpy(_make_indicators(given, model.config.num_labels)).float()
            return batch

        return collate

    def loss(self, train: Dataset, labels: Sequence[str], label_smoothing: float) -> Callable[..., Any] | None:
        """Return binary cross entropy with a weight for rows with the label; None without class weights."""
        if self.class_weights is None:
            return None
        if isinstance(self.class_weights, str):
            counts = np.bincount([one for row in train["labels"] for one in row], minlength=len(labels))
            positive = torch.tensor((len(train) - counts) / np.maximum(counts, 1), dtype=torch.float32)
        else:
            given = read_numbers_by_label(self.class_weights, labels, "class_weights")
            positive = torch.tensor([given.get(name, 1.0) for name in labels])

        def compute_loss(outputs: Any, targets: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
            losses = torch.nn.functional.binary_cross_entropy_with_logits(
                outputs["logits"].float(), targets.float(), reduction="none", pos_weight=positive.to(targets.device)
            )
            return reduce_losses(losses, num_items_in_batch)

        return compute_loss

    def postprocess(self, logits: torch.Tensor, *, detail: bool = False) -> torch.Tensor:
        """Return float16 probabilities, (rows, labels), or the largest 256 with ids, (rows, 256, 2).

        With `detail`: float32 probabilities, (rows, labels).
        """
        probabilities = logits.float().sigmoid()
        if detail:
            return probabilities
        if probabilities.shape[-1] <= MAX_STORED_LABELS:
            return probabilities.half()
        largest, ids = probabilities.topk(MAX_STORED_LABELS)
        return torch.stack([largest, ids.float()], -1)

    def calibrate(self, split: EncodedSplit) -> "MultiLabelClassification":
        """Return the task with the threshold of the best F1 for each label, between 0.05 and 0.95.

        Candidates are midpoints of neighbouring probabilities. The threshold is 0.5 if no row has the label, or if no
        candidate is better than predicting the label in every row.
        """
        from scipy.sparse import csc_matrix

        labels, rows_count = split.labels, len(split.outputs)
        probabilities, ids = _split_probabilities(split.outputs)
        row_numbers = np.repeat(np.arange(rows_count), ids.shape[1])
        given = csc_matrix((probabilities.ravel(), (row_numbers, ids.ravel())), (rows_count, len(labels)))
        targets = csc_matrix(_make_indicators(split.encoded["labels"][:], len(labels)))
        found = {}
        for place, name in enumerate(labels):
            rows, mine = (slice(matrix.indptr[place], matrix.indptr[place + 1]) for matrix in (given, targets))
            has = np.isin(given.indices[rows], targets.indices[mine])
            found[name] = find_best_threshold(given.data[rows], has, len(targets.indices[mine]), rows_count)
        return replace(self, thresholds=found | read_numbers_by_label(self.thresholds, labels, "thresholds"))

    def _select_labels(self, probabilities: np.ndarray, ids: np.ndarray, labels: Sequence[str]) -> list[str]:
        # 0.5 for a checkpoint without thresholds, which peftkit did not train.
        named = [(int(index), p) for index, p in zip(ids, probabilities, strict=True)]
        return [labels[index] for index, p in sorted(named) if p >= self.thresholds.get(labels[index], 0.5)]

    def decode(self, split: EncodedSplit, *, detail: bool = False) -> list[Mapping[str, Any]]:
        """Return the predicted `labels` of each row; with `detail` also the probability of every label."""
        found: list[Mapping[str, Any]] = []
        for row, ids in zip(*_split_probabilities(split.outputs), strict=True):
            prediction: dict[str, Any] = {"labels": self._select_labels(row, ids, split.labels)}
            if detail:
                prediction["probabilities"] = dict(zip(split.labels, map(float, row), strict=True))
            found.append(prediction)
        return found

    def targets(self, rows: Dataset, labels: Sequence[str]) -> list[Any]:
        """Return the label names of each row; None if the list is missing."""
        feature = getattr(rows.features[self.label], "feature", None)
        return [
            None if row is None else [str(get_label_name(value, feature, self.label_names)) for value in row]
            for row in self._read_label_lists(rows)
        ]


def _split_probabilities(outputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return probabilities and label ids, each (rows, stored labels), from the outputs of `postprocess`."""
    if outputs.ndim == 3:
        return outputs[..., 0], outputs[..., 1].astype(int)
    outputs = outputs.astype(np.float32)
    return outputs, np.broadcast_to(np.arange(outputs.shape[1]), outputs.shape)


def _make_indicators(rows: Sequence[Sequence[int]], labels: int) -> np.ndarray:
    """Convert label ids to booleans, (rows, labels)."""
    found = np.zeros((len(rows), labels), dtype=bool)
    for place, ids in enumerate(rows):
        found[place, list(ids)] = True
    return found
