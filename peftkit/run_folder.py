"""The folder that a run leaves: whole by itself, nothing pickled, no home path, report.json last."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from peftkit.errors import AuditError, UserError
from peftkit.files import without_home, write_json, write_text
from peftkit.log import is_rank_zero, logger
from peftkit.measure import is_out_of_memory
from peftkit.methods import plain_name, prepare_quantized
from peftkit.model import load_base, load_finished, position_limit
from peftkit.parsing import read_recipe, recipe_to_yaml
from peftkit.recipe import Recipe
from peftkit.report import FILE_NAME, read_report
from peftkit.tasks import Task

RECIPE = "recipe.yaml"
HELD_OUT = "held_out.safetensors"
PREDICTIONS = "predictions.jsonl"
RECEIPT = "receipt.json"
ADAPTER = "adapter_model.safetensors"
UNSCORED = "unscored"
# The Trainer's, pickled.
TRAINING_ARGUMENTS = "training_args.bin"
_FILLING = ".filling"


def is_finished(folder: Path) -> bool:
    """Whether a complete run lies here."""
    return (folder / FILE_NAME).exists() and read_report(folder).status == "complete"


def choose(recipe: Recipe) -> Path:
    """The run's folder: `training.output_dir`, else `runs/NAME`, numbered when a finished run lies there.

    Raises UserError when the folder that the user named holds a finished run.
    """
    named = recipe.training.get("output_dir")
    if named is not None:
        folder = Path(named).expanduser()
        if is_finished(folder):
            raise UserError(f"training.output_dir: {named} holds a finished run; name another or remove it")
        return folder
    folder, number = Path("runs") / recipe.name, 1
    while is_finished(folder):
        number += 1
        folder = Path("runs") / f"{recipe.name}-{number}"
    if number > 1:
        logger.info("runs/%s holds a finished run; this one goes to %s", recipe.name, folder)
    return folder


def fit_length(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, task: Task) -> None:
    """Let the tokenizer carry the length that the task reads. Raises UserError when the model has fewer positions."""
    field = task.length_fields[0]
    length, limit = getattr(task, field), position_limit(model)
    if limit is not None and length > limit:
        raise UserError(f"task.{field}: {length} is more than the model's {limit} positions")
    tokenizer.model_max_length = length


@contextmanager
def filling(folder: Path) -> Iterator[Path]:
    """A folder inside `folder` to fill on all ranks; at the end rank 0 moves its files up, report.json last.

    On a failure, such as too little memory for evaluation, weights that were saved by then stay in `unscored`.
    """
    temporary = folder / _FILLING
    if is_rank_zero():
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    try:
        yield temporary
        if is_rank_zero():
            if is_finished(folder):
                raise UserError(f"{folder}: another run has finished here meanwhile; this one is not saved")
            (folder / FILE_NAME).unlink(missing_ok=True)
            for path in sorted(temporary.iterdir(), key=lambda path: path.name == FILE_NAME):
                os.replace(path, folder / path.name)
    except BaseException:
        if is_rank_zero() and any(temporary.glob("*model*.safetensors")):
            (temporary / TRAINING_ARGUMENTS).unlink(missing_ok=True)
            shutil.rmtree(folder / UNSCORED, ignore_errors=True)
            os.replace(temporary, folder / UNSCORED)
            logger.warning("the trained weights are kept in %s", folder / UNSCORED)
        raise
    finally:
        if is_rank_zero():
            shutil.rmtree(temporary, ignore_errors=True)


def complete(
    folder: Path,
    recipe: Recipe,
    model: PreTrainedModel | PeftModel,
    missing_keys: set[str],
    *,
    held_out: Mapping[str, torch.Tensor],
    settings: Mapping[str, Any],
) -> None:
    """Add what the Trainer's own saving leaves out, and hold the head contract on what is on disk.

    `settings` of the task go into the model's config.

    Raises AuditError when a parameter that the checkpoint did not bring is not in the saved weights.
    """
    (folder / TRAINING_ARGUMENTS).unlink(missing_ok=True)
    base_name = without_home(recipe.model.name_or_path)
    if isinstance(model, PeftModel):
        (folder / "README.md").unlink(missing_ok=True)
        base: Any = model.get_base_model()
        base.config.save_pretrained(folder)
        if base.can_generate():
            base.generation_config.save_pretrained(folder)
        adapter = folder / "adapter_config.json"
        write_json(adapter, {**json.loads(adapter.read_text()), "base_model_name_or_path": base_name})
    config = folder / "config.json"
    plain = json.loads(config.read_text())
    # The base is loaded in full precision for export; that it was trained in 4 bits stands in the recipe.
    plain.pop("quantization_config", None)
    if "_name_or_path" in plain:
        plain["_name_or_path"] = base_name
    write_json(config, {**plain, **settings})
    check_saved_head(folder, missing_keys)
    save_file(dict(held_out), folder / HELD_OUT)
    write_text(folder / RECIPE, recipe_to_yaml(recipe))


def check_saved_head(folder: Path, missing_keys: set[str]) -> None:
    """Raise AuditError naming the parameters of the head that are not among the saved weights."""
    saved = set()
    for path in folder.glob("*model*.safetensors"):
        with safe_open(path, framework="pt") as file:
            saved |= {plain_name(name) for name in file.keys()}  # noqa: SIM118
    if lost := sorted(missing_keys - saved):
        raise AuditError(f"head contract: not in the checkpoint, yet not saved: {', '.join(lost)}")


def weight_bytes(folder: Path) -> int:
    """Bytes on disk of the trained weights: the adapter with its head, or the whole model."""
    return sum(path.stat().st_size for path in folder.glob("*model*.safetensors"))


def write_predictions(
    folder: Path, numbers: Sequence[int], answers: Sequence[Mapping[str, Any]], references: Sequence[Any]
) -> None:
    """A line a test row: its number in the data it was read from, the right answer and what was answered."""
    lines = [
        json.dumps({"row": row, "reference": right, **answer}, ensure_ascii=False)
        for row, right, answer in zip(numbers, references, answers, strict=True)
    ]
    write_text(folder / PREDICTIONS, "\n".join(lines) + "\n")


def read_held_out(folder: Path) -> dict[str, torch.Tensor]:
    """The held-out batch of a run and the logits of the live model. Raises UserError when it is not there."""
    path = folder / HELD_OUT
    if not path.is_file():
        raise UserError(f"{folder}: no {HELD_OUT} here; give the folder of a finished run")
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def label_names(config: Any) -> tuple[str, ...]:
    """The labels of a model's config, in the order of their ids."""
    return tuple(config.id2label[index] for index in sorted(config.id2label))


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A run loaded from disk, ready to be asked.

    Attributes:
        model: In evaluation mode; in 4 bits on the GPU where there is one, else on the CPU.
        tokenizer: As it was trained with, `max_length` included.
        recipe: What trained it.
        task: The recipe's, with what it learned from validation.
        labels: Names in the order of their ids.
    """

    model: PreTrainedModel | PeftModel
    tokenizer: PreTrainedTokenizerBase
    recipe: Recipe
    task: Task
    labels: tuple[str, ...]


def load_run(folder: Path, *, full_precision: bool = False, trust_remote_code: bool = False) -> Trained:
    """Load what a run left: the whole model, or the base with its adapter; as trained, or all in float32.

    Whether the checkpoint's own code may run is the caller's word, not the folder's. Raises UserError when the folder
    is no finished run or its adapter does not fit the base.
    """
    if not is_finished(folder):
        raise UserError(f"{folder}: no finished run here; give the folder that a training run printed")
    recipe = read_recipe(folder / RECIPE)
    trust = {"trust_remote_code": trust_remote_code}
    dtype = "float32" if full_precision else recipe.model.dtype
    config = replace(recipe.model, dtype=dtype, trust_remote_code=trust_remote_code)
    tokenizer = AutoTokenizer.from_pretrained(folder, **trust)
    saved_config = AutoConfig.from_pretrained(folder, **trust)
    labels = label_names(saved_config)
    if recipe.method.peft is None:
        model: Any = load_finished(folder, recipe.task, dtype=dtype, **trust)
    else:
        quantization = None if full_precision else recipe.method.quantization
        base = load_base(config, recipe.task, tokenizer, labels, quantization).model
        if quantization is not None:
            base = prepare_quantized(base)
        try:
            model = PeftModel.from_pretrained(base, str(folder))
        except (RuntimeError, ValueError, KeyError, OSError) as error:
            if is_out_of_memory(error):
                raise
            reason = " ".join(str(error).split())[:300]
            raise UserError(f"{folder}: its adapter does not fit {recipe.model.name_or_path}: {reason}") from error
        with safe_open(folder / ADAPTER, framework="pt") as file:
            saved = set(file.keys())
        # Whether resized embeddings belong to the adapter, peft would ask the hub; they are left out of the question.
        expected = set(get_peft_model_state_dict(model, save_embedding_layers=False))
        if odd := sorted(key for key in saved ^ expected if "embed_tokens" not in key and "word_embeddings" not in key):
            raise UserError(f"{folder}: its adapter does not fit {recipe.model.name_or_path}: {', '.join(odd[:3])}")
    model.eval()
    task = recipe.task.restored(saved_config)
    return Trained(model=model, tokenizer=tokenizer, recipe=recipe, task=task, labels=labels)
