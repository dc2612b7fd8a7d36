"""Base class of the tasks whose input is one text or a pair of texts."""

import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from datasets import Dataset
from transformers import (
    AutoModelForSequenceClassification,
    DataCollatorWithPadding,
    PreTrainedTokenizerBase,
)

from peftkit.tasks.base import ColumnSpec, ModelSpec, OutputKind, ProblemType
from peftkit.tasks.default import DefaultTask, find_text_problems


@dataclass(frozen=True, kw_only=True)
class TextTask(DefaultTask):
    """A task on a text or a pair of texts, with one classification head."""

    text: str = "text"
    text_pair: str | None = None
    label: str = "label"
    max_length: int = 128

    output_kind: ClassVar[OutputKind] = "sequence"

    @property
    def columns(self) -> ColumnSpec:
        """The text, or both texts of a pair, and the label."""
        return ColumnSpec(
            inputs=(self.text,) if self.text_pair is None else (self.text, self.text_pair),
            targets=(self.label,),
            fields=("text", "text_pair", "label"),
            input_fields=("text", "text_pair"),
            max_lengths={"max_length": self.max_length},
        )

    def validate(self, rows: Dataset, labels: Sequence[str] | None, where: str, first: int = 0) -> Iterator[str]:
        """Yield one line per text that is missing, empty or not a string, then the lines of `check_labels`."""
        for column in self.columns.inputs:
            yield from find_text_problems(rows, column, where, first)
        if labels is not None:
            yield from self.check_labels(rows, labels, where)

    def check_labels(self, rows: Dataset, labels: Sequence[str], where: str) -> Iterator[str]:
        """Yield one line per row whose label cannot be used."""
        raise NotImplementedError

    def token_lengths(self, rows: Dataset, tokenizer: PreTrainedTokenizerBase) -> Mapping[str, np.ndarray]:
        """Count the tokens of each row before truncation, special tokens included."""
        ids = tokenizer(*(rows[column][:] for column in self.columns.inputs), verbose=False)["input_ids"]
        return {"max_length": np.array([len(row) for row in ids])}

    def encode(self, rows: Dataset, tokenizer: PreTrainedTokenizerBase, labels: Sequence[str] | None) -> Dataset:
        """Return token ids of a text or a pair, with the longer text truncated first, and the labels."""
        inputs = self.columns.inputs
        encoded = rows.map(
            lambda batch: dict(
                tokenizer(*(batch[column] for column in inputs), truncation="longest_first", max_length=self.max_length)
            ),
            batched=True,
            remove_columns=rows.column_names,
            keep_in_memory=True,
            # Nothing is cached; without a fingerprint the tokenizer would be pickled to compute one.
            new_fingerprint=uuid.uuid4().hex,
        )
        return encoded if labels is None else self.encode_labels(encoded, rows, labels)

    def encode_labels(self, encoded: Dataset, rows: Dataset, labels: Sequence[str]) -> Dataset:
        """Add the column `labels` to the encoded rows."""
        raise NotImplementedError

    def collator(self, tokenizer: PreTrainedTokenizerBase, model: Any) -> Callable[[list[Any]], Any]:
        """Return a collator that pads to the longest row of the batch."""
        return DataCollatorWithPadding(tokenizer)


def make_text_classifier(
    problem_type: ProblemType, matches: Callable[[Any], bool], config_fields: Mapping[str, str] | None = None
) -> ModelSpec:
    """Return the model of a text task; `matches` checks whether a config has the head of the task."""

    def match(config: Any, length: int) -> Mapping[str, Any] | None:
        is_classifier = (config.architectures or [""])[0].endswith("ForSequenceClassification")
        return {"max_length": length} if is_classifier and matches(config) else None

    return ModelSpec(
        auto_class=AutoModelForSequenceClassification, peft_task_type="SEQ_CLS", problem_type=problem_type, match=match,
        config_fields=config_fields or {},
    )  # fmt: skip
