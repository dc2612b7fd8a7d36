"""Read a finished run or an adapter export: its recipe, tokenizer, labels and model."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from peft import PeftModel, get_peft_model_state_dict
from safetensors import safe_open
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from peftkit.errors import UserError
from peftkit.models.adapters import prepare_quantized_model
from peftkit.models.loading import load_base, load_finished_model, resolve_source
from peftkit.recipe.parser import read_recipe
from peftkit.recipe.schema import Recipe
from peftkit.runs.manifest import (
    RECIPE,
    check_base,
    check_labels,
    check_tokenizer,
    read_manifest,
)
from peftkit.system.environment import is_out_of_memory
from peftkit.tasks import Task

ADAPTER = "adapter_model.safetensors"


@dataclass(frozen=True, kw_only=True)
class SavedRun:
    """What a run's folder, or an export of its adapter, says of itself; its model is not loaded.

    Attributes:
        folder: Where it lies.
        recipe: What trained it.
        tokenizer: As it was trained with, `max_length` included.
        task: The recipe's, with what it learned from validation.
        labels: Names in the order of their ids.
        manifest: What belongs together.
        trust_remote_code: Whether the base's own code may run: the caller's word, not the folder's.
    """

    folder: Path
    recipe: Recipe
    tokenizer: PreTrainedTokenizerBase
    task: Task
    labels: tuple[str, ...]
    manifest: Mapping[str, Any]
    trust_remote_code: bool = False


def read_run(folder: Path, *, trust_remote_code: bool = False) -> SavedRun:
    """Read all but the model. Raises UserError when this is no finished run, or its parts don't belong together."""
    manifest = read_manifest(folder) if (folder / RECIPE).is_file() else None
    if manifest is None:
        raise UserError(f"{folder}: no finished run here; give the folder that a training run printed")
    recipe = read_recipe(folder / RECIPE)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    labels = read_label_names(config) if manifest["labels"] else ()
    check_labels(folder, manifest, labels)
    check_tokenizer(folder, manifest, tokenizer)
    return SavedRun(
        folder=folder, recipe=recipe, tokenizer=tokenizer, task=recipe.task.restored(config), labels=labels,
        manifest=manifest, trust_remote_code=trust_remote_code,
    )  # fmt: skip


def read_label_names(config: Any) -> tuple[str, ...]:
    """The labels of a model's config, in the order of their ids."""
    return tuple(config.id2label[index] for index in sorted(config.id2label))


def load_model(saved: SavedRun, *, unquantized_as: str | None = None) -> PreTrainedModel | PeftModel:
    """The whole model, or the base with its adapter: as trained, or not in 4 bits and as `unquantized_as`.

    In evaluation mode; in 4 bits on the GPU where there is one, else on the CPU. Raises UserError when the base is
    another one, or the adapter does not fit it.
    """
    folder, recipe = saved.folder, saved.recipe
    dtype = unquantized_as or recipe.model.dtype
    if recipe.method.peft is None:
        return load_finished_model(folder, recipe.task, dtype=dtype, trust_remote_code=saved.trust_remote_code).eval()
    revision = saved.manifest["base"]["revision"] or recipe.model.revision
    trust = saved.trust_remote_code
    config = replace(recipe.model, dtype=dtype, revision=revision, trust_remote_code=trust)
    quantization = recipe.method.quantization if unquantized_as is None else None
    base = load_base(config, recipe.task, saved.tokenizer, saved.labels, quantization).model
    # Now that what the hub had to send is there.
    check_base(folder, saved.manifest, resolve_source(recipe.model), revision)
    if quantization is not None:
        base = prepare_quantized_model(base)
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
