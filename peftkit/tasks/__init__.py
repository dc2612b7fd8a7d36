"""One file a task. A task knows its columns, its kind of model, how a row is encoded and how outputs are scored."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from peftkit.tasks.sequence_classification import SequenceClassification


class Task(Protocol):
    """What a run asks of a task; implemented by the frozen data classes of this package."""

    @property
    def auto_model(self) -> Any:
        """The `transformers` auto class of its models."""
        ...

    @property
    def task_type(self) -> str:
        """The task's name in `peft.TaskType`."""
        ...

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that training data must have."""
        ...

    def label_names(self, train: Dataset) -> tuple[str, ...]:
        """The labels, in the order of their ids."""
        ...

    def model_config(self, labels: Sequence[str]) -> dict[str, Any]:
        """Keywords of `from_pretrained` that give the model its head."""
        ...

    def encode(
        self, dataset: Dataset, tokenizer: PreTrainedTokenizerBase, labels: Sequence[str], where: str
    ) -> Dataset:
        """Model inputs, a row each in the same order; `where` names the split in errors."""
        ...

    def encode_inputs(self, dataset: Dataset, tokenizer: PreTrainedTokenizerBase, where: str) -> Dataset:
        """Model inputs without labels, for prediction."""
        ...

    def collator(self, tokenizer: PreTrainedTokenizerBase) -> Any:
        """What makes a padded batch of encoded rows."""
        ...

    def score(self, logits: np.ndarray, label_ids: np.ndarray) -> dict[str, float]:
        """Metrics of one split."""
        ...

    def intervals(self, logits: np.ndarray, label_ids: np.ndarray) -> dict[str, list[float]]:
        """95 % intervals of the same metrics, as `{metric}_ci95`."""
        ...

    def predictions(self, logits: np.ndarray, labels: Sequence[str]) -> list[Mapping[str, Any]]:
        """What is told of each row: its label and the probability of every label."""
        ...


__all__ = ["SequenceClassification", "Task"]
