"""Recipe to TrainingArguments to the Trainer of `transformers`."""

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
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
    get_available_reporting_integrations,
    get_reporting_integration_callbacks,
)

from peftkit.checkpoints.trainer import PortableCheckpointTrainer
from peftkit.distributed import process_group as distributed
from peftkit.errors import UserError
from peftkit.recipe.method import usual_learning_rate
from peftkit.recipe.schema import Recipe
from peftkit.system.files import redact_home_in_text
from peftkit.system.logging import is_rank_zero, logger
from peftkit.tasks.default import first_output
from peftkit.training.batch_size import KeepsGlobalBatch

TENSORBOARD = "tensorboard"
# Words of the Trainer's whose other value leaves rows of an evaluation without an answer.
NEEDED_TO_SCORE = {
    "predict_with_generate": True,
    "prediction_loss_only": False,
    "eval_do_concat_batches": True,
    "batch_eval_metrics": False,
    "dataloader_drop_last": False,
}


def training_arguments(recipe: Recipe, output_dir: Path) -> TrainingArguments:
    """The recipe's `training`, with peftkit's choices where it names none, and the ranks joined.

    Without a word of the recipe: the method's usual learning rate, TensorBoard's files as the tracker, no checkpoints,
    the loss logged every 10 steps. Raises UserError for what TrainingArguments refuses.
    """
    given = dict(recipe.training)
    if given.get("label_smoothing_factor") and not recipe.task.label_smoothing:
        raise UserError(
            f"training.label_smoothing_factor: has no meaning for {type(recipe.task).__name__}; leave it out"
        )
    for word, needed in NEEDED_TO_SCORE.items():
        if given.get(word, needed) != needed:
            raise UserError(
                f"training.{word}: must be {str(needed).lower()}, or evaluation would lose its answers; leave it out"
            )
    if given.get("resume_from_checkpoint"):
        raise UserError("training.resume_from_checkpoint: is not used; pass --resume PATH instead")
    if given.get("auto_find_batch_size") and distributed.processes() > 1:
        raise UserError("training.auto_find_batch_size: one rank can't try again without the others; name the batch")
    use_cpu = bool(given.get("use_cpu")) or not torch.accelerator.is_available()
    chosen: dict[str, Any] = {
        # Files in the run's folder; nothing is sent.
        "report_to": "tensorboard",
        "run_name": recipe.name,
        "save_strategy": "no",
        "logging_steps": 10,
        "logging_first_step": True,
        # A loss that is no number is told, not replaced by the mean.
        "logging_nan_inf_filter": False,
        "include_num_input_tokens_seen": "non_padding",
        "remove_unused_columns": False,
        "label_names": ["labels"],
        "dataloader_pin_memory": not use_cpu,
        # With the reentrant kind and a frozen base no gradient reaches an adapter, and only the head trains.
        "activation_checkpointing_kwargs": {"use_reentrant": False},
    }
    if "learning_rate" not in given:
        chosen["learning_rate"] = usual_learning_rate(recipe.method)
        logger.info("training.learning_rate not given: %g, usual for %s", chosen["learning_rate"], recipe.method.name)
    if given.get("deepspeed") is not None:
        given["deepspeed"] = distributed.deepspeed_config(given["deepspeed"])
    timeout = timedelta(seconds=given.get("ddp_timeout", TrainingArguments.ddp_timeout))
    distributed.start(deepspeed=given.get("deepspeed") is not None, use_cpu=use_cpu, timeout=timeout)
    distributed.check_quantized(recipe, given.get("deepspeed"))
    try:
        arguments = recipe.task.arguments_class(
            **{**chosen, **recipe.task.arguments, **given, "output_dir": str(output_dir), "use_cpu": use_cpu}
        )
    except (ValueError, TypeError, ImportError) as error:
        raise UserError(f"training: {' '.join(str(error).split())}") from error
    try:
        get_reporting_integration_callbacks(arguments.report_to)
    except ValueError as error:
        raise UserError(f"training.report_to: {' '.join(str(error).split())}") from error
    for tracker in arguments.report_to or ():
        if tracker not in (*get_available_reporting_integrations(), "flyte"):
            raise UserError(f"training.report_to: {tracker} is not installed; pip install {tracker}, or name another")
    if arguments.n_gpu > 1:
        # The Trainer would spread some methods over them by DataParallel and others not, with another batch size.
        logger.info("%d GPUs seen, 1 used; start with torchrun or deepspeed to use all", arguments.n_gpu)
        arguments._n_gpu = 1
    return arguments


class TimedCollator:
    """A collator and the seconds that it took for batches that `model` was trained on."""

    def __init__(self, collate: Callable[[list[Any]], Any], model: torch.nn.Module) -> None:
        self.collate = collate
        self.model = model
        self.seconds = 0.0

    def __call__(self, rows: list[Any]) -> Any:
        """The batch of `rows`."""
        started = time.perf_counter()
        batch = self.collate(rows)
        if self.model.training:
            self.seconds += time.perf_counter() - started
        return batch


class HomelessWriter(tensorboardX.SummaryWriter):
    """TensorBoard's writer, which leaves the home folder out of the settings that it is given."""

    def add_text(self, tag: str, text_string: str, *args: Any, **kwargs: Any) -> None:
        """Write a text without the home folder's path."""
        super().add_text(tag, redact_home_in_text(text_string), *args, **kwargs)


def _resumable(kind: type[Trainer]) -> Any:
    return type(f"Resumable{kind.__name__}", (KeepsGlobalBatch, PortableCheckpointTrainer, kind), {})


def make_trainer(
    recipe: Recipe,
    model: PreTrainedModel | PeftModel,
    arguments: TrainingArguments,
    tokenizer: PreTrainedTokenizerBase,
    encoded: Mapping[str, Dataset],
    labels: Sequence[str],
    score: Callable[[EvalPrediction], dict[str, float]],
    callbacks: Sequence[TrainerCallback],
    resumed_step: int | None = None,
) -> PortableCheckpointTrainer:
    """The library's Trainer on encoded splits `train` and `validation`; `score` is asked during training.

    Its collator is a TimedCollator. A run that goes on from `resumed_step` keeps the curves drawn until there.
    """
    task = recipe.task
    trainer: PortableCheckpointTrainer = _resumable(task.trainer_class)(
        model=cast(PreTrainedModel, model),
        args=arguments,
        data_collator=TimedCollator(task.collator(tokenizer, model), model),
        train_dataset=encoded["train"],
        eval_dataset=encoded["validation"],
        processing_class=tokenizer,
        compute_loss_func=task.loss(encoded["train"], labels, arguments.label_smoothing_factor),
        compute_metrics=score,
        # Encoder-decoder classifiers return hidden states beside the logits; keeping those would fill the memory.
        preprocess_logits_for_metrics=lambda logits, _: task.reduce(first_output(logits)),
        callbacks=list(callbacks),
    )
    if trainer.pop_callback(TensorBoardCallback) is not None:
        place, writer = Path(str(arguments.output_dir)) / TENSORBOARD, None
        if is_rank_zero():
            if resumed_step is None:
                # An attempt that failed here would be drawn into this one's curves.
                shutil.rmtree(place, ignore_errors=True)
            writer = HomelessWriter(str(place), purge_step=None if resumed_step is None else resumed_step + 1)
        trainer.add_callback(TensorBoardCallback(writer))
    if not is_rank_zero():
        # The first rank of every host would show the same.
        for shown in (PrinterCallback, ProgressCallback):
            trainer.remove_callback(shown)
    # Grouped by length, evaluation too would come in a random order; answers belong to rows by their place.
    trainer._get_eval_sampler = SequentialSampler  # type: ignore[method-assign, assignment]
    return trainer
