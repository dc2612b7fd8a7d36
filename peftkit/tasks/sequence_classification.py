"""A text belongs to one of several classes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset
from scipy.special import softmax
from transformers import AutoModelForSequenceClassification, DataCollatorWithPadding, PreTrainedTokenizerBase

from peftkit.errors import UserError
from peftkit.metrics import classification_intervals, classification_metrics


@dataclass(frozen=True, kw_only=True)
class SequenceClassification:
    """Single-label classification of single texts.

    Args:
        text: Column of the text.
        label: Column of the label, a name or a number.
        max_length: Tokens kept of a text; memory of activations grows with it.
    """

    text: str = "text"
    label: str = "label"
    max_length: int = 128

    @property
    def auto_model(self) -> type[AutoModelForSequenceClassification]:
        """The `transformers` auto class of its models."""
        return AutoModelForSequenceClassification

    @property
    def task_type(self) -> str:
        """The task's name in `peft.TaskType`."""
        return "SEQ_CLS"

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that training data must have."""
        return (self.text, self.label)

    def label_names(self, train: Dataset) -> tuple[str, ...]:
        """Names as the data set declares them, else the values found in training data, sorted."""
        feature = train.features[self.label]
        if isinstance(feature, ClassLabel):
            return tuple(feature.names)
        values = set(train.unique(self.label)) - {None}
        names = tuple(str(value) for value in sorted(values))
        if len(names) < 2:
            raise UserError(f"train, column '{self.label}': {len(names)} label found; a classifier needs at least 2")
        return names

    def model_config(self, labels: Sequence[str]) -> dict[str, Any]:
        """Keywords of `from_pretrained` that give the model its head."""
        return {
            "num_labels": len(labels),
            "id2label": dict(enumerate(labels)),
            "label2id": {name: index for index, name in enumerate(labels)},
            "problem_type": "single_label_classification",
        }

    def encode(
        self, dataset: Dataset, tokenizer: PreTrainedTokenizerBase, labels: Sequence[str], where: str
    ) -> Dataset:
        """Token ids and label ids, a row each. Raises UserError naming split, row and column of what can't be read."""
        feature = dataset.features[self.label]
        ids = {name: index for index, name in enumerate(labels)}
        names = dataset[self.label]
        if isinstance(feature, ClassLabel):
            names = [feature.names[value] if value is not None and value >= 0 else None for value in names]
        for row, name in enumerate(names):
            if name is None:
                raise UserError(
                    f"{where}, row {row} (from 0), column '{self.label}': no label; remove it or name another split"
                )
            if str(name) not in ids:
                raise UserError(
                    f"{where}, row {row} (from 0), column '{self.label}': label '{name}' does not occur in train; "
                    "correct it or remove the row"
                )
        encoded = self.encode_inputs(dataset, tokenizer, where)
        return encoded.add_column("labels", [ids[str(name)] for name in names])

    def encode_inputs(self, dataset: Dataset, tokenizer: PreTrainedTokenizerBase, where: str) -> Dataset:
        """Token ids, a row each. Raises UserError naming the first row whose text is missing or empty."""
        self._check_texts(dataset, where)
        return dataset.map(
            lambda batch: dict(tokenizer(batch[self.text], truncation=True, max_length=self.max_length)),
            batched=True,
            remove_columns=dataset.column_names,
            keep_in_memory=True,
        )

    def _check_texts(self, dataset: Dataset, where: str) -> None:
        for row, text in enumerate(dataset[self.text]):
            if not isinstance(text, str) or not text.strip():
                found = "empty" if isinstance(text, str) else f"{type(text).__name__}, not text"
                raise UserError(
                    f"{where}, row {row} (from 0), column '{self.text}': {found}; correct it or remove the row"
                )

    def collator(self, tokenizer: PreTrainedTokenizerBase) -> DataCollatorWithPadding:
        """Pads to the longest row of the batch."""
        return DataCollatorWithPadding(tokenizer)

    def score(self, logits: np.ndarray, label_ids: np.ndarray) -> dict[str, float]:
        """Accuracy and macro F1; `logits` of shape (rows, labels), `label_ids` of shape (rows,)."""
        return classification_metrics(logits.argmax(-1), label_ids)

    def intervals(self, logits: np.ndarray, label_ids: np.ndarray) -> dict[str, list[float]]:
        """Their 95 % bootstrap intervals over rows."""
        return classification_intervals(logits.argmax(-1), label_ids)

    def predictions(self, logits: np.ndarray, labels: Sequence[str]) -> list[Mapping[str, Any]]:
        """The most probable label of each row, and the probability of every label."""
        return [
            {"label": labels[int(row.argmax())], "probabilities": dict(zip(labels, map(float, row), strict=True))}
            for row in softmax(logits.astype(np.float64), axis=-1)
        ]
