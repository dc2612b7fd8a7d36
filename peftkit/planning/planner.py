"""What a recipe will cost in memory and time on given hardware, before any weight is there."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import AutoConfig, TrainingArguments

from peftkit.errors import UserError
from peftkit.models.loading import resolve_source, translate_load_errors
from peftkit.planning.hardware import Hardware
from peftkit.planning.scaling import of_rows
from peftkit.planning.selection import PlanRow, advice, choose, fits
from peftkit.planning.step_time import step_time
from peftkit.planning.tracing import ModelMemory, trace
from peftkit.planning.zero import PLACEMENTS, Placement, placement_of, rank_memory
from peftkit.recipe.method import Method
from peftkit.recipe.schema import ModelConfig, Recipe

LARGEST_BATCH = 65536
# Words of the recipe on which neither memory nor time of a step depends, or that want the hardware at hand.
LEFT_OUT = {"deepspeed", "report_to", "use_cpu", "fp16", "bf16", "tf32", "hub_token", "push_to_hub", "torch_compile"}


@dataclass(frozen=True, kw_only=True)
class Traced:
    """A method's memory as PyTorch alone trains it and as DeepSpeed does; the same but in mixed precision."""

    plain: ModelMemory
    deepspeed: ModelMemory

    def under(self, placement: Placement) -> ModelMemory:
        """The one of a placement."""
        return self.deepspeed if placement.stage else self.plain


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Every way that was looked at, and the one to choose.

    Attributes:
        model: The model's name.
        weights: Number of weights, by method, and of those the trained ones.
        ranks: Number of devices.
        batch: Rows of a rank's batch, micro-batches of a step, and the length that rows were taken to have.
        filled: Share of that length that rows have on average, by which computing is less.
        steps: Optimizer steps of the training; None when the number of rows is not known.
        hardware: What was assumed of it.
        rows: Method by method, placements from the least to the most sharded.
        chosen: Index of the row that is advised; None when nothing fits.
        own: Index of the row that the recipe itself asks for; None where that was not looked at.
        why: The advice, in one sentence.
        not_traced: Methods that could not be traced, and why.
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

    Only the model's config is read. `checkpointing` says whether activations are computed again: without, with.
    For memory, rows of the data are taken to have the task's full length, so that it is the most; for time, `filled`
    of it. Raises UserError when the config can't be had.
    """
    config = read_config(recipe.model)
    told = recipe.training.get("deepspeed")
    placement = None if told == "auto" else placement_of(told)
    traced: dict[tuple[str, bool], Traced] = {}
    failed: dict[str, str] = {}
    for method in methods or (recipe.method,):
        for recompute in checkpointing:
            try:
                traced[method.name, recompute] = traced_method(
                    recipe, config, method, recompute, labels, on_gpu, filled
                )
            except UserError:
                raise
            except Exception as error:
                failed[method.name] = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    if not traced:
        name, why = next(iter(failed.items()))
        raise UserError(f"{name}: a step of {config.model_type} can't be traced without values ({why})")
    arguments = arguments_of(recipe)
    steps = _steps(arguments, ranks, train_rows)
    rows = tuple(
        _row(name, one.under(place), recompute, place, ranks, arguments, hardware, steps)
        for (name, recompute), one in traced.items()
        for place in (PLACEMENTS if ranks > 1 else [one for one in PLACEMENTS if one.stage in (0, 3)])
    )
    chosen = choose(rows)
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
        own=_own(recipe, placement, arguments, rows),
        why=advice(rows, chosen, ranks, hardware),
        not_traced=failed,
    )  # fmt: skip


def traced_method(
    recipe: Recipe, config: Any, method: Method, checkpointing: bool, labels: Sequence[str], on_gpu: bool, filled: float
) -> Traced:
    """Steps of the recipe's batch and of twice as many rows, whose operations are `filled` of those of full rows."""
    arguments = arguments_of(recipe, checkpointing=checkpointing)
    micro = arguments.per_device_train_batch_size
    options: dict[str, Any] = {
        "labels": labels, "dtype": recipe.model.dtype, "rows": (micro, 2 * micro), "on_gpu": on_gpu,
    }  # fmt: skip

    def traced(deepspeed: bool) -> ModelMemory:
        found = trace(config, recipe.task, method, arguments, deepspeed=deepspeed, **options)
        steps = tuple(replace(step, flops=int(step.flops * filled)) for step in found.steps)
        return replace(found, steps=steps)

    plain = traced(deepspeed=False)
    return Traced(plain=plain, deepspeed=traced(deepspeed=True) if arguments.bf16 or arguments.fp16 else plain)


def read_config(config: ModelConfig) -> Any:
    """The model's config; no weight is read. Raises UserError when it can't be had."""
    with translate_load_errors(config):
        return AutoConfig.from_pretrained(
            resolve_source(config), revision=config.revision, trust_remote_code=config.trust_remote_code
        )


def arguments_of(recipe: Recipe, checkpointing: bool | None = None) -> TrainingArguments:
    """The recipe's training arguments as far as a step depends on them, on whatever hardware this process runs."""
    given = {name: value for name, value in recipe.training.items() if name not in LEFT_OUT}
    old = given.pop("gradient_checkpointing", False)
    given.pop("gradient_checkpointing_kwargs", None)
    wanted = given.pop("activation_checkpointing", old) if checkpointing is None else checkpointing
    options = {**recipe.task.trainer.defaults, **given, "activation_checkpointing": wanted}
    options |= {"output_dir": "", "use_cpu": True, "report_to": "none"}
    # The library's own would join the other ranks, and settle for the whole process which device it is on.
    alone = {"_setup_devices": torch.device("cpu"), "_n_gpu": 0, "distributed_state": None}
    kind: Any = type("PlannedArguments", (recipe.task.trainer.arguments_class,), alone)
    try:
        arguments = kind(**options)
    except (ValueError, TypeError, ImportError) as error:
        raise UserError(f"training: {' '.join(str(error).split())}") from error
    # Asked of the planned hardware, not of the one that plans.
    arguments.bf16, arguments.fp16 = bool(recipe.training.get("bf16")), bool(recipe.training.get("fp16"))
    return arguments


def _steps(arguments: TrainingArguments, ranks: int, train_rows: int | None) -> int | None:
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
    needed = rank_memory(memory, step, placement, ranks)
    taken = step_time(memory, step, placement, ranks, arguments.gradient_accumulation_steps, hardware)
    return PlanRow(
        method=method, placement=placement.name, checkpointing=checkpointing, memory=needed, time=taken,
        fits=fits(needed, hardware),
        largest_batch=_largest_batch(memory, placement, ranks, hardware),
        hours=None if steps is None else steps * taken.seconds / 3600,
    )  # fmt: skip


def _largest_batch(memory: ModelMemory, placement: Placement, ranks: int, hardware: Hardware) -> int:
    """Most rows that fit, on the line through the two traced batches."""

    def can_be(rows: int) -> bool:
        return fits(rank_memory(memory, of_rows(memory.steps, rows), placement, ranks), hardware)

    low, high = 0, LARGEST_BATCH
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if can_be(middle) else (low, middle - 1)
    return low


def _own(
    recipe: Recipe, placement: Placement | None, arguments: TrainingArguments, rows: Sequence[PlanRow]
) -> int | None:
    """Index of the row that is the recipe as it stands, in `placement`."""
    if placement not in PLACEMENTS:
        return None
    wanted = recipe.method.name, placement.name, bool(arguments.activation_checkpointing)
    same = [index for index, row in enumerate(rows) if (row.method, row.placement, row.checkpointing) == wanted]
    return same[0] if same else None
