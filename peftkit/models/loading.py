"""Load the tokenizer and the base model, optionally quantized, and find the new head."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers.integrations.deepspeed as hf_deepspeed
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainingArguments,
)
from transformers.core_model_loading import WeightRenaming

from peftkit.errors import AuditError, UserError
from peftkit.models.demo import find_demo_model
from peftkit.models.encoder_decoder import open_checkpoint
from peftkit.recipe.method import Quantization
from peftkit.recipe.schema import ModelConfig
from peftkit.system.logging import logger
from peftkit.tasks import Task

# Model types whose activations exceed the range of float16 and become infinite.
OVERFLOW_IN_FLOAT16 = {"t5", "mt5", "umt5", "longt5", "switch_transformers"}


@dataclass(frozen=True, kw_only=True)
class BaseModel:
    """A base model with its new head.

    Attributes:
        model: The model with a newly initialized head.
        missing_keys: Parameters that the checkpoint lacks, or contains in another shape.
        head: The outermost modules that contain only such parameters, or the innermost module that contains one.
        unused: Modules without influence on the output; frozen, without adapters.
    """

    model: PreTrainedModel
    missing_keys: frozenset[str]
    head: tuple[str, ...]
    unused: tuple[str, ...] = ()


def resolve_source(config: ModelConfig) -> str:
    """Find the source of the weights: an installed demo folder, a local folder, or a Hub id."""
    if config.name_or_path in ("demo", "demo-seq2seq"):
        return str(find_demo_model(config.name_or_path))
    path = Path(config.name_or_path).expanduser()
    if path.exists():
        return str(path)
    if config.name_or_path.startswith((".", "/", "~")):
        raise UserError(
            f"model.name_or_path: {config.name_or_path}: no such folder; use an existing folder or a Hub id"
        )
    return config.name_or_path


def load_tokenizer(config: ModelConfig, task: Task) -> PreTrainedTokenizerBase:
    """Load the checkpoint's tokenizer with padding on the right. Raises UserError if loading fails."""
    options: dict[str, Any] = {"revision": config.revision, "trust_remote_code": config.trust_remote_code}
    with translate_load_errors(config):
        tokenizer = AutoTokenizer.from_pretrained(resolve_source(config), **options)
        if more := task.model.tokenizer_options(tokenizer):
            tokenizer = AutoTokenizer.from_pretrained(resolve_source(config), **options, **more)
    least = tokenizer.num_special_tokens_to_add(False) + 1
    for field, length in task.columns.max_lengths.items():
        if length < least:
            raise UserError(f"task.{field}: must be at least {least}, got {length}; increase it")
    return ensure_padding(tokenizer, config.name_or_path)


def ensure_padding(tokenizer: PreTrainedTokenizerBase, name: str) -> PreTrainedTokenizerBase:
    """Set a pad token and padding on the right. Raises UserError without pad and end token."""
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise UserError(f"model.name_or_path: {name}: the tokenizer has no pad or end token; use another model")
        tokenizer.pad_token = tokenizer.eos_token
        logger.info(
            "the tokenizer has no pad token: using '%s' in the configs of tokenizer and model", tokenizer.eos_token
        )
    # A decoder counts positions from the left; with padding on the left, logits would depend on the batch.
    tokenizer.padding_side = "right"
    return tokenizer


def load_base(
    config: ModelConfig,
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    labels: Sequence[str],
    quantization: Quantization | None = None,
) -> BaseModel:
    """Load the pretrained weights with a head for `labels`; `quantization` excludes the head.

    An encoder checkpoint becomes an encoder-decoder if the task needs one. Raises UserError if the model cannot be
    loaded or quantized.
    """
    options: dict[str, Any] = dict(
        revision=config.revision,
        trust_remote_code=config.trust_remote_code,
        dtype=config.dtype,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
        **task.model.head_config(labels),
    )
    with translate_load_errors(config), ExitStack() as stack:
        # Sharded weights cannot be written as a checkpoint.
        with disable_zero3():
            start = stack.enter_context(
                open_checkpoint(resolve_source(config), task.model.auto_class, tokenizer, options)
            )
        if quantization is not None:
            # The head must be known before quantization; the meta device reads no weights.
            with disable_zero3():
                skeleton, info = task.model.auto_class.from_pretrained(start.path, device_map="meta", **options)
            if getattr(skeleton.config, "quantization_config", None) is not None:
                raise UserError(
                    f"model.name_or_path: {config.name_or_path} is already quantized; use its full-precision weights"
                )
            head = find_head_modules(skeleton, _find_missing_keys(info) | start.missing_keys)
            skipped = (*head, *find_task_modules(skeleton), *_find_output_embeddings(skeleton))
            options["quantization_config"] = quantization.config(tuple(dict.fromkeys(skipped)))
        model, info = task.model.auto_class.from_pretrained(start.path, **options)
    for name in start.unused:
        model.get_submodule(name).requires_grad_(False)
    model.name_or_path = model.config._name_or_path = resolve_source(config)
    task.model.configure(model, tokenizer)
    missing = (_find_missing_keys(info) | start.missing_keys) & {name for name, _ in model.named_parameters()}
    # The Trainer multiplies the loss by the number of ranks if it assumes that the model divides the loss. The forward
    # of these models accepts any keyword and does not divide.
    model.accepts_loss_kwargs = False
    # Under ZeRO-3 transformers stores renamings that this checkpoint did not use, and would save the old names.
    if conversions := getattr(model, "_weight_conversions", None):
        model._weight_conversions = [c for c in conversions if c.was_used() or not isinstance(c, WeightRenaming)]
    unused = tuple(name for name, _ in model.named_modules() if name.startswith(start.unused)) if start.unused else ()
    return BaseModel(
        model=model, missing_keys=frozenset(missing), head=find_head_modules(model, missing), unused=unused
    )


def match_checkpoint_labels(config: ModelConfig, task: Task, labels: Sequence[str]) -> tuple[str, ...]:
    """Return the labels in the order of the checkpoint's head, if it classifies the same labels.

    The head stays unchanged: row i of its weights belongs to label i of its config. Names are compared without case
    and surrounding white space. A head for other labels of the same number is used too, with a warning.
    """
    if len(labels) < 2:
        return tuple(labels)
    with translate_load_errors(config):
        found = AutoConfig.from_pretrained(
            resolve_source(config), revision=config.revision, trust_remote_code=config.trust_remote_code
        )
    model_class = task.model.auto_class._model_mapping.get(type(found), None)
    has_head = getattr(model_class, "__name__", None) in (found.architectures or ())
    if not has_head or found.num_labels != len(labels):
        return tuple(labels)
    names = [str(found.id2label[index]) for index in sorted(found.id2label)]
    by_name = {name.strip().casefold(): name for name in labels}
    ordered = tuple(by_name.get(name.strip().casefold(), "") for name in names)
    if len(by_name) == len(labels) and set(ordered) == set(labels):
        if ordered != tuple(labels):
            logger.info("label order taken from the checkpoint's head: %s", ", ".join(ordered))
        return ordered
    logger.warning(
        "the checkpoint's head was trained for labels %s; using its rows in this order for %s",
        ", ".join(names), ", ".join(labels),
    )  # fmt: skip
    return tuple(labels)


def check_precision(model: PreTrainedModel, quantization: Quantization | None, arguments: TrainingArguments) -> None:
    """Raise UserError for training or evaluation in float16 of a model that overflows in float16."""
    kinds = {model.config.model_type, getattr(getattr(model.config, "decoder", None), "model_type", "")}
    if not kinds & OVERFLOW_IN_FLOAT16:
        return
    options = {
        "training.fp16": arguments.fp16,
        "training.fp16_full_eval": arguments.fp16_full_eval,
        "method.quantization.bnb_4bit_compute_dtype": quantization and quantization.bnb_4bit_compute_dtype == "float16",
        "model.dtype": model.dtype == torch.float16,
    }
    for option, is_float16 in options.items():
        if is_float16:
            raise UserError(f"{option}: {model.config.model_type} overflows in float16; use bfloat16 or float32")


def load_finished_model(folder: str | Path, task: Task, **options: Any) -> PreTrainedModel:
    """Load a fully fine-tuned or exported model with its head. Raises UserError for missing weights."""
    try:
        model, info = task.model.auto_class.from_pretrained(folder, output_loading_info=True, **options)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder}: transformers cannot load this model ({_shorten(error)}); use the folder of a model"
        ) from error
    if missing := _find_missing_keys(info):
        raise UserError(f"{folder}: missing weights {', '.join(sorted(missing))}; use the folder of a finished model")
    return model


def find_head_modules(model: PreTrainedModel, missing_keys: set[str]) -> tuple[str, ...]:
    """Find the modules to train, save and not quantize, from the parameters that the checkpoint lacks.

    Raises AuditError for a parameter outside of any submodule.
    """
    names = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    found = set()
    for key in missing_keys & names:
        module = key.rpartition(".")[0]
        if not module:
            raise AuditError(f"head: parameter '{key}' is outside of any submodule; peft cannot save it")
        while above := module.rpartition(".")[0]:
            if any(name.startswith(f"{above}.") and name not in missing_keys for name in names):
                break
            module = above
        found.add(module)
    return tuple(sorted(name for name in found if not any(name.startswith(f"{outer}.") for outer in found)))


def find_task_modules(model: PreTrainedModel) -> tuple[str, ...]:
    """Find the modules outside of the base model, new or not; none for a model with output embeddings.

    peft trains such a module if it is called `classifier` or `score`, also when the checkpoint contains it.
    """
    children = {name: any(True for _ in module.parameters()) for name, module in model.named_children()}
    if model.get_output_embeddings() is not None or model.base_model_prefix not in children:
        return ()
    return tuple(name for name, has_weights in children.items() if name != model.base_model_prefix and has_weights)


def _find_output_embeddings(model: PreTrainedModel) -> list[str]:
    """Find the output layer over the vocabulary, which is tied to the embeddings and cannot be in 4 bits."""
    output = model.get_output_embeddings()
    return [name for name, module in model.named_modules() if output is not None and module is output]


def _find_missing_keys(info: dict[str, Any]) -> set[str]:
    return set(info["missing_keys"]) | {entry[0] for entry in info["mismatched_keys"]}


@contextmanager
def disable_zero3() -> Iterator[None]:
    """Disable ZeRO-3 sharding while loading, because the meta device does not work with ZeRO-3."""
    saved = hf_deepspeed._hf_deepspeed_config_weak_ref
    hf_deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        hf_deepspeed._hf_deepspeed_config_weak_ref = saved


@contextmanager
def translate_load_errors(config: ModelConfig) -> Iterator[None]:
    """Turn errors of the libraries in loading a model into UserError."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (OSError, ValueError, ImportError) as error:
        name = config.name_or_path
        is_local = Path(resolve_source(config)).exists()
        problem = "cannot load the folder" if is_local else "no such folder, and cannot load the Hub model"
        raise UserError(f"model.name_or_path: {name}: {problem}: {_shorten(error)}") from error


def _shorten(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
