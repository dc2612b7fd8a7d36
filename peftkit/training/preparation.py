"""Steps before training: read, check and tokenize the data; load the model and apply the method."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments, set_seed

from peftkit.data.quality import Checks, check_data
from peftkit.data.splits import Splits, load_splits
from peftkit.distributed.process_group import check_same_on_ranks
from peftkit.models import adapters
from peftkit.models.loading import BaseModel, check_precision, load_base, load_tokenizer, match_checkpoint_labels
from peftkit.models.parameters import count_parameters
from peftkit.models.positions import read_position_limit
from peftkit.recipe.schema import Recipe
from peftkit.runs import writer
from peftkit.system.environment import read_process_bytes
from peftkit.system.logging import is_rank_zero, logger
from peftkit.training.arguments import build_training_arguments


@dataclass(frozen=True, kw_only=True)
class PreparedData:
    """Training arguments and tokenized data.

    Attributes:
        arguments: Training arguments; the ranks have joined.
        splits: The rows, with labels in the order of the model's head.
        tokenizer: Tokenizer of the model.
        encoded: Tokenized rows by split.
        checks: Results of `check_data` on rank 0.
        seconds: Time to read, check and tokenize the data.
        process_bytes: Resident memory of the process before the model is loaded.
    """

    arguments: TrainingArguments
    splits: Splits
    tokenizer: PreTrainedTokenizerBase
    encoded: Mapping[str, Dataset]
    checks: Checks
    seconds: float
    process_bytes: int


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """The model before training.

    Attributes:
        model: The model with the adapter of the method, if the method has an adapter.
        base: The base model, with the new head and the parameters that the checkpoint lacks.
        base_parameters: Number of weights of the base model with its head.
    """

    model: PreTrainedModel | PeftModel
    base: BaseModel
    base_parameters: int


def prepare_data(recipe: Recipe, folder: Path, *, sees_folder: bool) -> PreparedData:
    """Join the ranks, then read, check and tokenize the data.

    `folder` is the run folder; `sees_folder` is whether this rank sees the files of rank 0 there. Raises UserError.
    """
    task = recipe.task
    arguments = build_training_arguments(recipe, folder)
    set_seed(arguments.seed)
    started = time.perf_counter()
    with arguments.main_process_first(desc="reading the data"):
        splits = load_splits(recipe.data, task)
    check_same_on_ranks(
        splits.fingerprint, str(recipe.training.get("deepspeed")),
        not arguments.load_best_model_at_end or sees_folder,
    )  # fmt: skip
    for decision in splits.decisions:
        logger.info("%s", decision)
    tokenizer = load_tokenizer(recipe.model, task)
    splits = replace(splits, labels=match_checkpoint_labels(recipe.model, task, splits.labels))
    checks = check_data(splits, task, tokenizer, read_position_limit(recipe.model)) if is_rank_zero() else Checks()
    for warning in checks.warnings:
        logger.warning("data: %s", warning)
    encoded = {name: task.encode(rows, tokenizer, splits.labels) for name, rows in splits.rows.items()}
    return PreparedData(
        arguments=arguments, splits=splits, tokenizer=tokenizer, encoded=encoded, checks=checks,
        seconds=time.perf_counter() - started, process_bytes=read_process_bytes(),
    )  # fmt: skip


def load_model(recipe: Recipe, data: PreparedData) -> LoadedModel:
    """Load the base model with a head for the labels, and apply the method. Raises UserError."""
    base = load_base(recipe.model, recipe.task, data.tokenizer, data.splits.labels, recipe.method.quantization)
    writer.set_max_length(data.tokenizer, base.model, recipe.task)
    check_precision(base.model, recipe.method.quantization, data.arguments)
    base_parameters = count_parameters(base.model)["total"]
    model = adapters.apply_method(recipe.method, base.model, base.head, recipe.task.model.peft_task_type, base.unused)
    adapters.check_head(model, set(base.missing_keys))
    parameters = count_parameters(model)
    logger.info(
        "%s: %s, %d of %d parameters trainable (%.2f %%); head %s; %d training rows",
        recipe.name, recipe.method.name, parameters["trainable"], parameters["total"],
        100 * parameters["trainable"] / parameters["total"], ", ".join(base.head) or "from the checkpoint",
        len(data.splits.train),
    )  # fmt: skip
    return LoadedModel(model=model, base=base, base_parameters=base_parameters)
