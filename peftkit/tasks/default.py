"""What most tasks have in common: a plain Trainer, the model's own loss, nothing learned from validation."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase, Trainer, TrainingArguments

from peftkit.errors import UserError
from peftkit.metrics.bootstrap import bootstrap_intervals

# The label of a token that neither loss nor score counts.
IGNORED = -100
Self = TypeVar("Self", bound="PlainTask")


class PlainTask:
    """The answers of a task that needs nothing beyond the usual; each is told of in the protocol `Task`."""

    trainer_class: ClassVar[type[Trainer]] = Trainer
    arguments_class: ClassVar[type[TrainingArguments]] = TrainingArguments
    arguments: ClassVar[Mapping[str, Any]] = {}
    too_long: ClassVar[str] = "are cut"
    balance_hint: ClassVar[str] = ""

    @property
    def scored_columns(self) -> tuple[str, ...]:
        """None."""
        return ()

    @property
    def stratify_by(self) -> str | None:
        """None: at random."""
        return None

    def class_names(self, labels: Sequence[str]) -> tuple[str, ...]:
        """The labels."""
        return tuple(labels)

    def same_answer(self, right: Any) -> str:
        """Itself, as JSON."""
        return json.dumps(right)

    def entities_cut(
        self, dataset: Dataset, tokenizer: PreTrainedTokenizerBase, references: Sequence[Any]
    ) -> tuple[int, int] | None:
        """No entities."""
        return None

    def tokenizer_options(self, tokenizer: PreTrainedTokenizerBase) -> Mapping[str, Any]:
        """Any tokenizer is right as it is."""
        return {}

    def loss(self, train: Dataset, labels: Sequence[str], label_smoothing: float) -> Callable[..., Any] | None:
        """The model's own."""
        return None

    def held_out(self, batch: Mapping[str, torch.Tensor], config: Any) -> Mapping[str, torch.Tensor]:
        """The whole batch."""
        return batch

    def same(self, logits: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """Whether the largest logits are of the same class."""
        return logits.argmax(-1) == other.argmax(-1)

    def divergence(self, logits: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        """Kullback-Leibler divergence of the softmax from that of the reference, in nats."""
        given, right = logits.log_softmax(-1), reference.log_softmax(-1)
        # Rounding can leave a sum that is barely below zero.
        return torch.nn.functional.kl_div(given, right, log_target=True, reduction="none").sum(-1).clamp(min=0)

    def row_of(self: Any, given: Any) -> Mapping[str, Any]:
        """A text for each input column, in their order."""
        texts = given if isinstance(given, list | tuple) else [given]
        if len(texts) != len(self.inputs):
            raise UserError(f"{len(texts)} texts given where the model reads {', '.join(self.inputs)}")
        return dict(zip(self.inputs, texts, strict=True))

    def fitted(self: Self, kept: np.ndarray, encoded: Dataset, labels: Sequence[str]) -> Self:
        """Nothing is learned from validation."""
        return self

    def settings(self) -> Mapping[str, Any]:
        """Nothing beyond the labels."""
        return {}

    def restored(self: Self, config: Any) -> Self:
        """Nothing is kept in the config."""
        return self

    def answer(
        self: Any,
        kept: np.ndarray,
        encoded: Dataset,
        dataset: Dataset,
        tokenizer: PreTrainedTokenizerBase,
        labels: Sequence[str],
    ) -> list[Mapping[str, Any]]:
        """No more than evaluation tells."""
        return self.decode(kept, encoded, dataset, tokenizer, labels)

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


def text_problems(dataset: Dataset, column: str, where: str, first: int = 0) -> Iterator[str]:
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


def blank_text(rows: int, length: int) -> dict[str, torch.Tensor]:
    """Token ids and their mask, `rows` x `length`, without padding."""
    return {name: torch.ones(rows, length, dtype=torch.long) for name in ("input_ids", "attention_mask")}
