"""The Task protocol and the records that describe a task."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainingArguments

from peftkit.metrics.base import MetricSet

OutputKind = Literal["sequence", "tokens", "text"]
ProblemType = Literal["single_label_classification", "multi_label_classification", "regression"]


def set_pad_token(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Set the pad token in the model's config, which a classifier on a decoder needs."""
    model.config.pad_token_id = tokenizer.pad_token_id


@dataclass(frozen=True, kw_only=True)
class ColumnSpec:
    """The dataset columns of a task, with the task fields that name the columns and limit lengths.

    Attributes:
        inputs: Columns that the model reads.
        targets: Columns of the references. Training data must have `inputs` and `targets`.
        eval_only: Additional columns that validation and test must have.
        fields: Task fields that name columns.
        input_fields: The subset of `fields` that names `inputs`.
        max_lengths: Token limits by task field; the first one limits what the model reads.
        stratify: Column for stratified splits; None for a random split.
        has_words: Whether the input is a list of words instead of a text.
    """

    inputs: tuple[str, ...]
    targets: tuple[str, ...]
    fields: tuple[str, ...]
    input_fields: tuple[str, ...]
    max_lengths: Mapping[str, int]
    eval_only: tuple[str, ...] = ()
    stratify: str | None = None
    has_words: bool = False

    @property
    def required(self) -> tuple[str, ...]:
        """Columns that training data must have."""
        return (*self.inputs, *self.targets)

    @property
    def length_field(self) -> str:
        """The task field that limits what the model reads."""
        return next(iter(self.max_lengths))

    def texts(self, rows: Dataset) -> list[str]:
        """Return the input of each row as one string: words joined by spaces, several columns by tabs."""
        columns = zip(*(rows[column] for column in self.inputs), strict=True)
        return ["\t".join(" ".join(cell) if isinstance(cell, list) else str(cell) for cell in row) for row in columns]


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """The model that a task trains, and its head.

    Attributes:
        auto_class: The `transformers` auto class.
        peft_task_type: The task's name in `peft.TaskType`.
        problem_type: `config.problem_type` of a sequence classifier; None for other models.
        config_fields: Task fields that calibration sets, with their names in the model's config.
        match: Returns task fields for a checkpoint that was not trained by peftkit, from its config and its maximum
            number of tokens; None for a checkpoint of another task.
        tokenizer_options: Returns additional keywords of `from_pretrained` for a tokenizer.
        configure: Sets options of a loaded model that depend on the tokenizer and the task.
    """

    auto_class: Any
    peft_task_type: str
    problem_type: ProblemType | None = None
    config_fields: Mapping[str, str] = field(default_factory=dict)
    match: Callable[[Any, int], Mapping[str, Any] | None] = lambda config, length: None
    tokenizer_options: Callable[[PreTrainedTokenizerBase], Mapping[str, Any]] = lambda tokenizer: {}
    configure: Callable[[PreTrainedModel, PreTrainedTokenizerBase], None] = set_pad_token

    def head_config(self, labels: Sequence[str]) -> dict[str, Any]:
        """Return the keywords of `from_pretrained` for a head with these labels; empty without labels."""
        if not labels:
            return {}
        kind = {} if self.problem_type is None else {"problem_type": self.problem_type}
        if self.problem_type == "regression":
            # One output, even if a plan assumes more labels.
            labels = labels[:1]
        ids = {name: index for index, name in enumerate(labels)}
        return {"num_labels": len(labels), "id2label": dict(enumerate(labels)), "label2id": ids, **kind}


@dataclass(frozen=True, kw_only=True)
class TrainerSpec:
    """The Trainer of a task.

    Attributes:
        trainer_class: The Trainer class; `Seq2SeqTrainer` if evaluation generates text.
        arguments_class: The class of the training arguments.
        defaults: Training arguments that the task sets.
        supports_label_smoothing: Whether the task supports `label_smoothing_factor`.
    """

    trainer_class: type[Trainer] = Trainer
    arguments_class: type[TrainingArguments] = TrainingArguments
    defaults: Mapping[str, Any] = field(default_factory=dict)
    supports_label_smoothing: bool = False


@dataclass(frozen=True, kw_only=True)
class EncodedSplit:
    """The rows of one split with the model's inputs and outputs.

    Attributes:
        outputs: Results of `Task.postprocess`, one per encoded row.
        encoded: Model inputs from `Task.encode`; a long list of words may become several encoded rows.
        rows: Rows of the dataset.
        tokenizer: The tokenizer that encoded the rows.
        labels: Label names in the order of their ids.
    """

    outputs: np.ndarray
    encoded: Dataset
    rows: Dataset
    tokenizer: PreTrainedTokenizerBase
    labels: Sequence[str]


class Task(Protocol):
    """A task: its columns, model, trainer and metrics, and the steps from rows to predictions.

    Implementations are frozen data classes. Their methods must have these signatures, which the recipe parser compares.
    `rows` are rows of the dataset; a long list of words may become several encoded rows.
    """

    @property
    def output_kind(self) -> OutputKind:
        """One output per row (`sequence`), one per token (`tokens`), or generated text (`text`)."""
        ...

    @property
    def columns(self) -> ColumnSpec:
        """The dataset columns that the task reads."""
        ...

    @property
    def model(self) -> ModelSpec:
        """The model and its head."""
        ...

    @property
    def trainer(self) -> TrainerSpec:
        """The Trainer and its arguments."""
        ...

    @property
    def metrics(self) -> MetricSet:
        """The metrics of predictions."""
        ...

    def find_labels(self, train: Dataset) -> tuple[str, ...]:
        """Return the label names in the order of their ids; empty for a task without labels. Raises UserError."""
        ...

    def validate(self, rows: Dataset, labels: Sequence[str] | None, where: str, first: int = 0) -> Iterator[str]:
        """Yield one line per invalid row: `where`, row number, column, problem and fix.

        With `labels` None only the input columns are checked. `first` is the number of the first row.
        """
        ...

    def token_lengths(self, rows: Dataset, tokenizer: PreTrainedTokenizerBase) -> Mapping[str, np.ndarray]:
        """Count the tokens of each row before truncation, by the name of the field that limits the tokens."""
        ...

    def encode(self, rows: Dataset, tokenizer: PreTrainedTokenizerBase, labels: Sequence[str] | None) -> Dataset:
        """Return model inputs and label ids of the rows; only the inputs if `labels` is None, for prediction."""
        ...

    def collator(self, tokenizer: PreTrainedTokenizerBase, model: Any) -> Callable[[list[Any]], Any]:
        """Return the collator: a function that builds a padded batch from encoded rows."""
        ...

    def loss(self, train: Dataset, labels: Sequence[str], label_smoothing: float) -> Callable[..., Any] | None:
        """Return the Trainer's `compute_loss_func` for encoded rows; None for the loss of the model."""
        ...

    def postprocess(self, logits: torch.Tensor, *, detail: bool = False) -> torch.Tensor:
        """Reduce the logits or generated ids of a batch, on their device, to the outputs that `decode` reads.

        The outputs are small, because evaluation stores the outputs of a whole split. With `detail` the outputs contain
        everything that `decode(..., detail=True)` needs.
        """
        ...

    def calibrate(self, split: EncodedSplit) -> Any:
        """Return the task with settings that are fitted on the validation split, such as thresholds."""
        ...

    def decode(self, split: EncodedSplit, *, detail: bool = False) -> list[Mapping[str, Any]]:
        """Return one prediction per row of the split.

        A prediction is a mapping such as `{"label": "sports"}`. With `detail` the prediction has all fields that
        `predict` writes, such as the probability of every label; the outputs must then come from
        `postprocess(..., detail=True)`.
        """
        ...

    def targets(self, rows: Dataset, labels: Sequence[str]) -> list[Any]:
        """Return the reference of each row: a label, labels, a number, tags or texts."""
        ...


def collect_settings(task: Task) -> dict[str, Any]:
    """Return the calibrated settings of a task under their names in the model's config."""
    values = {name: getattr(task, field_name) for field_name, name in task.model.config_fields.items()}
    return {name: value for name, value in values.items() if value is not None}


def restore_settings(task: Any, config: Any) -> Any:
    """Return the task with the calibrated settings from a model's config."""
    stored = {name: getattr(config, key, None) for name, key in task.model.config_fields.items()}
    return replace(task, **{name: value for name, value in stored.items() if value})
