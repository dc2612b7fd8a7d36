"""From what evaluation kept of a split to answers and metrics, in the words of the data."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from peftkit.data.splits import Splits
from peftkit.tasks import Task
from peftkit.tasks.default import first_output


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """One run's data and task, to score what its model makes of a split.

    Attributes:
        task: The recipe's, or fitted to validation.
        splits: The rows, with the right answers.
        encoded: What the model read, by split.
        tokenizer: What encoded it.
    """

    task: Task
    splits: Splits
    encoded: Mapping[str, Dataset]
    tokenizer: PreTrainedTokenizerBase

    def _kept(self, split: str, kept: Any) -> np.ndarray:
        # With several ranks the last batch is filled up with rows from the start.
        found, rows = np.asarray(first_output(kept)), len(self.encoded[split])
        assert len(found) >= rows, f"evaluation of {split} kept {len(found)} of {rows} rows"
        return found[:rows]

    def fitted(self, kept: Any) -> "Scoring":
        """With what the task learns from its outputs on validation."""
        split = "validation"
        task = self.task.fitted(self._kept(split, kept), self.encoded[split], self.splits.labels)
        return replace(self, task=task)

    def answers(self, split: str, kept: Any) -> list[Mapping[str, Any]]:
        """An answer a row of the split."""
        return self.task.decode(
            self._kept(split, kept), self.encoded[split], self.splits.rows[split], self.tokenizer, self.splits.labels
        )

    def references(self, split: str) -> list[Any]:
        """The right answer of each row."""
        return self.task.references(self.splits.rows[split], self.splits.labels)

    def metrics(self, split: str, answers: list[Mapping[str, Any]]) -> dict[str, Any]:
        """Metrics of the split; for test with their intervals."""
        references = self.references(split)
        found: dict[str, Any] = dict(self.task.score(answers, references))
        return found | self.task.intervals(answers, references) if split == "test" else found
