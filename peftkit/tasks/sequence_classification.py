"""A text, or a pair of texts, belongs to one of several classes."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from datasets import ClassLabel, Dataset
from scipy.special import softmax
from transformers import PreTrainedTokenizerBase

from peftkit.errors import UserError
from peftkit.metrics.bootstrap import Statistic
from peftkit.metrics.calibration import best_temperature, expected_calibration_error
from peftkit.metrics.classification import class_scores, classification_metrics, classification_statistics
from peftkit.tasks.default import at, first_output, reduced_loss
from peftkit.tasks.labels import (
    check_label_names,
    class_weight_tensor,
    distinct_names,
    label_name,
    unknown_label,
)
from peftkit.tasks.text import TextTask, is_text_classifier

# Of more labels, evaluation keeps a row's largest logits so many: the logits of all would fill the memory.
MOST_KEPT = 64
ONE_LABEL = "single_label_classification"


@dataclass(frozen=True, kw_only=True)
class SequenceClassification(TextTask):
    """One label for a text or for a pair of texts.

    Args:
        text: Column of the text.
        text_pair: Column of the second text, when rows are pairs; the tokenizer joins them in its own way.
        label: Column of the label, a name or a number.
        label_names: The order of the names; or, where the data has numbers, the names in the order of those.
        max_length: Tokens kept of a text or a pair; memory of activations grows with it.
        class_weights: `balanced`, so that every class counts alike in the loss, or a weight by name of the label.
        temperature: What logits are divided by before they become probabilities; chosen on validation when not given.
    """

    label: str = "label"
    label_names: list[str] = field(default_factory=list)
    class_weights: Literal["balanced"] | dict[str, float] | None = None
    temperature: float | None = None

    def __post_init__(self) -> None:
        if self.temperature is not None and not self.temperature > 0:
            raise UserError(f"task.temperature: {self.temperature} is not above 0")

    column_fields: ClassVar[tuple[str, ...]] = ("text", "text_pair", "label")
    balance_hint: ClassVar[str] = "; task.class_weights balanced lets all count alike"
    main_metrics: ClassVar[tuple[str, ...]] = ("accuracy", "f1_macro")
    label_smoothing: ClassVar[bool] = True

    @classmethod
    def of_model(cls, config: Any, length: int) -> "SequenceClassification | None":
        """For a classifier that was trained elsewhere."""
        mine = is_text_classifier(config) and config.num_labels > 1 and config.problem_type in (None, ONE_LABEL)
        return cls(max_length=length) if mine else None

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that training data must have."""
        return (*self.inputs, self.label)

    @property
    def stratify_by(self) -> str | None:
        """The column by which rows are held out in proportion."""
        return self.label

    def find_labels(self, train: Dataset) -> tuple[str, ...]:
        """Names as the recipe or the data set declares them, else the values found in training data, sorted."""
        feature = train.features[self.label]
        values = [value for value in train[self.label] if not isinstance(value, list | dict)]
        if self.label_names:
            names = check_label_names(self.label_names, set(values), feature, self.label)
        elif isinstance(feature, ClassLabel):
            names = tuple(feature.names)
        else:
            names = distinct_names(values)
        if values and len(names) < 2:
            where = "task.label_names" if self.label_names else f"train, column '{self.label}'"
            raise UserError(f"{where}: {len(names)} label found; a classifier needs at least 2")
        return names

    def problems(self, dataset: Dataset, labels: Sequence[str], where: str) -> Iterator[str]:
        """A line for each row without a label, with one that is not known, or without a text."""
        yield from self.input_problems(dataset, where)
        known, right = set(labels), self.references(dataset, labels)
        for row, (value, name) in enumerate(zip(dataset[self.label], right, strict=True)):
            place = at(where, row, self.label)
            if isinstance(value, list | dict):
                yield f"{place}: {type(value).__name__}, not one label; for several take MultiLabelClassification"
            elif name is None:
                yield f"{place}: no label; remove it or name another split"
            elif name not in known:
                hint = ", or take SequenceRegression for numbers" if isinstance(value, float) else ""
                yield f"{place}: {unknown_label(name, self.label_names)}; correct it or remove the row{hint}"

    def class_counts(self, references: Sequence[Any]) -> Mapping[str, int]:
        """Rows of each label."""
        return Counter(references)

    def model_config(self, labels: Sequence[str]) -> Mapping[str, Any]:
        """Keywords of `from_pretrained` that give the model its head."""
        return {
            "num_labels": len(labels),
            "id2label": dict(enumerate(labels)),
            "label2id": {name: index for index, name in enumerate(labels)},
            "problem_type": ONE_LABEL,
        }

    def encode(self, dataset: Dataset, tokenizer: PreTrainedTokenizerBase, labels: Sequence[str]) -> Dataset:
        """Token ids and label ids, a row each."""
        ids = {name: index for index, name in enumerate(labels)}
        names = self.references(dataset, labels)
        return self.encode_inputs(dataset, tokenizer).add_column("labels", [ids[name] for name in names])

    def loss(self, train: Dataset, labels: Sequence[str], label_smoothing: float) -> Callable[..., Any] | None:
        """Cross entropy times the weight of the right class; None without class weights."""
        if self.class_weights is None:
            return None
        weights = class_weight_tensor(self.class_weights, np.bincount(train["labels"], minlength=len(labels)), labels)

        def weighted(outputs: Any, right: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
            logits = outputs["logits"].float()
            losses = torch.nn.functional.cross_entropy(logits, right, reduction="none", label_smoothing=label_smoothing)
            return reduced_loss(losses * weights.to(losses.device)[right], num_items_in_batch)

        return weighted

    def reduce(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits in float32, of shape (rows, labels); of more than 64 labels the largest, (rows, 64, 2).

        Their second number is then the label's id. The temperature is chosen when all rows are seen.
        """
        logits = logits.float()
        if logits.shape[-1] <= MOST_KEPT:
            return logits
        largest, ids = logits.topk(MOST_KEPT)
        return torch.stack([largest, ids.float()], -1)

    def fitted(self, kept: np.ndarray, encoded: Dataset, labels: Sequence[str]) -> "SequenceClassification":
        """With the temperature that makes the right labels of these rows most probable."""
        if self.temperature is not None:
            return self
        logits, ids = _kept_logits(kept)
        here = ids == np.asarray(encoded["labels"][:])[:, None]
        rows = here.any(-1)
        return replace(self, temperature=best_temperature(logits[rows], here[rows].argmax(-1)))

    def settings(self) -> Mapping[str, Any]:
        """The temperature."""
        return {} if self.temperature is None else {"calibration_temperature": self.temperature}

    def restored(self, config: Any) -> "SequenceClassification":
        """With the temperature that the model's config holds."""
        return replace(self, temperature=getattr(config, "calibration_temperature", self.temperature))

    def decode(
        self,
        kept: np.ndarray,
        encoded: Dataset,
        dataset: Dataset,
        tokenizer: PreTrainedTokenizerBase,
        labels: Sequence[str],
    ) -> list[Mapping[str, Any]]:
        """`label` of each row, and its probability as `confidence`."""
        logits, ids = _kept_logits(kept)
        best = logits.argmax(-1)[:, None]
        sure = np.take_along_axis(softmax(logits / (self.temperature or 1.0), axis=-1), best, -1)[:, 0]
        found = np.take_along_axis(ids, best, -1)[:, 0]
        return [
            {"label": labels[index], "confidence": round(float(p), 6)} for index, p in zip(found, sure, strict=True)
        ]

    def infer(self, model: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Probabilities, float32, of shape (rows, labels)."""
        return (first_output(model(**batch).logits).float() / (self.temperature or 1.0)).softmax(-1)

    def answer(
        self,
        kept: np.ndarray,
        encoded: Dataset,
        dataset: Dataset,
        tokenizer: PreTrainedTokenizerBase,
        labels: Sequence[str],
    ) -> list[Mapping[str, Any]]:
        """`label` of each row, and the probability of every label."""
        return [
            {"label": labels[int(row.argmax())], "probabilities": dict(zip(labels, map(float, row), strict=True))}
            for row in kept
        ]

    def references(self, dataset: Dataset, labels: Sequence[str]) -> list[Any]:
        """The name of each row's label; None where there is none."""
        feature = dataset.features[self.label]
        return [label_name(value, feature, self.label_names) for value in dataset[self.label]]

    def score(self, answers: Sequence[Mapping[str, Any]], references: Sequence[Any]) -> dict[str, float]:
        """Accuracy and macro F1, and the expected calibration error of answers that tell how sure they are."""
        found = classification_metrics([answer["label"] for answer in answers], references)
        if all("confidence" in answer for answer in answers):
            right = [answer["label"] == name for answer, name in zip(answers, references, strict=True)]
            found["ece"] = expected_calibration_error([answer["confidence"] for answer in answers], right)
        return found

    def statistics(self, answers: Sequence[Mapping[str, Any]], references: Sequence[Any]) -> Mapping[str, Statistic]:
        """Accuracy and macro F1 of drawn rows."""
        return classification_statistics([answer["label"] for answer in answers], references)

    def class_scores(
        self, answers: Sequence[Mapping[str, Any]], references: Sequence[Any]
    ) -> Mapping[str, Mapping[str, float]]:
        """Precision, recall, F1 and rows of each label."""
        return class_scores([answer["label"] for answer in answers], references)

    def confusions(
        self, answers: Sequence[Mapping[str, Any]], references: Sequence[Any]
    ) -> Mapping[tuple[str, str], int]:
        """How often a label was answered where another, or the same, was right."""
        return Counter(zip(references, (answer["label"] for answer in answers), strict=True))

    def said(self, answer: Mapping[str, Any]) -> str:
        """The label."""
        return answer["label"]


def _kept_logits(kept: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Logits and their labels' ids, each of shape (rows, kept labels), from what `reduce` made."""
    if kept.ndim == 3:
        return kept[..., 0], kept[..., 1].astype(int)
    return kept, np.broadcast_to(np.arange(kept.shape[1]), kept.shape)
