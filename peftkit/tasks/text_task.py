"""What every task has in common that reads a text, or a pair of texts, as a whole."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from datasets import Dataset
from transformers import (
    AutoModelForSequenceClassification,
    DataCollatorWithPadding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
)

Self = TypeVar("Self", bound="TextTask")


@dataclass(frozen=True, kw_only=True)
class TextTask:
    """A text or a pair of texts in, one row of outputs of a classifier's head out."""

    text: str = "text"
    text_pair: str | None = None
    max_length: int = 128

    auto_model: ClassVar[Any] = AutoModelForSequenceClassification
    task_type: ClassVar[str] = "SEQ_CLS"
    trainer_class: ClassVar[type[Trainer]] = Trainer
    arguments_class: ClassVar[type[TrainingArguments]] = TrainingArguments
    arguments: ClassVar[Mapping[str, Any]] = {}
    scored_columns: ClassVar[tuple[str, ...]] = ()

    @property
    def inputs(self) -> tuple[str, ...]:
        """Columns of the text or the two texts."""
        return (self.text,) if self.text_pair is None else (self.text, self.text_pair)

    def input_problems(self, dataset: Dataset, where: str) -> Iterator[str]:
        """A line for each row whose text is missing, empty or no text."""
        for column in self.inputs:
            yield from text_problems(dataset, column, where)

    def texts(self, dataset: Dataset) -> list[str]:
        """The text, or both with a tab between them."""
        return ["\t".join(map(str, row)) for row in zip(*(dataset[column] for column in self.inputs), strict=True)]

    def lengths(self, dataset: Dataset, tokenizer: PreTrainedTokenizerBase) -> Mapping[str, np.ndarray]:
        """Tokens of each row before anything is cut, special ones included."""
        ids = tokenizer(*(dataset[column][:] for column in self.inputs), verbose=False)["input_ids"]
        return {"max_length": np.array([len(row) for row in ids])}

    def entities_cut(
        self, dataset: Dataset, tokenizer: PreTrainedTokenizerBase, references: Sequence[Any]
    ) -> tuple[int, int] | None:
        """A text has no entities."""
        return None

    def tokenizer_options(self, tokenizer: PreTrainedTokenizerBase) -> Mapping[str, Any]:
        """Any tokenizer is right as it is."""
        return {}

    def prepare(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """The same pad token in config and tokenizer: a decoder's classifier reads the last token that is none."""
        model.config.pad_token_id = tokenizer.pad_token_id

    def encode_inputs(self, dataset: Dataset, tokenizer: PreTrainedTokenizerBase) -> Dataset:
        """Token ids of a text, or of two as the tokenizer's own pair; the longer one is cut first."""
        return dataset.map(
            lambda batch: dict(
                tokenizer(
                    *(batch[column] for column in self.inputs), truncation="longest_first", max_length=self.max_length
                )
            ),
            batched=True,
            remove_columns=dataset.column_names,
            keep_in_memory=True,
        )

    def collator(self, tokenizer: PreTrainedTokenizerBase, model: Any) -> Callable[[list[Any]], Any]:
        """Pads to the longest row of the batch."""
        return DataCollatorWithPadding(tokenizer)

    def loss(self, train: Dataset, labels: Sequence[str], label_smoothing: float) -> Callable[..., Any] | None:
        """The model's own."""
        return None

    def held_out(self, batch: Mapping[str, torch.Tensor], config: Any) -> Mapping[str, torch.Tensor]:
        """The whole batch."""
        return batch

    def fitted(self: Self, kept: np.ndarray, encoded: Dataset, labels: Sequence[str]) -> Self:
        """Nothing is learned from validation."""
        return self

    def settings(self) -> Mapping[str, Any]:
        """Nothing beyond the labels."""
        return {}

    def restored(self: Self, config: Any) -> Self:
        """Nothing is kept in the config."""
        return self


def text_problems(dataset: Dataset, column: str, where: str) -> Iterator[str]:
    """A line for each row of a column whose text is missing, empty or no text."""
    for row, text in enumerate(dataset[column]):
        if not isinstance(text, str) or not text.strip():
            found = "empty" if isinstance(text, str) else f"{type(text).__name__}, not text"
            yield f"{at(where, row, column)}: {found}; correct it or remove the row"


def at(where: str, row: int, column: str) -> str:
    """Where in the data something is, for an error's one line."""
    return f"{where}, row {row} (from 0), column '{column}'"


def reduced_loss(losses: torch.Tensor, num_items_in_batch: Any) -> torch.Tensor:
    """The mean, or the share of a mean over all micro-batches and ranks that the Trainer asks for."""
    return losses.mean() if num_items_in_batch is None else losses.sum() / num_items_in_batch


def first_output(output: Any) -> Any:
    """The logits of a model that returns them alone or first of several."""
    return output[0] if isinstance(output, tuple | list) else output
