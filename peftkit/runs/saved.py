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
from peftkit.tasks import Task, restore_settings

ADAPTER = "adapter_model.safetensors"


@dataclass(frozen=True, kw_only=True)
class SavedRun:
    """A finished run, or an export of its adapter, without its model.

    Attributes:
        folder: Folder of the run.
        recipe: Recipe of the run.
        tokenizer: The tokenizer of training, with its length limit.
        task: Task of the recipe with calibrated settings.
        labels: Label names in the order of their ids.
        manifest: Content of `contract.json`: base, labels, dtype, hashes.
        trust_remote_code: Whether to run code from the base model; set by the caller, never by the folder.
    """

    folder: Path
    recipe: Recipe
    tokenizer: PreTrainedTokenizerBase
    task: Task
    labels: tuple[str, ...]
    manifest: Mapping[str, Any]
    trust_remote_code: bool = False


def read_run(folder: Path, *, trust_remote_code: bool = False) -> SavedRun:
    """Read a run without its model. Raises UserError for an unfinished run or files that do not match."""
    manifest = read_manifest(folder) if (folder / RECIPE).is_file() else None
    if manifest is None:
        raise UserError(f"{folder}: not a finished run; pass the folder of a finished run")
    recipe = read_recipe(folder / RECIPE)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    labels = read_label_names(config) if manifest["labels"] else ()
    check_labels(folder, manifest, labels)
    check_tokenizer(folder, manifest, tokenizer)
    return SavedRun(
        folder=folder, recipe=recipe, tokenizer=tokenizer, task=restore_settings(recipe.task, config), labels=labels,
        manifest=manifest, trust_remote_code=trust_remote_code,
    )  # fmt: skip


def read_label_names(config: Any) -> tuple[str, ...]:
    """Read the labels of a model's config in the order of their ids."""
    return tuple(config.id2label[index] for index in sorted(config.id2label))


def load_model(saved: SavedRun, *, unquantized_as: str | None = None) -> PreTrainedModel | PeftModel:
    """Load the whole model, or base model and adapter; `unquantized_as` is a dtype without quantization.

    The model is in evaluation mode. A quantized model is on the GPU if there is one, any other model on the CPU. Raises
    UserError for another base model, or an adapter that does not fit the base model.
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
    # After loading, because then the files from the Hub are in the cache.
    check_base(folder, saved.manifest, resolve_source(recipe.model), revision)
    if quantization is not None:
        base = prepare_quantized_model(base)
    try:
        with warnings.catch_warnings():
            # peft corrects this option for the transposed layers of GPT-2, with a warning.
            warnings.filterwarnings("ignore", message="fan_in_fan_out is set to False")
            model = PeftModel.from_pretrained(base, str(folder))
    except (RuntimeError, ValueError, KeyError, OSError) as error:
        if is_out_of_memory(error):
            raise
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{folder}: the adapter does not fit {recipe.model.name_or_path}: {reason}") from error
    with safe_open(folder / ADAPTER, framework="pt") as file:
        saved_keys = set(file.keys())
    # Without embeddings; otherwise peft queries the Hub to detect resized embeddings.
    expected = set(get_peft_model_state_dict(model, save_embedding_layers=False))
    if unmatched := sorted(
        key for key in saved_keys ^ expected if "embed_tokens" not in key and "word_embeddings" not in key
    ):
        raise UserError(f"{folder}: the adapter does not fit {recipe.model.name_or_path}: {', '.join(unmatched[:3])}")
    return model.eval()
