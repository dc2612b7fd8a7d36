"""Task: predict a number for a text or a pair of texts."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset

from peftkit.metrics.base import MetricSet
from peftkit.metrics.regression import METRICS
from peftkit.tasks.base import EncodedSplit, ModelSpec
from peftkit.tasks.default import locate_cell
from peftkit.tasks.text import TextTask, make_text_classifier


@dataclass(frozen=True, kw_only=True)
class SequenceRegression(TextTask):
    """A number for a text or for a pair of texts.

    Args:
        text: Column of the text.
        text_pair: Column of the second text, if rows are pairs.
        label: Column of the number.
        max_length: Maximum number of tokens of a text or a pair; longer inputs are truncated.
    """

    @property
    def metrics(self) -> MetricSet:
        """Correlations and errors; a prediction is correct if it equals the reference to three digits."""
        return self.build_metrics(
            METRICS,
            main=("pearson", "spearman"),
            is_correct=lambda prediction, target: f"{prediction['score']:.3g}" == f"{target:g}",
        )

    @property
    def model(self) -> ModelSpec:
        """A regression model with one output."""
        return make_text_classifier(
            "regression",
            lambda config: (
                (config.num_labels == 1 and config.problem_type is None) or config.problem_type == "regression"
            ),
        )

    def find_labels(self, train: Dataset) -> tuple[str, ...]:
        """Return one name: the name of the label column."""
        return (self.label,)

    def check_labels(self, rows: Dataset, labels: Sequence[str], where: str) -> Iterator[str]:
        """Yield one line per row whose label is not a finite number."""
        for row, value in enumerate(rows[self.label]):
            if not math.isfinite(_parse_number(value)):
                shown = "null" if value is None else f"'{value}'"
                location = locate_cell(where, row, self.label)
                yield f"{location}: expected a finite number, got {shown}; correct it or remove the row"

    def encode_labels(self, encoded: Dataset, rows: Dataset, labels: Sequence[str]) -> Dataset:
        """Add the number of each row."""
        return encoded.add_column("labels", self.targets(rows, labels))

    def postprocess(self, logits: torch.Tensor, *, detail: bool = False) -> torch.Tensor:
        """Return the predicted number of each row in float32, (rows,)."""
        return logits.float().reshape(len(logits))

    def decode(self, split: EncodedSplit, *, detail: bool = False) -> list[Mapping[str, Any]]:
        """Return the `score` of each row."""
        return [{"score": float(value)} for value in split.outputs]

    def targets(self, rows: Dataset, labels: Sequence[str]) -> list[Any]:
        """Return the number of each row."""
        return [_parse_number(value) for value in rows[self.label]]


def _parse_number(value: Any) -> float:
    """Return the number of a cell or of its text; NaN for anything else."""
    try:
        return math.nan if value is None or isinstance(value, bool) else float(value)
    except (ValueError, TypeError):
        return math.nan
