"""What a recipe will cost in memory and time on given hardware, before any weight is there."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import AutoConfig, TrainingArguments

from peftkit.distributed import deepspeed_config
from peftkit.errors import UserError
from peftkit.hardware import Hardware
from peftkit.memory_trace import ModelMemory, trace
from peftkit.methods import Method
from peftkit.model import loading, source
from peftkit.recipe import ModelConfig, Recipe
from peftkit.scaling import of_rows
from peftkit.step_time import StepTime, step_time
from peftkit.zero_memory import PLACEMENTS, Placement, RankMemory, placement_of, rank_memory

LARGEST_BATCH = 65536
TIGHT = 0.05
"""Share of a device's memory that should be left over: fragments can take as much."""
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
class PlanRow:
    """One way to train.

    Attributes:
        method: The method's name.
        placement: `none`, or the config in `ds_configs`.
        checkpointing: Whether activations are computed again in the backward pass.
        memory: Bytes of a rank.
        time: Seconds of an optimizer step.
        fits: Whether the peak leaves room on the device. A GPU's host is taken to have room for what is offloaded.
        largest_batch: Most rows of a rank's batch that fit; 0 when one row does not.
        hours: Of the whole training; None when the number of rows is not known.
    """

    method: str
    placement: str
    checkpointing: bool
    memory: RankMemory
    time: StepTime
    fits: bool
    largest_batch: int
    hours: float | None


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
    traced: dict[tuple[str, bool], Traced] = {}
    failed: dict[str, str] = {}
    for method in methods or (recipe.method,):
        for again in checkpointing:
            try:
                traced[method.name, again] = traced_method(recipe, config, method, again, labels, on_gpu, filled)
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
        _row(name, one.under(placement), again, placement, ranks, arguments, hardware, steps)
        for (name, again), one in traced.items()
        for placement in (PLACEMENTS if ranks > 1 else [one for one in PLACEMENTS if one.stage in (0, 3)])
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
            **{field: getattr(recipe.task, field) for field in recipe.task.length_fields},
        },
        filled=filled, steps=steps, hardware=hardware, rows=rows, chosen=chosen, own=_own(recipe, arguments, rows),
        why=_why(rows, chosen, ranks, hardware),
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
    with loading(config):
        return AutoConfig.from_pretrained(
            source(config), revision=config.revision, trust_remote_code=config.trust_remote_code
        )


def arguments_of(recipe: Recipe, checkpointing: bool | None = None) -> TrainingArguments:
    """The recipe's training arguments as far as a step depends on them, on whatever hardware this process runs."""
    given = {name: value for name, value in recipe.training.items() if name not in LEFT_OUT}
    old = given.pop("gradient_checkpointing", False)
    given.pop("gradient_checkpointing_kwargs", None)
    wanted = given.pop("activation_checkpointing", old) if checkpointing is None else checkpointing
    options = {**recipe.task.arguments, **given, "activation_checkpointing": wanted}
    options |= {"output_dir": "", "use_cpu": True, "report_to": "none"}
    # The library's own would join the other ranks, and settle for the whole process which device it is on.
    alone = {"_setup_devices": torch.device("cpu"), "_n_gpu": 0, "distributed_state": None}
    kind: Any = type("PlannedArguments", (recipe.task.arguments_class,), alone)
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
        fits=_fits(needed, hardware),
        largest_batch=_largest_batch(memory, placement, ranks, hardware),
        hours=None if steps is None else steps * taken.seconds / 3600,
    )  # fmt: skip


def _needed(memory: RankMemory, hardware: Hardware) -> int:
    """Bytes of the device; where that is the host itself, what is offloaded stays there."""
    return memory.peak + (memory.host if hardware.is_host else 0)


def _fits(memory: RankMemory, hardware: Hardware) -> bool:
    return _needed(memory, hardware) + hardware.reserved <= hardware.memory


def _largest_batch(memory: ModelMemory, placement: Placement, ranks: int, hardware: Hardware) -> int:
    """Most rows that fit, on the line through the two traced batches."""

    def fits(rows: int) -> bool:
        return _fits(rank_memory(memory, of_rows(memory.steps, rows), placement, ranks), hardware)

    low, high = 0, LARGEST_BATCH
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def choose(rows: Sequence[PlanRow]) -> int | None:
    """Index of the fastest row that fits; of those as fast within 2 % and a millisecond, the simplest."""
    fitting = [index for index, row in enumerate(rows) if row.fits]
    if not fitting:
        return None
    fastest = min(rows[index].time.seconds for index in fitting)
    order = [placement.name for placement in PLACEMENTS]
    return min(
        (index for index in fitting if rows[index].time.seconds <= 1.02 * fastest + 1e-3),
        key=lambda index: (order.index(rows[index].placement), rows[index].checkpointing, index),
    )


def _own(recipe: Recipe, arguments: TrainingArguments, rows: Sequence[PlanRow]) -> int | None:
    """Index of the row that is the recipe as it stands."""
    config = recipe.training.get("deepspeed")
    if config == "auto":
        return None
    placement = placement_of(None if config is None else deepspeed_config(config)).name
    wanted = recipe.method.name, placement, bool(arguments.activation_checkpointing)
    same = [index for index, row in enumerate(rows) if (row.method, row.placement, row.checkpointing) == wanted]
    return same[0] if same else None


def least(rows: Sequence[PlanRow], hardware: Hardware) -> int:
    """Index of the row that needs the least memory of the device."""
    return min(range(len(rows)), key=lambda index: _needed(rows[index].memory, hardware))


def _size(size: float) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 / 10 else f"{size / 2**20:.1f} MiB"


def _why(rows: Sequence[PlanRow], chosen: int | None, ranks: int, hardware: Hardware) -> str:
    room = f"{_size(hardware.memory)} a device, {_size(hardware.reserved)} of it reserved"
    if chosen is None:
        row = rows[least(rows, hardware)]
        return (
            f"nothing fits in {room}: the least is {_said(row)} with {_size(row.memory.peak)}; "
            "take a smaller batch, shorter rows or more devices"
        )
    row = rows[chosen]
    same = [other for other in rows if other.method == row.method and other.checkpointing == row.checkpointing]
    plain = next((other for other in same if other.placement == "none"), None)
    said = f"{_said(row)}: {_size(row.memory.peak)} of {room}; the fastest that fits"
    if ranks > 1 and row.placement == "none":
        saved = [other for other in same if other.placement in ("zero1", "zero2")]
        most = max((row.memory.optimizer - other.memory.optimizer for other in saved), default=0)
        if most < 0.02 * row.memory.peak:
            said += f"; ZeRO-1 and 2 would gain nothing: at most {_size(max(0, most))} of optimizer state a rank"
    elif plain is not None and row.placement != "none" and not plain.fits:
        said += f", since without sharding it would be {_size(plain.memory.peak)}"
    left = hardware.memory - hardware.reserved - _needed(row.memory, hardware)
    if left < TIGHT * hardware.memory:
        said += f"; tight: {_size(left)} are left for what was not counted"
    if len({other.method for other in rows}) > 1:
        said += "; what accuracy a method loses, peftkit compare tells"
    return said


def _said(row: PlanRow) -> str:
    checkpointing = " with activation checkpointing" if row.checkpointing else ""
    stage = "no sharding" if row.placement == "none" else row.placement
    return f"{row.method}, {stage}{checkpointing}"
