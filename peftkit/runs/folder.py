"""The folder that a run leaves: whole by itself, nothing pickled, no home path, report.json last."""

import json
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from peftkit.errors import AuditError, UserError, ignore_sigterm
from peftkit.models.loading import load_base, load_finished, position_limit, source
from peftkit.recipe.method import plain_name, prepare_quantized
from peftkit.recipe.parser import read_recipe, recipe_to_yaml
from peftkit.recipe.schema import Recipe
from peftkit.recipe.serialization import whole_class
from peftkit.runs.manifest import (
    CONTRACT,
    HELD_OUT,
    base_identity,
    check_base,
    check_labels,
    check_tokenizer,
    read_contract,
    tokenizer_identity,
    write_contract,
)
from peftkit.runs.report import FILE_NAME, read_report
from peftkit.runs.verification import fresh_outputs
from peftkit.system.environment import is_out_of_memory
from peftkit.system.files import redact_home, write_json, write_text
from peftkit.system.logging import is_rank_zero, logger
from peftkit.tasks import Task

RECIPE = "recipe.yaml"
PREDICTIONS = "predictions.jsonl"
RECEIPT = "receipt.json"
ADAPTER = "adapter_model.safetensors"
UNSCORED = "unscored"
# The Trainer's, pickled.
TRAINING_ARGUMENTS = "training_args.bin"
_FILLING = ".filling"
OUTPUTS = ("logits", "generated", "counted")


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
        ignore_sigterm()
        if is_rank_zero() and any(temporary.glob("*model*.safetensors")):
            (temporary / TRAINING_ARGUMENTS).unlink(missing_ok=True)
            shutil.rmtree(folder / UNSCORED, ignore_errors=True)
            os.replace(temporary, folder / UNSCORED)
            logger.warning("the trained weights are kept in %s", folder / UNSCORED)
        elif not is_rank_zero():
            # Should rank 0 have been killed; with anything in it, it stays.
            with suppress(OSError):
                temporary.rmdir()
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
    labels: Sequence[str],
    held_out: Mapping[str, torch.Tensor],
    task: Task,
) -> None:
    """Add what the Trainer's own saving leaves out, and hold the head contract on what is on disk.

    The settings of the fitted `task` go into the model's config.

    Raises AuditError when a parameter that the checkpoint did not bring is not in the saved weights.
    """
    (folder / TRAINING_ARGUMENTS).unlink(missing_ok=True)
    base_name = redact_home(recipe.model.name_or_path)
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
    write_json(config, {**plain, **task.settings()})
    check_saved_head(folder, missing_keys)
    save_file(dict(held_out), folder / HELD_OUT)
    write_text(folder / RECIPE, recipe_to_yaml(recipe))
    adapted, trust = isinstance(model, PeftModel), recipe.model.trust_remote_code
    quantization = getattr(model.config, "quantization_config", None)
    write_contract(
        folder,
        auto_class=task.auto_model.__name__,
        adapter=adapted,
        base={"name_or_path": base_name, **base_identity(source(recipe.model), recipe.model.revision)},
        dtype=str(model.dtype).removeprefix("torch.") if recipe.model.dtype == "auto" else recipe.model.dtype,
        quantization=None if quantization is None else quantization.to_diff_dict(),
        labels=list(labels),
        tokenizer=tokenizer_identity(AutoTokenizer.from_pretrained(folder, trust_remote_code=trust)),
        task=whole_class(task),
    )


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


def read_held_out(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The held-out batch of a run, and the live model's outputs (`logits`, perhaps `generated`). Raises UserError."""
    path = folder / HELD_OUT
    if not path.is_file():
        raise UserError(f"{folder}: no {HELD_OUT} here; give the folder of a finished run")
    found = load_file(path)
    outputs = {name: tensor for name, tensor in found.items() if name in OUTPUTS}
    return {name: tensor for name, tensor in found.items() if name not in OUTPUTS}, outputs


def dtype_of(folder: Path) -> str:
    """The dtype of a saved folder's weights, or of the base under its adapter."""
    return json.loads((folder / CONTRACT).read_text(encoding="utf-8"))["dtype"]


def fresh_outputs_of(
    folder: Path, recipe: Recipe, batch: Mapping[str, torch.Tensor], *, trust_remote_code: bool
) -> dict[str, torch.Tensor]:
    """What a fresh process makes of a saved folder, by its contract. Raises NotReproducedError if it can't load it."""
    contract = json.loads((folder / CONTRACT).read_text(encoding="utf-8"))
    adapter: dict[str, Any] = {}
    if contract["adapter"]:
        quantization = contract["quantization"]
        revision = contract["base"]["revision"] or recipe.model.revision
        adapter = {"base": source(recipe.model), "revision": revision, "quantization": quantization}
    return fresh_outputs(
        folder, batch, auto_class=contract["auto_class"], dtype=contract["dtype"],
        trust_remote_code=trust_remote_code, **adapter,
    )  # fmt: skip


def label_names(config: Any) -> tuple[str, ...]:
    """The labels of a model's config, in the order of their ids."""
    return tuple(config.id2label[index] for index in sorted(config.id2label))


@dataclass(frozen=True, kw_only=True)
class SavedRun:
    """What a run's folder, or an export of its adapter, says of itself; its model is not loaded.

    Attributes:
        folder: Where it lies.
        recipe: What trained it.
        tokenizer: As it was trained with, `max_length` included.
        task: The recipe's, with what it learned from validation.
        labels: Names in the order of their ids.
        contract: What belongs together.
        trust_remote_code: Whether the base's own code may run: the caller's word, not the folder's.
    """

    folder: Path
    recipe: Recipe
    tokenizer: PreTrainedTokenizerBase
    task: Task
    labels: tuple[str, ...]
    contract: Mapping[str, Any]
    trust_remote_code: bool = False


def read_run(folder: Path, *, trust_remote_code: bool = False) -> SavedRun:
    """Read all but the model. Raises UserError when this is no finished run, or its parts don't belong together."""
    contract = read_contract(folder) if (folder / RECIPE).is_file() else None
    if contract is None:
        raise UserError(f"{folder}: no finished run here; give the folder that a training run printed")
    recipe = read_recipe(folder / RECIPE)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    labels = label_names(config) if contract["labels"] else ()
    check_labels(folder, contract, labels)
    check_tokenizer(folder, contract, tokenizer)
    return SavedRun(
        folder=folder, recipe=recipe, tokenizer=tokenizer, task=recipe.task.restored(config), labels=labels,
        contract=contract, trust_remote_code=trust_remote_code,
    )  # fmt: skip


def load_model(saved: SavedRun, *, unquantized_as: str | None = None) -> PreTrainedModel | PeftModel:
    """The whole model, or the base with its adapter: as trained, or not in 4 bits and as `unquantized_as`.

    In evaluation mode; in 4 bits on the GPU where there is one, else on the CPU. Raises UserError when the base is
    another one, or the adapter does not fit it.
    """
    folder, recipe = saved.folder, saved.recipe
    dtype = unquantized_as or recipe.model.dtype
    if recipe.method.peft is None:
        return load_finished(folder, recipe.task, dtype=dtype, trust_remote_code=saved.trust_remote_code).eval()
    revision = saved.contract["base"]["revision"] or recipe.model.revision
    trust = saved.trust_remote_code
    config = replace(recipe.model, dtype=dtype, revision=revision, trust_remote_code=trust)
    quantization = recipe.method.quantization if unquantized_as is None else None
    base = load_base(config, recipe.task, saved.tokenizer, saved.labels, quantization).model
    # Now that what the hub had to send is there.
    check_base(folder, saved.contract, source(recipe.model), revision)
    if quantization is not None:
        base = prepare_quantized(base)
    try:
        with warnings.catch_warnings():
            # GPT-2's transposed layers: peft sets it right by itself and warns of it.
            warnings.filterwarnings("ignore", message="fan_in_fan_out is set to False")
            model = PeftModel.from_pretrained(base, str(folder))
    except (RuntimeError, ValueError, KeyError, OSError) as error:
        if is_out_of_memory(error):
            raise
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{folder}: its adapter does not fit {recipe.model.name_or_path}: {reason}") from error
    with safe_open(folder / ADAPTER, framework="pt") as file:
        there = set(file.keys())
    # Whether resized embeddings belong to the adapter, peft would ask the hub; they are left out of the question.
    expected = set(get_peft_model_state_dict(model, save_embedding_layers=False))
    if odd := sorted(key for key in there ^ expected if "embed_tokens" not in key and "word_embeddings" not in key):
        raise UserError(f"{folder}: its adapter does not fit {recipe.model.name_or_path}: {', '.join(odd[:3])}")
    return model.eval()
