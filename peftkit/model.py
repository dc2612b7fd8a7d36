"""The tokenizer and the base model, quantized or not, and the head: what the checkpoint did not bring."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers.integrations.deepspeed as hf_deepspeed
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.core_model_loading import WeightRenaming

from peftkit.demo.model import demo_model_folder
from peftkit.errors import AuditError, UserError
from peftkit.methods import Quantization
from peftkit.recipe import ModelConfig
from peftkit.tasks import Task


@dataclass(frozen=True, kw_only=True)
class BaseModel:
    """A base model with its new head.

    Attributes:
        model: The model, its head freshly initialised.
        missing_keys: Parameters the checkpoint did not bring, or brought in another shape.
        head: The outermost modules that hold nothing but those, or the innermost that holds one of them.
    """

    model: PreTrainedModel
    missing_keys: frozenset[str]
    head: tuple[str, ...]


def source(config: ModelConfig) -> str:
    """Where the weights come from: the demo's installed folder, a local folder, or a hub id."""
    if config.name_or_path == "demo":
        return str(demo_model_folder())
    path = Path(config.name_or_path).expanduser()
    if path.exists():
        return str(path)
    if config.name_or_path.startswith((".", "/", "~")):
        raise UserError(f"model.name_or_path: {config.name_or_path}: no such folder")
    return config.name_or_path


def load_tokenizer(config: ModelConfig) -> PreTrainedTokenizerBase:
    """The checkpoint's tokenizer. Raises UserError when it can't be had."""
    with _loading(config):
        return AutoTokenizer.from_pretrained(
            source(config), revision=config.revision, trust_remote_code=config.trust_remote_code
        )


def load_base(
    config: ModelConfig, task: Task, labels: Sequence[str], quantization: Quantization | None = None
) -> BaseModel:
    """Load the pretrained weights with a new head for `labels`; with `quantization` all but the head in 4 bits.

    Raises UserError when the model can't be had or quantized.
    """
    options: dict[str, Any] = dict(
        revision=config.revision,
        trust_remote_code=config.trust_remote_code,
        dtype=config.dtype,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
        **task.model_config(labels),
    )
    with _loading(config):
        if quantization is not None:
            # The head must be known before anything is quantized; the meta device reads no weights.
            with _no_zero3():
                skeleton, info = task.auto_model.from_pretrained(source(config), device_map="meta", **options)
            if getattr(skeleton.config, "quantization_config", None) is not None:
                raise UserError(
                    f"model.name_or_path: {config.name_or_path} is quantized already; give its full-precision weights"
                )
            options["quantization_config"] = quantization.config(head_modules(skeleton, _missing(info)))
        model, info = task.auto_model.from_pretrained(source(config), **options)
    missing = _missing(info) & {name for name, _ in model.named_parameters()}
    # The Trainer multiplies the loss by the number of ranks when it believes that the model divides it by them; a
    # classifier's forward takes any keyword and divides by nothing.
    model.accepts_loss_kwargs = False
    # Under ZeRO-3 transformers keeps renamings that this checkpoint had no use for, and would save by the old names.
    if conversions := getattr(model, "_weight_conversions", None):
        model._weight_conversions = [c for c in conversions if c.was_used() or not isinstance(c, WeightRenaming)]
    return BaseModel(model=model, missing_keys=frozenset(missing), head=head_modules(model, missing))


def load_finished(folder: str | Path, task: Task, **options: Any) -> PreTrainedModel:
    """Load a model that brings its head: what full fine-tuning or an export left. Raises UserError if it does not."""
    try:
        model, info = task.auto_model.from_pretrained(folder, output_loading_info=True, **options)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: not a model that transformers can load ({_short(error)})") from error
    if missing := _missing(info):
        raise UserError(f"{folder}: lacks the weights {', '.join(sorted(missing))}; it is not a finished model")
    return model


def head_modules(model: PreTrainedModel, missing_keys: set[str]) -> tuple[str, ...]:
    """The modules to train, save and keep out of quantization, given the parameters the checkpoint did not bring.

    Raises AuditError for a parameter that no module but the model itself holds.
    """
    names = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    found = set()
    for key in missing_keys & names:
        module = key.rpartition(".")[0]
        if not module:
            raise AuditError(f"head contract: parameter '{key}' belongs to no module and can't be saved by peft")
        while above := module.rpartition(".")[0]:
            if any(name.startswith(f"{above}.") and name not in missing_keys for name in names):
                break
            module = above
        found.add(module)
    return tuple(sorted(found))


def _missing(info: dict[str, Any]) -> set[str]:
    return set(info["missing_keys"]) | {entry[0] for entry in info["mismatched_keys"]}


@contextmanager
def _no_zero3() -> Iterator[None]:
    """Load without sharding: the meta device and ZeRO-3 exclude each other."""
    kept = hf_deepspeed._hf_deepspeed_config_weak_ref
    hf_deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        hf_deepspeed._hf_deepspeed_config_weak_ref = kept


@contextmanager
def _loading(config: ModelConfig) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (OSError, ValueError, ImportError) as error:
        raise UserError(f"model.name_or_path: {config.name_or_path}: can't be loaded: {_short(error)}") from error


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
