"""Plan of a recipe: memory and time of each method and ZeRO stage on given hardware, without loading weights."""

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
# Arguments that change neither memory nor time of a step, or that need the hardware present.
IGNORED_ARGUMENTS = {
    "deepspeed", "report_to", "use_cpu", "fp16", "bf16", "tf32", "hub_token", "push_to_hub", "torch_compile",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class MethodMemory:
    """Memory of a method with plain PyTorch and with DeepSpeed; they differ in mixed precision only."""

    plain: ModelMemory
    deepspeed: ModelMemory

    def select(self, placement: Placement) -> ModelMemory:
        """Return the memory that applies to a placement."""
        return self.deepspeed if placement.stage else self.plain


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All planned rows and the recommended one; the field names are those of the JSON output.

    Attributes:
        model: Name of the model.
        weights: Total and trainable weights, by method.
        ranks: Number of devices.
        batch: Rows of a rank's batch, micro-batches of a step, and the assumed length of rows.
        filled: Mean length of rows as a share of that length; scales the operations.
        steps: Optimizer steps of the training; None when the number of rows is unknown.
        hardware: Assumed hardware.
        rows: Rows by method, placements from the least to the most sharded.
        chosen: Index of the recommended row; None when nothing fits.
        own: Index of the row of the recipe as it is; None where it is not planned.
        why: Reason of the recommendation.
        not_traced: Cause for each method that could not be traced.
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
    """Plan the recipe's method, or the `methods`, for `ranks` devices under every stage of ZeRO.

    Only the model's config is read. `checkpointing` lists whether to plan without and with activation checkpointing.
    Memory assumes rows of the task's maximum length, time `filled` of it. Raises UserError when the config can't be
    loaded.
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
        raise UserError(f"{name}: a step of {config.model_type} can't be traced without values ({why})")
    arguments = make_arguments(recipe)
    steps = _count_steps(arguments, ranks, train_rows)
    rows = tuple(
        _row(name, one.select(place), recompute, place, ranks, arguments, hardware, steps)
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
    """Trace steps of the recipe's batch and of twice as many rows; operations are scaled by `filled`."""
    arguments = make_arguments(recipe, checkpointing=checkpointing)
    micro = arguments.per_device_train_batch_size
    options: dict[str, Any] = {
        "labels": labels, "dtype": recipe.model.dtype, "rows": (micro, 2 * micro), "on_gpu": on_gpu,
    }  # fmt: skip

    def traced(deepspeed: bool) -> ModelMemory:
        found = trace(config, recipe.task, method, arguments, deepspeed=deepspeed, **options)
        steps = tuple(replace(step, flops=int(step.flops * filled)) for step in found.steps)
        return replace(found, steps=steps)

    plain = traced(deepspeed=False)
    return MethodMemory(plain=plain, deepspeed=traced(deepspeed=True) if arguments.bf16 or arguments.fp16 else plain)


def read_config(config: ModelConfig) -> Any:
    """Read the model's config; no weight is read. Raises UserError when it can't be loaded."""
    with translate_load_errors(config):
        return AutoConfig.from_pretrained(
            resolve_source(config), revision=config.revision, trust_remote_code=config.trust_remote_code
        )


def make_arguments(recipe: Recipe, checkpointing: bool | None = None) -> TrainingArguments:
    """Make the recipe's training arguments that a step depends on, independent of this process's hardware."""
    given = {name: value for name, value in recipe.training.items() if name not in IGNORED_ARGUMENTS}
    old = given.pop("gradient_checkpointing", False)
    given.pop("gradient_checkpointing_kwargs", None)
    wanted = given.pop("activation_checkpointing", old) if checkpointing is None else checkpointing
    options = {**recipe.task.trainer.defaults, **given, "activation_checkpointing": wanted}
    options |= {"output_dir": "", "use_cpu": True, "report_to": "none"}
    # The library would join the other ranks and fix the device of the whole process.
    alone = {"_setup_devices": torch.device("cpu"), "_n_gpu": 0, "distributed_state": None}
    kind: Any = type("PlannedArguments", (recipe.task.trainer.arguments_class,), alone)
    try:
        arguments = kind(**options)
    except (ValueError, TypeError, ImportError) as error:
        raise UserError(f"training: {' '.join(str(error).split())}") from error
    # Set afterwards: the library checks them against the hardware of this process.
    arguments.bf16, arguments.fp16 = bool(recipe.training.get("bf16")), bool(recipe.training.get("fp16"))
    return arguments


def _count_steps(arguments: TrainingArguments, ranks: int, train_rows: int | None) -> int | None:
    if arguments.max_steps > 0:
        return arguments.max_steps
    if train_rows is None:
        return None
    batches = -(-train_rows // (arguments.per_device_train_batch_size * ranks))
    return math.ceil(arguments.num_train_epochs * -(-batches // arguments.gradient_accumulation_steps))


def _row(
    method: str, memory: ModelMemory, checkpointing: bool, placement: Placement, ranks: int,
    arguments: TrainingArguments, hardware: Hardware, steps: int | None,
) -> PlanRow:  # fmt: skip
    step = memory.steps[0]
    needed = estimate_rank_memory(memory, step, placement, ranks)
    taken = estimate_step_time(memory, step, placement, ranks, arguments.gradient_accumulation_steps, hardware)
    return PlanRow(
        method=method, placement=placement.name, checkpointing=checkpointing, memory=needed, time=taken,
        fits=has_room(needed, hardware),
        largest_batch=_find_largest_batch(memory, placement, ranks, hardware),
        hours=None if steps is None else steps * taken.seconds / 3600,
    )  # fmt: skip


def _find_largest_batch(memory: ModelMemory, placement: Placement, ranks: int, hardware: Hardware) -> int:
    """Find the largest batch that fits, on the line through the two traced batches."""

    def can_be(rows: int) -> bool:
        return has_room(estimate_rank_memory(memory, interpolate_step(memory.steps, rows), placement, ranks), hardware)

    low, high = 0, MAX_BATCH
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if can_be(middle) else (low, middle - 1)
    return low


def _find_recipe_row(
    recipe: Recipe, placement: Placement | None, arguments: TrainingArguments, rows: Sequence[PlanRow]
) -> int | None:
    """Find the index of the recipe's own row in `placement`."""
    if placement not in PLACEMENTS:
        return None
    wanted = recipe.method.name, placement.name, bool(arguments.activation_checkpointing)
    same = [index for index, row in enumerate(rows) if (row.method, row.placement, row.checkpointing) == wanted]
    return same[0] if same else None
