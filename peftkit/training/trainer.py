"""The Trainer of a run: portable checkpoints, timed collator and TensorBoard files."""

import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import tensorboardX
import torch
from datasets import Dataset
from peft import PeftModel
from torch.utils.data import SequentialSampler
from transformers import (
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.integrations import (
    TensorBoardCallback,
)

from peftkit.checkpoints.trainer import PortableCheckpointTrainer
from peftkit.recipe.schema import Recipe
from peftkit.system.files import redact_home_in_text
from peftkit.system.logging import is_rank_zero
from peftkit.tasks.default import get_first_output
from peftkit.training.batch_size import ConstantGlobalBatchTrainer
from peftkit.training.callbacks import LogLineCallback, LogLineProgressCallback

TENSORBOARD = "tensorboard"


class TimedCollator:
    """Collator that measures the seconds spent on training batches of `model`."""

    def __init__(self, collate: Callable[[list[Any]], Any], model: torch.nn.Module) -> None:
        self.collate = collate
        self.model = model
        self.seconds = 0.0

    def __call__(self, rows: list[Any]) -> Any:
        """Collate the rows into a batch."""
        started = time.perf_counter()
        batch = self.collate(rows)
        if self.model.training:
            self.seconds += time.perf_counter() - started
        return batch


class RedactingSummaryWriter(tensorboardX.SummaryWriter):
    """TensorBoard writer that redacts the home folder in texts."""

    def add_text(self, tag: str, text_string: str, *args: Any, **kwargs: Any) -> None:
        """Write a text without the path of the home folder."""
        super().add_text(tag, redact_home_in_text(text_string), *args, **kwargs)


def _make_portable(kind: type[Trainer]) -> Any:
    return type(f"Portable{kind.__name__}", (ConstantGlobalBatchTrainer, PortableCheckpointTrainer, kind), {})


def build_trainer(
    recipe: Recipe,
    model: PreTrainedModel | PeftModel,
    arguments: TrainingArguments,
    tokenizer: PreTrainedTokenizerBase,
    encoded: Mapping[str, Dataset],
    labels: Sequence[str],
    compute_metrics: Callable[[EvalPrediction], dict[str, float]],
    callbacks: Sequence[TrainerCallback],
    resumed_step: int | None = None,
) -> PortableCheckpointTrainer:
    """Build the library's Trainer on the encoded splits `train` and `validation`.

    `compute_metrics` is called during training. The collator is a TimedCollator. A run resumed from `resumed_step`
    continues the TensorBoard curves of the earlier steps.
    """
    task = recipe.task
    trainer: PortableCheckpointTrainer = _make_portable(task.trainer.trainer_class)(
        model=cast(PreTrainedModel, model),
        args=arguments,
        data_collator=TimedCollator(task.collator(tokenizer, model), model),
        train_dataset=encoded["train"],
        eval_dataset=encoded["validation"],
        processing_class=tokenizer,
        compute_loss_func=task.loss(encoded["train"], labels, arguments.label_smoothing_factor),
        compute_metrics=compute_metrics,
        # Drop the hidden states of encoder-decoder classifiers, which would fill the memory.
        preprocess_logits_for_metrics=lambda logits, _: task.postprocess(get_first_output(logits)),
        callbacks=list(callbacks),
    )
    if trainer.pop_callback(TensorBoardCallback) is not None:
        place, writer = Path(str(arguments.output_dir)) / TENSORBOARD, None
        if is_rank_zero():
            if resumed_step is None:
                # Remove the curves of a failed attempt in this folder.
                shutil.rmtree(place, ignore_errors=True)
            writer = RedactingSummaryWriter(str(place), purge_step=None if resumed_step is None else resumed_step + 1)
        trainer.add_callback(TensorBoardCallback(writer))
    replace_log_output(trainer)
    # A sampler that groups by length would change the order, but predictions are assigned to rows by position.
    trainer._get_eval_sampler = SequentialSampler  # type: ignore[method-assign, assignment]
    return trainer


def replace_log_output(trainer: Trainer) -> None:
    """Print logs as lines, on rank 0 of all hosts; show a progress bar only on a terminal."""
    has_bar = trainer.pop_callback(ProgressCallback) is not None
    if trainer.pop_callback(PrinterCallback) is None and not has_bar:
        # A notebook has a display.
        return
    if is_rank_zero():
        trainer.add_callback(LogLineProgressCallback if has_bar and sys.stderr.isatty() else LogLineCallback)
