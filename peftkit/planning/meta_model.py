"""Models on the meta device: shapes without values, built from a config."""

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from bitsandbytes.functional import QuantState
from bitsandbytes.nn import Linear4bit, Params4bit
from transformers import AutoModelForSeq2SeqLM, PreTrainedModel, TrainingArguments

from peftkit.models import adapters
from peftkit.models.encoder_decoder import build_encoder_decoder_config
from peftkit.models.loading import find_task_modules
from peftkit.recipe.method import Method, Quantization
from peftkit.tasks import Task

BLOCK = 64
"""Number of 4-bit weights per scale (QLoRA paper, section 3)."""
SCALES_BLOCK = 256
"""Number of scales per second-level scale in double quantization (QLoRA paper, section 3)."""


def make_meta_model(
    config: Any, task: Task, method: Method, arguments: TrainingArguments, labels: Sequence[str], dtype: str,
    head: Sequence[str] | None, on_gpu: bool,
) -> Any:  # fmt: skip
    """Build the model of `config` with the task's head and the method, on the device `meta`.

    `dtype` is the dtype of the loaded weights. `on_gpu` determines the 4-bit compute dtype for `auto`. Without `head`,
    the modules outside of the base model are the head. Raises UserError if the method does not fit the model.
    """
    with torch.device("meta"):
        return _build_model(config, task, method, arguments, labels, dtype, head, on_gpu)


def _build_model(
    config: Any, task: Task, method: Method, arguments: TrainingArguments, labels: Sequence[str], dtype: str,
    head: Sequence[str] | None, on_gpu: bool,
) -> Any:  # fmt: skip
    config = copy.deepcopy(config)
    if task.model.auto_class is AutoModelForSeq2SeqLM:
        config = build_encoder_decoder_config(config)
    for name, value in task.model.head_config(labels).items():
        setattr(config, name, value)
    loaded = config.dtype if dtype == "auto" else getattr(torch, dtype)
    model: PreTrainedModel = task.model.auto_class.from_config(config, dtype=loaded or torch.float32)
    model.config.pad_token_id = 0 if model.config.pad_token_id is None else model.config.pad_token_id
    task_modules = find_task_modules(model)
    if head is None:
        head = task_modules
    if method.quantization is not None:
        _quantize(model, method.quantization, on_gpu, (*head, *task_modules))
    adapted = adapters.apply_method(method, model, tuple(head), task.model.peft_task_type).train()
    if arguments.activation_checkpointing:
        # Recomputation would restore the RNG state, which does not work with fake tensors.
        adapted.activation_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": False})
    return adapted


def replace_meta_tensors(model: torch.nn.Module, half: torch.dtype | None = None) -> None:
    """Replace the meta tensors of the model by new tensors, which are fake tensors in a FakeTensorMode.

    With `half` all tensors except 4-bit weights get that dtype, as in DeepSpeed's mixed precision.
    """
    replaced: dict[int, Any] = {}

    def fake(tensor: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=dtype or tensor.dtype)

    def cast(tensor: torch.Tensor) -> torch.Tensor:
        return fake(tensor, half if tensor.is_floating_point() else None)

    for module in model.modules():
        for name, own in module._parameters.items():
            if own is not None and id(own) not in replaced:
                packed = isinstance(own, Params4bit)
                data = fake(own) if packed else cast(own)
                parameter: Any = torch.nn.Parameter(data, requires_grad=own.requires_grad)
                if isinstance(own, Params4bit):
                    parameter.quant_state = _make_fake_state(own.quant_state, fake)
                replaced[id(own)] = parameter
            # The key is the id of the original, so that tied weights stay tied.
            module._parameters[name] = None if own is None else replaced[id(own)]
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else cast(buffer)


def _make_fake_state(state: QuantState, fake: Callable[[torch.Tensor], torch.Tensor]) -> QuantState:
    fake_state = copy.copy(state)
    for name in ("absmax", "code", "offset"):
        if isinstance(tensor := getattr(state, name, None), torch.Tensor):
            setattr(fake_state, name, fake(tensor))
    if state.state2 is not None:
        fake_state.state2 = _make_fake_state(state.state2, fake)
    return fake_state


def _quantize(model: PreTrainedModel, quantization: Quantization, on_gpu: bool, skipped: tuple[str, ...]) -> None:
    """Replace linear layers by 4-bit layers with the shapes of weights and scales."""
    output = model.get_output_embeddings()
    in_float32 = set(model._keep_in_fp32_modules or ())
    compute = quantization.bnb_4bit_compute_dtype
    if compute == "auto":
        compute = "bfloat16" if on_gpu else "float32"
    storage = getattr(torch, quantization.bnb_4bit_quant_storage)
    double = quantization.bnb_4bit_use_double_quant
    for name, module in list(model.named_modules()):
        # T5 requires `wo` in float32.
        is_unquantized = module is output or bool(in_float32 & set(name.split(".")))
        is_unquantized = is_unquantized or any(name == one or name.startswith(f"{one}.") for one in skipped)
        if type(module) is not torch.nn.Linear or is_unquantized:
            continue
        packed: Any = Linear4bit(
            module.in_features, module.out_features, bias=module.bias is not None, compress_statistics=double,
            compute_dtype=getattr(torch, compute), quant_type=quantization.bnb_4bit_quant_type, quant_storage=storage,
        )  # fmt: skip
        count = module.weight.numel()
        scales = -(-count // BLOCK)
        state = QuantState(
            absmax=torch.empty(scales, dtype=torch.uint8 if double else torch.float32),
            shape=module.weight.shape, code=torch.empty(16), blocksize=BLOCK,
            quant_type=quantization.bnb_4bit_quant_type, dtype=module.weight.dtype,
            offset=torch.empty(()) if double else None,
            state2=QuantState(
                absmax=torch.empty(-(-scales // SCALES_BLOCK)), code=torch.empty(256), blocksize=SCALES_BLOCK,
                dtype=torch.float32,
            ) if double else None,
        )  # fmt: skip
        packed.weight.data = torch.empty((count + 1) // (2 * storage.itemsize), 1, dtype=storage)
        packed.weight.quant_state = packed.quant_state = state
        packed.weight.bnb_quantized = True
        parent, _, own = name.rpartition(".")
        model.get_submodule(parent)._modules[own] = packed
    marked: Any = model
    marked.is_loaded_in_4bit = True


def sum_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Sum the bytes of the tensors; count a repeated tensor once."""
    return sum({id(tensor): tensor.numel() * tensor.itemsize for tensor in tensors}.values())


def sum_model_bytes(model: torch.nn.Module) -> int:
    """Sum the bytes of all weights, buffers and quantization state."""
    return sum_bytes([*model.parameters(), *model.buffers()]) + sum_quantization_bytes(model)


def sum_quantization_bytes(model: torch.nn.Module) -> int:
    """Sum the bytes of the scales of 4-bit weights."""
    states = [parameter.quant_state for parameter in model.parameters() if hasattr(parameter, "quant_state")]
    tensors = [
        tensor
        for state in states
        for one in (state, state.state2)
        if one is not None
        for tensor in (one.absmax, one.code, getattr(one, "offset", None))
        if tensor is not None
    ]
    return sum_bytes(tensors)


def find_largest_layer(model: torch.nn.Module) -> int:
    """Find the bytes of the largest module, without the weights of its children."""
    return max(sum_bytes(list(module.parameters(recurse=False))) for module in model.modules())
