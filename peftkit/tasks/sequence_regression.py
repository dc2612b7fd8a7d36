"""A text, or a pair of texts, has a number."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from peftkit.metrics.bootstrap import Statistic
from peftkit.metrics.regression import regression_metrics, regression_statistics
from peftkit.tasks.default import at, first_output
from peftkit.tasks.text import TextTask, is_text_classifier


@dataclass(frozen=True, kw_only=True)
class SequenceRegression(TextTask):
    """A number for a text or for a pair of texts.

    Args:
        text: Column of the text.
        text_pair: Column of the second text, when rows are pairs.
        label: Column of the number.
        max_length: Tokens kept of a text or a pair.
    """

    label: str = "label"

    column_fields: ClassVar[tuple[str, ...]] = ("text", "text_pair", "label")
    main_metrics: ClassVar[tuple[str, ...]] = ("pearson", "spearman")
    label_smoothing: ClassVar[bool] = False

    @classmethod
    def of_model(cls, config: Any, length: int) -> "SequenceRegression | None":
        """For a model of one number that was trained elsewhere."""
        one = config.num_labels == 1 and config.problem_type is None
        mine = is_text_classifier(config) and (one or config.problem_type == "regression")
        return cls(max_length=length) if mine else None

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that training data must have."""
        return (*self.inputs, self.label)

    def find_labels(self, train: Dataset) -> tuple[str, ...]:
        """One output, called as its column."""
        return (self.label,)

    def problems(self, dataset: Dataset, labels: Sequence[str], where: str) -> Iterator[str]:
        """A line for each row without a finite number or without a text."""
        yield from self.input_problems(dataset, where)
        for row, value in enumerate(dataset[self.label]):
            if not math.isfinite(_number(value)):
                shown = "null" if value is None else f"'{value}'"
                yield f"{at(where, row, self.label)}: {shown} is not a finite number; correct it or remove the row"

    def class_counts(self, references: Sequence[Any]) -> Mapping[str, int]:
        """A number has no classes."""
        return {}

    def blank_batch(self, rows: int, classes: int) -> dict[str, torch.Tensor]:
        """Texts of the full length, and a number each."""
        return {**super().blank_batch(rows, classes), "labels": torch.zeros(rows)}

    def model_config(self, labels: Sequence[str]) -> Mapping[str, Any]:
        """Keywords of `from_pretrained` that give the model its head."""
        name = labels[0]
        return {"num_labels": 1, "id2label": {0: name}, "label2id": {name: 0}, "problem_type": "regression"}

    def encode(self, dataset: Dataset, tokenizer: PreTrainedTokenizerBase, labels: Sequence[str]) -> Dataset:
        """Token ids and the number, a row each."""
        numbers = self.references(dataset, labels)
        return self.encode_inputs(dataset, tokenizer).add_column("labels", numbers)

    def same(self, logits: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """Whether the numbers are within 0.01."""
        return torch.isclose(logits, other, rtol=0.0, atol=1e-2)

    def divergence(self, logits: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        """The absolute difference, in the unit of the numbers."""
        return (logits - reference).abs().sum(-1)

    def reduce(self, logits: torch.Tensor) -> torch.Tensor:
        """The number, float32, of shape (rows,)."""
        return logits.float().reshape(len(logits))

    def decode(
        self,
        kept: np.ndarray,
        encoded: Dataset,
        dataset: Dataset,
        tokenizer: PreTrainedTokenizerBase,
        labels: Sequence[str],
    ) -> list[Mapping[str, Any]]:
        """`score` of each row."""
        return [{"score": float(value)} for value in kept]

    def infer(self, model: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The number, float32, of shape (rows,)."""
        return self.reduce(first_output(model(**batch).logits))

    def references(self, dataset: Dataset, labels: Sequence[str]) -> list[Any]:
        """Each row's number."""
        return [_number(value) for value in dataset[self.label]]

    def score(self, answers: Sequence[Mapping[str, Any]], references: Sequence[Any]) -> dict[str, float]:
        """Correlations and errors."""
        return regression_metrics([answer["score"] for answer in answers], references)

    def statistics(self, answers: Sequence[Mapping[str, Any]], references: Sequence[Any]) -> Mapping[str, Statistic]:
        """The correlations of drawn rows."""
        return regression_statistics([answer["score"] for answer in answers], references)

    def said(self, answer: Mapping[str, Any]) -> str:
        """The number."""
        return f"{answer['score']:.3g}"

    def said_right(self, reference: Any) -> str:
        """The number."""
        return f"{reference:g}"


def _number(value: Any) -> float:
    """The number; also of its text, as a CSV has it where one cell of the column is empty; NaN for anything else."""
    try:
        return math.nan if value is None or isinstance(value, bool) else float(value)
    except (ValueError, TypeError):
        return math.nan
