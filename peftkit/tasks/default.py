"""What most tasks have in common: a plain Trainer, the model's own loss, nothing learned from validation."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

import torch
from datasets import Dataset

from peftkit.metrics.bootstrap import bootstrap_intervals
from peftkit.tasks.base import EncodedSplit, TrainerSpec

# The label of a token that neither loss nor score counts.
IGNORED = -100
Self = TypeVar("Self", bound="PlainTask")


class PlainTask:
    """The answers of a task that needs nothing beyond the usual; each is told of in the protocol `Task`."""

    trainer: ClassVar[TrainerSpec] = TrainerSpec()

    def class_names(self, labels: Sequence[str]) -> tuple[str, ...]:
        """The labels."""
        return tuple(labels)

    def loss(self, train: Dataset, labels: Sequence[str], label_smoothing: float) -> Callable[..., Any] | None:
        """The model's own."""
        return None

    def calibrate(self: Self, split: EncodedSplit) -> Self:
        """Return the task unchanged."""
        return self

    def intervals(self: Any, answers: Sequence[Mapping[str, Any]], references: Sequence[Any]) -> dict[str, list[float]]:
        """95 % bootstrap intervals of its statistics."""
        return bootstrap_intervals(self.statistics(answers, references), len(references))

    def class_scores(
        self, answers: Sequence[Mapping[str, Any]], references: Sequence[Any]
    ) -> Mapping[str, Mapping[str, float]]:
        """No classes."""
        return {}

    def confusions(
        self, answers: Sequence[Mapping[str, Any]], references: Sequence[Any]
    ) -> Mapping[tuple[str, str], int]:
        """None is told."""
        return {}

    def said_right(self, reference: Any) -> str:
        """Itself."""
        return str(reference)

    def is_right(self: Any, answer: Mapping[str, Any], reference: Any) -> bool:
        """Whether both are said alike."""
        return self.said(answer) == self.said_right(reference)


def find_text_problems(dataset: Dataset, column: str, where: str, first: int = 0) -> Iterator[str]:
    """A line for each row of a column whose text is missing, empty or no text; `first` is the first row's number."""
    for row, text in enumerate(dataset[column], first):
        if not isinstance(text, str) or not text.strip():
            found = "empty" if isinstance(text, str) else f"{kind_of(text)}, not text"
            yield f"{at(where, row, column)}: {found}; correct it or remove the row"


def kind_of(value: Any) -> str:
    """What a value that was not expected is, in a word of the data's."""
    return "null" if value is None else type(value).__name__


def at(where: str, row: int, column: str) -> str:
    """Where in the data something is, for an error's one line."""
    return f"{where}, row {row} (from 0), column '{column}'"


def reduced_loss(losses: torch.Tensor, num_items_in_batch: Any) -> torch.Tensor:
    """The mean, or the share of a mean over all micro-batches and ranks that the Trainer asks for."""
    return losses.mean() if num_items_in_batch is None else losses.sum() / num_items_in_batch


def first_output(output: Any) -> Any:
    """The logits of a model that returns them alone or first of several."""
    return output[0] if isinstance(output, tuple | list) else output
