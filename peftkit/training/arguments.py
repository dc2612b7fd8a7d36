"""Training arguments: the recipe's `training` with peftkit's defaults."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments
from transformers.integrations import get_available_reporting_integrations, get_reporting_integration_callbacks

from peftkit.distributed.deepspeed import adapt_config_to_cpu, check_quantized_storage, read_deepspeed_config
from peftkit.distributed.operators import announce_builds
from peftkit.distributed.process_group import has_several_ranks, join_process_group
from peftkit.errors import UserError
from peftkit.recipe.method import get_default_learning_rate
from peftkit.recipe.schema import Recipe
from peftkit.system.logging import logger

# Defaults of peftkit that differ from those of the Trainer.
DEFAULTS = {
    # Writes files to the run folder and sends nothing.
    "report_to": "tensorboard",
    "save_strategy": "no",
    "logging_steps": 10,
    "logging_first_step": True,
    # Log a NaN loss as NaN; the Trainer's default replaces it by the mean.
    "logging_nan_inf_filter": False,
    "include_num_input_tokens_seen": "non_padding",
    "remove_unused_columns": False,
    "label_names": ["labels"],
    # With reentrant checkpointing and a frozen base model no gradient reaches the adapter.
    "activation_checkpointing_kwargs": {"use_reentrant": False},
}
# Training arguments that evaluation needs to predict every row.
REQUIRED_FOR_EVALUATION = {
    "predict_with_generate": True,
    "prediction_loss_only": False,
    "eval_do_concat_batches": True,
    "batch_eval_metrics": False,
    "dataloader_drop_last": False,
}


def build_training_arguments(recipe: Recipe, output_dir: Path) -> TrainingArguments:
    """Join the ranks and build the training arguments from the recipe's `training` and peftkit's defaults.

    Defaults: learning rate by method, TensorBoard as the tracker, no checkpoints, loss logging every 10 steps. Raises
    UserError for arguments that TrainingArguments rejects.
    """
    given = dict(recipe.training)
    if given.get("label_smoothing_factor") and not recipe.task.trainer.supports_label_smoothing:
        raise UserError(f"training.label_smoothing_factor: not supported by {type(recipe.task).__name__}; remove it")
    for name, needed in REQUIRED_FOR_EVALUATION.items():
        if given.get(name, needed) != needed:
            raise UserError(
                f"training.{name}: must be {str(needed).lower()}, because evaluation needs all predictions; remove it"
            )
    if given.get("resume_from_checkpoint"):
        raise UserError("training.resume_from_checkpoint: not supported; pass --resume PATH instead")
    if given.get("auto_find_batch_size") and has_several_ranks():
        raise UserError(
            "training.auto_find_batch_size: not supported with several ranks; set training.per_device_train_batch_size"
        )
    use_cpu = bool(given.get("use_cpu")) or not torch.accelerator.is_available()
    defaults: dict[str, Any] = {
        **DEFAULTS,
        "run_name": recipe.name,
        "dataloader_pin_memory": not use_cpu,
    }
    if "learning_rate" not in given:
        defaults["learning_rate"] = get_default_learning_rate(recipe.method)
        logger.info(
            "training.learning_rate not set: using %g, the default of %s", defaults["learning_rate"], recipe.method.name
        )
    if given.get("deepspeed") is not None:
        config = read_deepspeed_config(given["deepspeed"])
        given["deepspeed"] = adapt_config_to_cpu(config) if use_cpu else config
        announce_builds(given["deepspeed"])
    timeout = timedelta(seconds=given.get("ddp_timeout", TrainingArguments.ddp_timeout))
    join_process_group(deepspeed=given.get("deepspeed") is not None, use_cpu=use_cpu, timeout=timeout)
    check_quantized_storage(recipe, given.get("deepspeed"))
    try:
        arguments = recipe.task.trainer.arguments_class(
            **{**defaults, **recipe.task.trainer.defaults, **given, "output_dir": str(output_dir), "use_cpu": use_cpu}
        )
    except (ValueError, TypeError, ImportError) as error:
        raise UserError(f"training: {' '.join(str(error).split())}") from error
    try:
        get_reporting_integration_callbacks(arguments.report_to)
    except ValueError as error:
        raise UserError(f"training.report_to: {' '.join(str(error).split())}") from error
    for tracker in arguments.report_to or ():
        if tracker not in (*get_available_reporting_integrations(), "flyte"):
            raise UserError(f"training.report_to: {tracker} is not installed; run pip install {tracker}")
    if arguments.n_gpu > 1:
        # Otherwise the Trainer uses DataParallel for some methods, with another batch size.
        logger.info("using 1 of %d GPUs; start with torchrun or deepspeed to use all", arguments.n_gpu)
        arguments._n_gpu = 1
    return arguments
