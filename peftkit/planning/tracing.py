"""Trace memory and operations of a training step with fake tensors."""

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from bitsandbytes.optim.optimizer import Optimizer8bit
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from transformers import Trainer, TrainingArguments

from peftkit.models.parameters import count_parameters
from peftkit.planning.dummy_batch import make_dummy_batch
from peftkit.planning.memory_tracker import MemoryTracker
from peftkit.planning.meta_model import (
    find_largest_layer,
    make_meta_model,
    replace_meta_tensors,
    sum_bytes,
    sum_model_bytes,
    sum_quantization_bytes,
)
from peftkit.recipe.method import Method
from peftkit.system.environment import count_optimizer_bytes
from peftkit.tasks import Task


@dataclass(frozen=True, kw_only=True)
class StepMemory:
    """Peak bytes of a step without sharding, in addition to weights and optimizer state.

    Attributes:
        rows: Batch size.
        forward: Peak of the forward pass.
        backward: Peak of the backward pass: activations and gradients.
        accumulated: Gradients of earlier micro-batches, with gradient accumulation.
        released: Peak of the backward pass if each gradient is freed at once, as in ZeRO-2 and ZeRO-3.
        update: Peak of gradient clipping and optimizer step, gradients included.
        flops: Floating point operations of forward and backward; a multiply-add counts as two.
        operators: Number of PyTorch operators in forward and backward.
    """

    rows: int
    forward: int
    backward: int
    accumulated: int
    released: int
    update: int
    flops: int
    operators: int


@dataclass(frozen=True, kw_only=True)
class ModelMemory:
    """Bytes of a model on one device without sharding, and of training steps.

    Attributes:
        total: Number of weights.
        trainable: Number of trainable weights.
        weights: Bytes of all weights, buffers and quantization state.
        quantization: Bytes of the quantization scales, part of `weights`.
        trained_weights: Bytes of the trainable weights.
        gradients: Bytes of the gradients.
        optimizer: Bytes of the optimizer state.
        master_optimizer: Bytes of the optimizer state for float32 copies of the trainable weights.
        largest_layer: Bytes of the largest module that ZeRO-3 gathers.
        width: Hidden size of the model.
        steps: Traced steps with several batch sizes.
    """

    total: int
    trainable: int
    weights: int
    quantization: int
    trained_weights: int
    gradients: int
    optimizer: int
    master_optimizer: int
    largest_layer: int
    width: int
    steps: tuple[StepMemory, ...]

    def peak(self, step: StepMemory) -> int:
        """Return the peak bytes of training with such steps."""
        return self.weights + self.optimizer + max(max(step.forward, step.backward) + step.accumulated, step.update)


def interpolate_step(steps: Sequence[StepMemory], rows: int) -> StepMemory:
    """Estimate a step of `rows` rows by linear interpolation between the first and the last traced step."""
    first, last = steps[0], steps[-1]

    def interpolate(name: str) -> int:
        low, high = getattr(first, name), getattr(last, name)
        return max(0, int(low + (high - low) * (rows - first.rows) / (last.rows - first.rows)))

    names = ("forward", "backward", "accumulated", "released", "update", "flops", "operators")
    return StepMemory(rows=rows, **{name: interpolate(name) for name in names})


class _FixedShapes(TorchFunctionMode):
    """Return the shapes of real training for operators whose shapes depend on values."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Assume that every row has the same number of end tokens."""
        if func is torch.unique_consecutive:
            return args[0][:1]
        if func is torch.Tensor.__getitem__:
            index = args[1][0] if isinstance(args[1], tuple) else args[1]
            # A classifier that reads the last end token of each row selects tokens with a mask.
            if isinstance(index, torch.Tensor) and index.dtype == torch.bool and index.dim() == 2:
                return args[0][:, -1]
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def _use_attention_kernel(on_gpu: bool) -> Iterator[None]:
    """Use the attention kernel of the target device, instead of the CPU kernel for fake tensors."""
    own = functional.scaled_dot_product_attention
    if on_gpu:
        functional.scaled_dot_product_attention = _compute_fused_attention
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = own


def _compute_fused_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0, is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
) -> torch.Tensor:  # fmt: skip
    """Compute attention with the memory-efficient GPU kernel, which stores no matrix of attention weights."""
    if enable_gqa:
        repeats = query.size(-3) // key.size(-3)
        key, value = key.repeat_interleave(repeats, -3), value.repeat_interleave(repeats, -3)
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill_(attn_mask.logical_not(), -math.inf)
    if attn_mask is not None:
        attn_mask = attn_mask.expand(*query.shape[:-1], key.size(-2))
    found = torch.ops.aten._scaled_dot_product_efficient_attention(
        query, key, value, attn_mask, True, dropout_p, is_causal, scale=scale
    )
    return found[0]


def trace(
    config: Any, task: Task, method: Method, arguments: TrainingArguments, *, labels: Sequence[str], dtype: str,
    rows: Sequence[int], on_gpu: bool, head: Sequence[str] | None = None, deepspeed: bool = False,
) -> ModelMemory:  # fmt: skip
    """Trace training steps of the model of `config`, one for each batch size in `rows`.

    Tensors are fake tensors of PyTorch: no weights are read and nothing is computed. Arguments as in `make_meta_model`;
    `on_gpu` also selects the attention kernel. In mixed precision PyTorch casts each operator, `deepspeed` casts the
    whole model. Raises the errors of the model if a step needs tensor values.
    """
    model = make_meta_model(config, task, method, arguments, labels, dtype, head, on_gpu)
    half = torch.bfloat16 if arguments.bf16 else torch.float16 if arguments.fp16 else None
    with FakeTensorMode(), _FixedShapes(), _use_attention_kernel(on_gpu):
        replace_meta_tensors(model, half if deepspeed else None)
        weights, quantization = sum_model_bytes(model), sum_quantization_bytes(model)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = _make_optimizer(model, arguments, trained)
        state = _measure_state(optimizer, trained)
        steps = tuple(
            _trace_step(model, optimizer, task, arguments, len(labels), count, on_gpu, None if deepspeed else half)
            for count in rows
        )
        parameters = count_parameters(model)
        return ModelMemory(
            total=parameters["total"],
            trainable=parameters["trainable"],
            weights=weights,
            quantization=quantization,
            trained_weights=sum_bytes(trained),
            gradients=sum_bytes(trained),
            optimizer=state,
            master_optimizer=_measure_master_state(model, arguments, trained, state),
            largest_layer=find_largest_layer(model),
            width=getattr(model.config, "encoder", model.config).hidden_size,
            steps=steps,
        )


def _make_optimizer(
    model: torch.nn.Module, arguments: TrainingArguments, trained: Sequence[torch.nn.Parameter]
) -> torch.optim.Optimizer:
    """Make the optimizer for `trained`: the trainable weights of `model`, or copies in the same order."""
    kind, options = Trainer.get_optimizer_cls_and_kwargs(arguments)
    # An 8-bit optimizer computes quantization levels, which does not work with fake tensors.
    with unset_fake_temporarily():
        optimizer = kind(trained, **options)
    if isinstance(optimizer, Optimizer8bit):
        optimizer.name2qmap = {name: torch.empty(256) for name in ("dynamic", "udynamic")}
        # The Trainer uses 32 bits for embeddings. The library has one global manager for such exceptions.
        tables = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
        own = [id(parameter) for parameter in model.parameters() if parameter.requires_grad]
        whole = {
            (0, replace_meta_tensors): {"optim_bits": 32}
            for replace_meta_tensors, one in enumerate(own)
            if one in tables
        }
        optimizer.mng = SimpleNamespace(index2config=whole, pid2config={}, module_weight_config_triple=[])
    return optimizer


def _measure_state(optimizer: torch.optim.Optimizer, trained: Sequence[torch.nn.Parameter]) -> int:
    """Measure the bytes of the optimizer state, which the first step creates."""
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    return count_optimizer_bytes(optimizer)


def _measure_master_state(
    model: torch.nn.Module, arguments: TrainingArguments, trained: Sequence[torch.nn.Parameter], state: int
) -> int:
    if all(parameter.dtype == torch.float32 for parameter in trained):
        return state
    copies = [torch.nn.Parameter(torch.empty_like(parameter, dtype=torch.float32)) for parameter in trained]
    return _measure_state(_make_optimizer(model, arguments, copies), copies)


def _trace_step(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, task: Task, arguments: TrainingArguments, classes: int,
    rows: int, on_gpu: bool, half: torch.dtype | None,
) -> StepMemory:  # fmt: skip
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    _, released, _ = _trace_passes(model, trained, task, classes, rows, on_gpu, half, release=True)
    accumulated = 0
    if arguments.gradient_accumulation_steps > 1:
        for parameter in trained:
            parameter.grad = torch.zeros_like(parameter)
        accumulated = sum_bytes([parameter.grad for parameter in trained if parameter.grad is not None])
    forward, backward, live = _trace_passes(model, trained, task, classes, rows, on_gpu, half, release=False)
    gradients = sum_bytes([parameter.grad for parameter in trained if parameter.grad is not None])
    flops, operators = live.flops, live.operators
    live = _make_tracker(model, on_gpu)
    for state in optimizer.state.values():
        live.ignore(state.values())
    with live:
        if arguments.max_grad_norm:
            torch.nn.utils.clip_grad_norm_(trained, arguments.max_grad_norm)
        optimizer.step()
    optimizer.zero_grad()
    return StepMemory(
        rows=rows, forward=forward, backward=backward, accumulated=accumulated, released=released,
        update=gradients + live.peak, flops=flops, operators=operators,
    )  # fmt: skip


def _trace_passes(
    model: torch.nn.Module, trained: Sequence[torch.nn.Parameter], task: Task,
    classes: int, rows: int, on_gpu: bool, half: torch.dtype | None, *, release: bool,
) -> tuple[int, int, MemoryTracker]:  # fmt: skip
    """Return the peak bytes of forward and backward in addition to the model, and the tracker."""

    def drop(parameter: torch.Tensor) -> None:
        parameter.grad = None

    hooks = [parameter.register_post_accumulate_grad_hook(drop) for parameter in trained] if release else []
    live = _make_tracker(model, on_gpu)
    with live:
        batch = make_dummy_batch(task, rows, classes)
        with torch.autocast("cpu", dtype=half) if half else contextlib.nullcontext():
            loss = model(**batch).loss
        forward, live.peak = live.peak, live.now
        loss.backward()
        del loss, batch
    for hook in hooks:
        hook.remove()
    return forward, live.peak, live


def _make_tracker(model: torch.nn.Module, on_gpu: bool) -> MemoryTracker:
    """Make a tracker that excludes the weights and gradients of the model."""
    live = MemoryTracker(on_gpu)
    live.ignore((*model.parameters(), *model.buffers(), *(parameter.grad for parameter in model.parameters())))
    return live
