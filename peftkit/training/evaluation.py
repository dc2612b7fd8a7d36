"""Evaluation step: predictions and metrics of validation and test."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from peftkit.data.splits import Splits
from peftkit.system.logging import is_rank_zero
from peftkit.tasks import EncodedSplit, Task
from peftkit.tasks.default import get_first_output
from peftkit.training.preparation import PreparedData


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """Conversion of evaluation outputs into predictions and metrics.

    Attributes:
        task: The task of the recipe; after `calibrate` the calibrated task.
        splits: The rows with references.
        encoded: The tokenized rows by split.
        tokenizer: The tokenizer of the model.
    """

    task: Task
    splits: Splits
    encoded: Mapping[str, Dataset]
    tokenizer: PreTrainedTokenizerBase

    def _make_encoded_split(self, name: str, outputs: Any) -> EncodedSplit:
        # With several ranks the last batch is padded with rows from the start of the split.
        found, encoded = np.asarray(get_first_output(outputs)), self.encoded[name]
        assert len(found) >= len(encoded), f"evaluation of {name} returned {len(found)} of {len(encoded)} rows"
        return EncodedSplit(
            outputs=found[: len(encoded)], encoded=encoded, rows=self.splits.rows[name], tokenizer=self.tokenizer,
            labels=self.splits.labels,
        )  # fmt: skip

    def calibrate(self, outputs: Any) -> "Scoring":
        """Return the scoring with the task calibrated on the outputs of validation."""
        return replace(self, task=self.task.calibrate(self._make_encoded_split("validation", outputs)))

    def predict(self, split: str, outputs: Any) -> list[Mapping[str, Any]]:
        """Return one prediction per row of the split."""
        return self.task.decode(self._make_encoded_split(split, outputs))

    def find_references(self, split: str) -> list[Any]:
        """Return the reference of each row."""
        return self.task.targets(self.splits.rows[split], self.splits.labels)

    def score(self, split: str, predictions: list[Mapping[str, Any]]) -> dict[str, Any]:
        """Return the metrics of the split; for test also the intervals."""
        references = self.find_references(split)
        found: dict[str, Any] = dict(self.task.metrics.compute(predictions, references))
        return found | self.task.metrics.intervals(predictions, references) if split == "test" else found


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Predictions and metrics of the trained model, on rank 0.

    Attributes:
        task: Task calibrated on validation.
        predictions: One prediction per row, by split.
        references: References of the test rows; empty for a trial.
        metrics: Loss and metrics by split; for test also intervals.
        seconds: Time for predictions and metrics.
    """

    task: Task
    predictions: Mapping[str, list[Mapping[str, Any]]]
    references: list[Any]
    metrics: Mapping[str, dict[str, Any]]
    seconds: float


def evaluate(task: Task, data: PreparedData, trainer: Any, splits: Sequence[str]) -> Evaluation | None:
    """Calibrate the task on validation, and compute predictions and metrics of `splits`.

    Every rank participates. Returns None on ranks other than 0.
    """
    started = time.perf_counter()
    # The calibrated task computes the metrics below.
    trainer.compute_metrics = None
    outputs = {split: trainer.predict(data.encoded[split], metric_key_prefix=split) for split in splits}
    if not is_rank_zero():
        return None
    scoring = Scoring(task=task, splits=data.splits, encoded=data.encoded, tokenizer=data.tokenizer)
    calibrated = scoring.calibrate(outputs["validation"].predictions)
    predictions = {split: calibrated.predict(split, outputs[split].predictions) for split in splits}
    metrics = {
        split: _select_loss(outputs[split].metrics or {}, split) | calibrated.score(split, predictions[split])
        for split in splits
    }
    return Evaluation(
        task=calibrated.task, predictions=predictions, metrics=metrics,
        references=calibrated.find_references("test") if "test" in splits else [],
        seconds=time.perf_counter() - started,
    )  # fmt: skip


def _select_loss(metrics: Mapping[str, float], split: str) -> dict[str, Any]:
    return {"loss": metrics[f"{split}_loss"]} if f"{split}_loss" in metrics else {}
