"""Apply a fine-tuning method to a model, and check that its head is trained and not quantized."""

import copy
import difflib
import warnings
from typing import Any

import peft
import torch
from peft import PeftModel
from transformers import PreTrainedModel

from peftkit.errors import AuditError, UserError
from peftkit.recipe.method import Method


def apply_method(
    method: Method, model: PreTrainedModel, head: tuple[str, ...], task_type: str, unused: tuple[str, ...] = ()
) -> PreTrainedModel | PeftModel:
    """Apply `method` to `model`; every method trains and saves the modules in `head`.

    Modules in `unused` get no adapter if the method can exclude modules. Raises UserError if peft rejects the config
    for this model.
    """
    if method.peft is None:
        return model
    config: Any = copy.deepcopy(method.peft)
    kind = type(config).__name__
    config.task_type = task_type
    if not hasattr(config, "modules_to_save"):
        raise UserError(f"method.peft: {kind} can't save the new head {', '.join(head)}; use another method")
    config.modules_to_save = sorted({*(config.modules_to_save or ()), *head})
    if unused and not isinstance(getattr(config, "exclude_modules", ""), str):
        config.exclude_modules = sorted({*(config.exclude_modules or ()), *unused})
    _check_targets(getattr(config, "target_modules", None), model)
    if method.quantization is not None:
        model = prepare_quantized_model(model)
    try:
        with warnings.catch_warnings():
            # peft corrects this option for the transposed layers of GPT-2, with a warning.
            warnings.filterwarnings("ignore", message="fan_in_fan_out is set to False")
            adapted = peft.get_peft_model(model, config)
    except (ValueError, NotImplementedError, KeyError) as error:
        raise UserError(
            f"method.peft: {kind} does not fit {type(model).__name__}: {_read_first_line(error)}"
        ) from error
    return adapted


def _check_targets(targets: Any, model: torch.nn.Module) -> None:
    """Raise UserError for a target module that does not exist, which peft ignores."""
    if not isinstance(targets, list | tuple | set):
        return
    names = [name for name, _ in model.named_modules()]
    weighted = {name.rpartition(".")[2] for name, module in model.named_modules() if hasattr(module, "weight")}
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name in names):
            kinds = sorted(name for name in weighted if not name.isdigit())
            near = difflib.get_close_matches(target, kinds, n=1)
            hint = f"use '{near[0]}'" if near else f"use one of {', '.join(kinds[:30])}"
            raise UserError(f"method.peft.target_modules: no module '{target}'; {hint}")


def prepare_quantized_model(model: PreTrainedModel) -> PreTrainedModel:
    """Freeze a 4-bit base model and cast all modules except the 4-bit layers to float32.

    A 4-bit layer rounds its bias to the compute dtype at the first forward pass. This function rounds the bias, so that
    frozen weights do not change later. A ZeRO-3 shard stays unchanged, because the layer rounds the gathered copy. On a
    CPU with bfloat16 units a 4-bit layer would repack its weights at the first evaluation and could not be trained
    afterwards; this function disables the repacking.
    """
    model = peft.prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    module: Any
    for module in model.modules():
        if type(module).__name__ != "Linear4bit":
            continue
        module.support_avx512bf16_for_cpu = False
        if module.bias is not None and not hasattr(module.bias, "ds_tensor"):
            module.bias.data = module.bias.data.to(module.compute_dtype)
    return model


def is_mergeable(model: torch.nn.Module) -> bool:
    """Return whether the adapter can be merged into the base model: all methods except prompt-based ones."""
    return not isinstance(model, PeftModel) or hasattr(model.base_model, "merge_and_unload")


def _read_first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def check_head(model: torch.nn.Module, missing_keys: set[str]) -> None:
    """Check that each parameter that the checkpoint lacks is trainable and not quantized.

    Raises AuditError with the names of the other parameters.
    """
    trained = {remove_peft_prefix(name) for name, parameter in model.named_parameters() if parameter.requires_grad}
    if frozen := sorted(missing_keys - trained):
        raise AuditError(f"head: new parameters are frozen (expected trainable): {', '.join(frozen)}")
    # A 4-bit layer packs a new head at the first forward pass, so check the class of the layer, not its weight.
    packed = {
        remove_peft_prefix(f"{name}.{own}")
        for name, module in model.named_modules()
        if type(module).__module__.startswith("bitsandbytes.nn")
        for own, _ in module.named_parameters(recurse=False)
    }
    if quantized := sorted(missing_keys & packed):
        raise AuditError(f"head: new parameters are quantized (expected full precision): {', '.join(quantized)}")


def remove_peft_prefix(name: str) -> str:
    """Return the name of a parameter in the model without peft."""
    name = name.removeprefix("base_model.").removeprefix("model.") if name.startswith("base_model.") else name
    parts = name.split(".")
    if "modules_to_save" in parts:
        at = parts.index("modules_to_save")
        parts = parts[:at] + parts[at + 2 :]
    return ".".join(part for part in parts if part not in ("original_module", "base_layer"))
