"""What every task has in common that reads a text, or a pair of texts, as a whole."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from datasets import Dataset
from transformers import (
    AutoModelForSequenceClassification,
    DataCollatorWithPadding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from peftkit.tasks.default import PlainTask, blank_text, text_problems


@dataclass(frozen=True, kw_only=True)
class TextTask(PlainTask):
    """A text or a pair of texts in, one row of outputs of a classifier's head out."""

    text: str = "text"
    text_pair: str | None = None
    max_length: int = 128

    auto_model: ClassVar[Any] = AutoModelForSequenceClassification
    task_type: ClassVar[str] = "SEQ_CLS"
    input_fields: ClassVar[tuple[str, ...]] = ("text", "text_pair")
    length_fields: ClassVar[tuple[str, ...]] = ("max_length",)

    @property
    def inputs(self) -> tuple[str, ...]:
        """Columns of the text or the two texts."""
        return (self.text,) if self.text_pair is None else (self.text, self.text_pair)

    def input_problems(self, dataset: Dataset, where: str, first: int = 0) -> Iterator[str]:
        """A line for each row whose text is missing, empty or no text."""
        for column in self.inputs:
            yield from text_problems(dataset, column, where, first)

    def texts(self, dataset: Dataset) -> list[str]:
        """The text, or both with a tab between them."""
        return ["\t".join(map(str, row)) for row in zip(*(dataset[column] for column in self.inputs), strict=True)]

    def lengths(self, dataset: Dataset, tokenizer: PreTrainedTokenizerBase) -> Mapping[str, np.ndarray]:
        """Tokens of each row before anything is cut, special ones included."""
        ids = tokenizer(*(dataset[column][:] for column in self.inputs), verbose=False)["input_ids"]
        return {"max_length": np.array([len(row) for row in ids])}

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

    def blank_batch(self, rows: int, classes: int) -> dict[str, torch.Tensor]:
        """Texts of the full length, and a class each."""
        return {**blank_text(rows, self.max_length), "labels": torch.zeros(rows, dtype=torch.long)}

    def collator(self, tokenizer: PreTrainedTokenizerBase, model: Any) -> Callable[[list[Any]], Any]:
        """Pads to the longest row of the batch."""
        return DataCollatorWithPadding(tokenizer)


def is_text_classifier(config: Any) -> bool:
    """Whether a model's config names a class with one head for the whole text."""
    return (config.architectures or [""])[0].endswith("ForSequenceClassification")
