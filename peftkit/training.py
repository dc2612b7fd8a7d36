"""Recipe to TrainingArguments to the Trainer of `transformers`, with the audit watching."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from datasets import Dataset
from peft import PeftModel
from torch.utils.data import SequentialSampler
from transformers import (
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from peftkit import distributed
from peftkit.audit import TrainingAudit
from peftkit.errors import UserError
from peftkit.log import logger
from peftkit.methods import usual_learning_rate
from peftkit.recipe import Recipe
from peftkit.tasks.plain_task import first_output

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

    Without a word of the recipe: the method's usual learning rate, no tracker, no checkpoints, the loss logged every
    10 steps. Raises UserError for what TrainingArguments refuses.
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
    use_cpu = bool(given.get("use_cpu")) or not torch.accelerator.is_available()
    chosen: dict[str, Any] = {
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 10,
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
    distributed.start(deepspeed=given.get("deepspeed") is not None, use_cpu=use_cpu)
    distributed.check_quantized(recipe, given.get("deepspeed"))
    try:
        arguments = recipe.task.arguments_class(
            **{**chosen, **recipe.task.arguments, **given, "output_dir": str(output_dir), "use_cpu": use_cpu}
        )
    except (ValueError, TypeError, ImportError) as error:
        raise UserError(f"training: {' '.join(str(error).split())}") from error
    if arguments.n_gpu > 1:
        # The Trainer would spread some methods over them by DataParallel and others not, with another batch size.
        logger.info("%d GPUs seen, 1 used; start with torchrun or deepspeed to use all", arguments.n_gpu)
        arguments._n_gpu = 1
    return arguments


class AuditCallback(TrainerCallback):
    """Starts the audit once the model is in the hands of DeepSpeed, and asks it after optimizer steps."""

    def __init__(self) -> None:
        self.audit: TrainingAudit | None = None
        self.finding: dict[str, Any] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Fingerprint every parameter."""
        self.audit = TrainingAudit(kwargs["model"])

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Check the first few steps."""
        assert self.audit is not None
        self.audit.step(state.global_step)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Check the whole run."""
        assert self.audit is not None
        self.finding = self.audit.finish(state.global_step)


def make_trainer(
    recipe: Recipe,
    model: PreTrainedModel | PeftModel,
    arguments: TrainingArguments,
    tokenizer: PreTrainedTokenizerBase,
    encoded: Mapping[str, Dataset],
    labels: Sequence[str],
    score: Callable[[EvalPrediction], dict[str, float]],
    audit: AuditCallback,
) -> Trainer:
    """The library's Trainer on encoded splits `train` and `validation`; `score` is asked during training."""
    task = recipe.task
    trainer = task.trainer_class(
        model=cast(PreTrainedModel, model),
        args=arguments,
        data_collator=task.collator(tokenizer, model),
        train_dataset=encoded["train"],
        eval_dataset=encoded["validation"],
        processing_class=tokenizer,
        compute_loss_func=task.loss(encoded["train"], labels, arguments.label_smoothing_factor),
        compute_metrics=score,
        # Encoder-decoder classifiers return hidden states beside the logits; keeping those would fill the memory.
        preprocess_logits_for_metrics=lambda logits, _: task.reduce(first_output(logits)),
        callbacks=[audit],
    )
    # Grouped by length, evaluation too would come in a random order; answers belong to rows by their place.
    trainer._get_eval_sampler = SequentialSampler  # type: ignore[method-assign, assignment]
    return trainer
