"""The Task protocol: what a run needs of a task."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainingArguments

from peftkit.metrics.bootstrap import Statistic


class Task(Protocol):
    """What a run asks of a task; implemented by the frozen data classes of this package.

    Rows are the data set's; what a model reads is *encoded* (a long document may be several encoded rows). An answer
    is what is told of a row: a mapping of the task's own words, such as `label`, `tags` or `text`.
    """

    @property
    def auto_model(self) -> Any:
        """The `transformers` auto class of its models."""
        ...

    @property
    def task_type(self) -> str:
        """The task's name in `peft.TaskType`."""
        ...

    @property
    def trainer_class(self) -> type[Trainer]:
        """The library's trainer: `Seq2SeqTrainer` where evaluation generates."""
        ...

    @property
    def arguments_class(self) -> type[TrainingArguments]:
        """The training arguments that its trainer asks for."""
        ...

    @property
    def arguments(self) -> Mapping[str, Any]:
        """Training arguments that the task itself sets."""
        ...

    @property
    def main_metrics(self) -> tuple[str, ...]:
        """The metrics that a table shows; the first is the one a picture shows."""
        ...

    @property
    def label_smoothing(self) -> bool:
        """Whether `label_smoothing_factor` has a meaning here."""
        ...

    @classmethod
    def of_model(cls, config: Any, length: int) -> Any:
        """The task of a model that was trained elsewhere, reading `length` tokens; None if its config is another's."""
        ...

    @property
    def input_fields(self) -> tuple[str, ...]:
        """The task's fields that name the columns of `inputs`."""
        ...

    @property
    def length_fields(self) -> tuple[str, ...]:
        """The task's fields that limit tokens; the first is of what the model reads."""
        ...

    @property
    def too_long(self) -> str:
        """What happens to rows of more tokens."""
        ...

    @property
    def balance_hint(self) -> str:
        """What helps where classes are rare; a clause, or nothing."""
        ...

    @property
    def inputs(self) -> tuple[str, ...]:
        """Columns that prediction reads."""
        ...

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that training data must have."""
        ...

    @property
    def scored_columns(self) -> tuple[str, ...]:
        """Columns that validation and test must have besides."""
        ...

    @property
    def column_fields(self) -> tuple[str, ...]:
        """The task's fields that name columns."""
        ...

    @property
    def stratify_by(self) -> str | None:
        """The column by which rows are held out in proportion."""
        ...

    def find_labels(self, train: Dataset) -> tuple[str, ...]:
        """The labels, in the order of their ids; none for a task without labels. Raises UserError."""
        ...

    def problems(self, dataset: Dataset, labels: Sequence[str], where: str) -> Iterator[str]:
        """A line for each row that can't be used, naming `where`, row and column, and what to do."""
        ...

    def input_problems(self, dataset: Dataset, where: str, first: int = 0) -> Iterator[str]:
        """The same, of rows without labels; `first` is the number of the first one."""
        ...

    def row_of(self, given: Any) -> Mapping[str, Any]:
        """The row that a bare text, or several texts, stands for. Raises UserError for too many or too few."""
        ...

    def texts(self, dataset: Dataset) -> list[str]:
        """What a row asks, as one string: rows of equal strings are duplicates."""
        ...

    def class_names(self, labels: Sequence[str]) -> tuple[str, ...]:
        """What is counted as a class."""
        ...

    def same_answer(self, right: Any) -> str:
        """A string that two right answers share only if they are the same."""
        ...

    def class_counts(self, references: Sequence[Any]) -> Mapping[str, int]:
        """How often each class is the right answer; empty for a task without classes."""
        ...

    def lengths(self, dataset: Dataset, tokenizer: PreTrainedTokenizerBase) -> Mapping[str, np.ndarray]:
        """Tokens of each row before anything is cut, by the name of the field that limits them."""
        ...

    def entities_cut(
        self, dataset: Dataset, tokenizer: PreTrainedTokenizerBase, references: Sequence[Any]
    ) -> tuple[int, int] | None:
        """How many entities the model never reads whole, and how many there are; None for a task without entities."""
        ...

    def tokenizer_options(self, tokenizer: PreTrainedTokenizerBase) -> Mapping[str, Any]:
        """Keywords with which to load this tokenizer anew; empty when it is right as it is."""
        ...

    def model_config(self, labels: Sequence[str]) -> Mapping[str, Any]:
        """Keywords of `from_pretrained` that give the model its head."""
        ...

    def prepare(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Settings of the model that follow from the tokenizer and the task."""
        ...

    def encode(self, dataset: Dataset, tokenizer: PreTrainedTokenizerBase, labels: Sequence[str]) -> Dataset:
        """Model inputs and labels."""
        ...

    def encode_inputs(self, dataset: Dataset, tokenizer: PreTrainedTokenizerBase) -> Dataset:
        """Model inputs without labels, for prediction."""
        ...

    def collator(self, tokenizer: PreTrainedTokenizerBase, model: Any) -> Callable[[list[Any]], Any]:
        """What makes a padded batch of encoded rows."""
        ...

    def loss(self, train: Dataset, labels: Sequence[str], label_smoothing: float) -> Callable[..., Any] | None:
        """The Trainer's `compute_loss_func` on encoded training rows; None for the model's own loss."""
        ...

    def blank_batch(self, rows: int, classes: int) -> dict[str, torch.Tensor]:
        """A collated batch of `rows` rows, each as long as it may be, whose values mean nothing."""
        ...

    def held_out(self, batch: Mapping[str, torch.Tensor], config: Any) -> Mapping[str, torch.Tensor]:
        """Of a batch, what an export is proven on; small enough to be kept with the run."""
        ...

    def same(self, logits: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """Whether two models' logits, of shape (..., labels), name the same answer; true and false."""
        ...

    def divergence(self, logits: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        """How far logits of shape (..., labels) are from those of a reference, of shape (...)."""
        ...

    def reduce(self, logits: torch.Tensor) -> torch.Tensor:
        """What evaluation keeps of a batch's logits, on their device: never the logits of a whole split."""
        ...

    def fitted(self, kept: np.ndarray, encoded: Dataset, labels: Sequence[str]) -> Any:
        """The task with what it learns from validation, such as thresholds."""
        ...

    def settings(self) -> Mapping[str, Any]:
        """What a fitted task leaves in the model's config, for those who load the model."""
        ...

    def restored(self, config: Any) -> Any:
        """The task with the settings that a model's config holds."""
        ...

    def decode(
        self,
        kept: np.ndarray,
        encoded: Dataset,
        dataset: Dataset,
        tokenizer: PreTrainedTokenizerBase,
        labels: Sequence[str],
    ) -> list[Mapping[str, Any]]:
        """An answer for each row of `dataset`, from what was kept of the encoded rows."""
        ...

    def infer(self, model: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """What prediction keeps of a batch: as `reduce`, or more where an answer tells more."""
        ...

    def answer(
        self,
        kept: np.ndarray,
        encoded: Dataset,
        dataset: Dataset,
        tokenizer: PreTrainedTokenizerBase,
        labels: Sequence[str],
    ) -> list[Mapping[str, Any]]:
        """As `decode`, from what `infer` kept."""
        ...

    def references(self, dataset: Dataset, labels: Sequence[str]) -> list[Any]:
        """The right answer of each row, in the task's own words."""
        ...

    def score(self, answers: Sequence[Mapping[str, Any]], references: Sequence[Any]) -> dict[str, float]:
        """Metrics of one split."""
        ...

    def statistics(self, answers: Sequence[Mapping[str, Any]], references: Sequence[Any]) -> Mapping[str, Statistic]:
        """The main metrics as functions of drawn rows, the first of them at least."""
        ...

    def intervals(self, answers: Sequence[Mapping[str, Any]], references: Sequence[Any]) -> dict[str, list[float]]:
        """95 % intervals of the main ones, as `{metric}_ci95`."""
        ...

    def class_scores(
        self, answers: Sequence[Mapping[str, Any]], references: Sequence[Any]
    ) -> Mapping[str, Mapping[str, float]]:
        """`precision`, `recall`, `f1` and `rows` of each class; empty for a task without classes."""
        ...

    def confusions(
        self, answers: Sequence[Mapping[str, Any]], references: Sequence[Any]
    ) -> Mapping[tuple[str, str], int]:
        """How often, by the class that was right and the class that was answered; empty where there is no such pair."""
        ...

    def said(self, answer: Mapping[str, Any]) -> str:
        """An answer in a line, for people."""
        ...

    def said_right(self, reference: Any) -> str:
        """The right answer in a line."""
        ...

    def is_right(self, answer: Mapping[str, Any], reference: Any) -> bool:
        """Whether the answer as a whole is the right one."""
        ...
