"""Plan of a recipe: memory and time by method and ZeRO stage, without loading weights."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import AutoConfig, TrainingArguments

from peftkit.errors import UserError
from peftkit.models.loading import resolve_source, translate_load_errors
from peftkit.planning.hardware import Hardware
from peftkit.planning.selection import PlanRow, choose_row, explain_choice, has_room
from peftkit.planning.step_time import estimate_step_time
from peftkit.planning.tracing import ModelMemory, interpolate_step, trace
from peftkit.planning.zero import PLACEMENTS, Placement, estimate_rank_memory, parse_placement
from peftkit.recipe.method import Method
from peftkit.recipe.schema import ModelConfig, Recipe

MAX_BATCH = 65536
# Arguments without effect on memory and time of a step, or arguments that need the hardware.
IGNORED_ARGUMENTS = {
    "deepspeed", "report_to", "use_cpu", "fp16", "bf16", "tf32", "hub_token", "push_to_hub", "torch_compile",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class MethodMemory:
    """Memory of a method with plain PyTorch and with DeepSpeed, which differ only in mixed precision."""

    plain: ModelMemory
    deepspeed: ModelMemory

    def select(self, placement: Placement) -> ModelMemory:
        """Return the memory for a placement."""
        return self.deepspeed if placement.stage else self.plain


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All rows of a plan and the recommended row; the JSON output has these field names.

    Attributes:
        model: Name of the model.
        weights: Number of total and trainable weights by method.
        ranks: Number of devices.
        batch: Batch size per rank, micro-batches per step, and the assumed row lengths.
        filled: Mean row length as a share of the assumed length; scales the operations.
        steps: Number of optimizer steps; None if the number of training rows is unknown.
        hardware: Assumed hardware.
        rows: Rows by method and placement, in order of increasing sharding.
        chosen: Index of the recommended row; None if no row fits.
        own: Index of the row with the recipe's settings; None if there is no such row.
        why: Reason for the recommendation.
        not_traced: Error by method, for methods that could not be traced.
    """

    model: str
    weights: dict[str, dict[str, int]]
    ranks: int
    batch: dict[str, int]
    filled: float
    steps: int | None
    hardware: Hardware
    rows: tuple[PlanRow, ...]
    chosen: int | None
    own: int | None
    why: str
    not_traced: dict[str, str]


def plan(
    recipe: Recipe, *, ranks: int, hardware: Hardware, on_gpu: bool, methods: Sequence[Method] = (),
    checkpointing: Sequence[bool] = (False, True), labels: Sequence[str] = ("0", "1"), train_rows: int | None = None,
    filled: float = 1,
) -> Plan:  # fmt: skip
    """Plan the recipe's method, or the `methods`, on `ranks` devices for every ZeRO stage.

    Only the model's config is read. `checkpointing` lists the values of activation checkpointing to plan. Memory
    assumes rows of the task's maximum length, time assumes the share `filled` of that length. Raises UserError if the
    config cannot be loaded.
    """
    config = read_config(recipe.model)
    deepspeed = recipe.training.get("deepspeed")
    placement = None if deepspeed == "auto" else parse_placement(deepspeed)
    traced: dict[tuple[str, bool], MethodMemory] = {}
    failed: dict[str, str] = {}
    for method in methods or (recipe.method,):
        for recompute in checkpointing:
            try:
                traced[method.name, recompute] = trace_method(recipe, config, method, recompute, labels, on_gpu, filled)
            except UserError:
                raise
            except Exception as error:
                failed[method.name] = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    if not traced:
        name, why = next(iter(failed.items()))
        raise UserError(f"{name}: cannot trace a training step of {config.model_type} without tensor values ({why})")
    arguments = make_arguments(recipe)
    steps = _count_steps(arguments, ranks, train_rows)
    rows = tuple(
        _make_row(name, one.select(place), recompute, place, ranks, arguments, hardware, steps)
        for (name, recompute), one in traced.items()
        for place in (PLACEMENTS if ranks > 1 else [one for one in PLACEMENTS if one.stage in (0, 3)])
    )
    chosen = choose_row(rows)
    return Plan(
        model=recipe.model.name_or_path,
        weights={
            name: {"trainable": one.plain.trainable, "total": one.plain.total} for (name, _), one in traced.items()
        },
        ranks=ranks,
        batch={
            "rows": arguments.per_device_train_batch_size, "micro_batches": arguments.gradient_accumulation_steps,
            **recipe.task.columns.max_lengths,
        },
        filled=filled, steps=steps, hardware=hardware, rows=rows, chosen=chosen,
        own=_find_recipe_row(recipe, placement, arguments, rows),
        why=explain_choice(rows, chosen, ranks, hardware),
        not_traced=failed,
    )  # fmt: skip


def trace_method(
    recipe: Recipe, config: Any, method: Method, checkpointing: bool, labels: Sequence[str], on_gpu: bool, filled: float
) -> MethodMemory:
    """Trace steps with the recipe's batch size and with twice that size; `filled` scales the operations."""
    arguments = make_arguments(recipe, checkpointing=checkpointing)
    micro = arguments.per_device_train_batch_size
    options: dict[str, Any] = {
        "labels": labels, "dtype": recipe.model.dtype, "rows": (micro, 2 * micro), "on_gpu": on_gpu,
    }  # fmt: skip

    def trace_steps(deepspeed: bool) -> ModelMemory:
        found = trace(config, recipe.task, method, arguments, deepspeed=deepspeed, **options)
        steps = tuple(replace(step, flops=int(step.flops * filled)) for step in found.steps)
        return replace(found, steps=steps)

    plain = trace_steps(deepspeed=False)
    is_mixed = arguments.bf16 or arguments.fp16
    return MethodMemory(plain=plain, deepspeed=trace_steps(deepspeed=True) if is_mixed else plain)


def read_config(config: ModelConfig) -> Any:
    """Read the model's config without weights. Raises UserError if the config cannot be loaded."""
    with translate_load_errors(config):
        return AutoConfig.from_pretrained(
            resolve_source(config), revision=config.revision, trust_remote_code=config.trust_remote_code
        )


def make_arguments(recipe: Recipe, checkpointing: bool | None = None) -> TrainingArguments:
    """Make the training arguments that affect a step, independent of the hardware of this process."""
    given = {name: value for name, value in recipe.training.items() if name not in IGNORED_ARGUMENTS}
    old = given.pop("gradient_checkpointing", False)
    given.pop("gradient_checkpointing_kwargs", None)
    enabled = given.pop("activation_checkpointing", old) if checkpointing is None else checkpointing
    options = {**recipe.task.trainer.defaults, **given, "activation_checkpointing": enabled}
    options |= {"output_dir": "", "use_cpu": True, "report_to": "none"}
    # Otherwise the library would join the other ranks and set the device of the process.
    alone = {"_setup_devices": torch.device("cpu"), "_n_gpu": 0, "distributed_state": None}
    kind: Any = type("PlannedArguments", (recipe.task.trainer.arguments_class,), alone)
    try:
        arguments = kind(**options)
    except (ValueError, TypeError, ImportError) as error:
        raise UserError(f"training: {' '.join(str(error).split())}") from error
    # Set after the constructor, which checks these options against the hardware of this process.
    arguments.bf16, arguments.fp16 = bool(recipe.training.get("bf16")), bool(recipe.training.get("fp16"))
    return arguments


def _count_steps(arguments: TrainingArguments, ranks: int, train_rows: int | None) -> int | None:
    if arguments.max_steps > 0:
        return arguments.max_steps
    if train_rows is None:
        return None
    batches = -(-train_rows // (arguments.per_device_train_batch_size * ranks))
    return math.ceil(arguments.num_train_epochs * -(-batches // arguments.gradient_accumulation_steps))


def _make_row(
    method: str, memory: ModelMemory, checkpointing: bool, placement: Placement, ranks: int,
    arguments: TrainingArguments, hardware: Hardware, steps: int | None,
) -> PlanRow:  # fmt: skip
    step = memory.steps[0]
    rank_memory = estimate_rank_memory(memory, step, placement, ranks)
    step_time = estimate_step_time(memory, step, placement, ranks, arguments.gradient_accumulation_steps, hardware)
    return PlanRow(
        method=method, placement=placement.name, checkpointing=checkpointing, memory=rank_memory, time=step_time,
        fits=has_room(rank_memory, hardware),
        largest_batch=_find_largest_batch(memory, placement, ranks, hardware),
        hours=None if steps is None else steps * step_time.seconds / 3600,
    )  # fmt: skip


def _find_largest_batch(memory: ModelMemory, placement: Placement, ranks: int, hardware: Hardware) -> int:
    """Find the largest batch size that fits, by interpolation between the traced batch sizes."""

    def fits_in_memory(rows: int) -> bool:
        return has_room(estimate_rank_memory(memory, interpolate_step(memory.steps, rows), placement, ranks), hardware)

    low, high = 0, MAX_BATCH
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits_in_memory(middle) else (low, middle - 1)
    return low


def _find_recipe_row(
    recipe: Recipe, placement: Placement | None, arguments: TrainingArguments, rows: Sequence[PlanRow]
) -> int | None:
    """Find the index of the row with the recipe's settings in `placement`."""
    if placement not in PLACEMENTS:
        return None
    settings = recipe.method.name, placement.name, bool(arguments.activation_checkpointing)
    same = [index for index, row in enumerate(rows) if (row.method, row.placement, row.checkpointing) == settings]
    return same[0] if same else None
