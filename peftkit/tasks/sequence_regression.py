"""A text, or a pair of texts, has a number."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from datasets import Dataset

from peftkit.metrics.bootstrap import Statistic
from peftkit.metrics.regression import regression_metrics, regression_statistics
from peftkit.tasks.base import EncodedSplit, ModelSpec
from peftkit.tasks.default import at
from peftkit.tasks.text import TextTask, text_classifier


@dataclass(frozen=True, kw_only=True)
class SequenceRegression(TextTask):
    """A number for a text or for a pair of texts.

    Args:
        text: Column of the text.
        text_pair: Column of the second text, when rows are pairs.
        label: Column of the number.
        max_length: Tokens kept of a text or a pair.
    """

    main_metrics: ClassVar[tuple[str, ...]] = ("pearson", "spearman")

    @property
    def model(self) -> ModelSpec:
        """A model of one number."""
        return text_classifier(
            "regression",
            lambda config: (
                (config.num_labels == 1 and config.problem_type is None) or config.problem_type == "regression"
            ),
        )

    def find_labels(self, train: Dataset) -> tuple[str, ...]:
        """One output, called as its column."""
        return (self.label,)

    def check_labels(self, rows: Dataset, labels: Sequence[str], where: str) -> Iterator[str]:
        """Yield one line per row whose label is not a finite number."""
        for row, value in enumerate(rows[self.label]):
            if not math.isfinite(_number(value)):
                shown = "null" if value is None else f"'{value}'"
                yield f"{at(where, row, self.label)}: {shown} is not a finite number; correct it or remove the row"

    def class_counts(self, references: Sequence[Any]) -> Mapping[str, int]:
        """A number has no classes."""
        return {}

    def encode_labels(self, encoded: Dataset, rows: Dataset, labels: Sequence[str]) -> Dataset:
        """Return the encoded rows with the number of each."""
        return encoded.add_column("labels", self.targets(rows, labels))

    def postprocess(self, logits: torch.Tensor, *, detail: bool = False) -> torch.Tensor:
        """Return the predicted number of each row in float32, (rows,)."""
        return logits.float().reshape(len(logits))

    def decode(self, split: EncodedSplit, *, detail: bool = False) -> list[Mapping[str, Any]]:
        """Return the `score` of each row."""
        return [{"score": float(value)} for value in split.outputs]

    def targets(self, rows: Dataset, labels: Sequence[str]) -> list[Any]:
        """Return the number of each row."""
        return [_number(value) for value in rows[self.label]]

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
