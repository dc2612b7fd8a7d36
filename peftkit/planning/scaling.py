"""Experimental: estimated throughput on 1 to 1,024 devices; never compared with runs on more than two ranks."""

from collections.abc import Sequence
from dataclasses import dataclass

from peftkit.planning.hardware import Hardware
from peftkit.planning.step_time import step_time
from peftkit.planning.tracing import ModelMemory, StepMemory
from peftkit.planning.zero import Placement, rank_memory

DEVICES = tuple(2**power for power in range(11))


@dataclass(frozen=True, kw_only=True)
class ScalingRow:
    """One number of devices.

    Attributes:
        devices: How many.
        rows: Rows of a micro-batch of one device.
        samples_per_second: Of all devices.
        efficiency: Rows a second of a device, as a share of those of one device alone with the whole batch.
        bound: `compute`, `network` or `optimizer`: what most of the step is spent on.
        peak: Bytes of memory of a device.
    """

    devices: int
    rows: int
    samples_per_second: float
    efficiency: float
    bound: str
    peak: int


def weak_scaling(
    memory: ModelMemory, step: StepMemory, placement: Placement, hardware: Hardware, devices: Sequence[int] = DEVICES
) -> list[ScalingRow]:
    """Each device keeps its batch, so the global batch grows with the devices; one pass a step."""
    alone = _alone(memory, step, placement, hardware, 1)
    return [_row(memory, step, placement, hardware, count, 1, alone) for count in devices]


def strong_scaling(
    memory: ModelMemory, steps: Sequence[StepMemory], placement: Placement, hardware: Hardware, global_batch: int,
    devices: Sequence[int] = DEVICES,
) -> list[ScalingRow]:  # fmt: skip
    """The global batch stays, so a device's share shrinks, down to one row; passes of the traced size at the most."""
    found = []
    alone = _alone(memory, steps[0], placement, hardware, max(1, global_batch // steps[0].rows))
    for count in devices:
        if global_batch % count:
            continue
        share = global_batch // count
        rows = min(share, steps[0].rows)
        found.append(_row(memory, of_rows(steps, rows), placement, hardware, count, share // rows, alone))
    return found


def of_rows(steps: Sequence[StepMemory], rows: int) -> StepMemory:
    """A step of so many rows, on the line through two that were traced."""
    first, second = steps[0], steps[-1]

    def at(name: str) -> int:
        low, high = getattr(first, name), getattr(second, name)
        return max(0, int(low + (high - low) * (rows - first.rows) / (second.rows - first.rows)))

    names = ("forward", "backward", "kept", "released", "update", "flops", "operators")
    return StepMemory(rows=rows, **{name: at(name) for name in names})


def _row(
    memory: ModelMemory, step: StepMemory, placement: Placement, hardware: Hardware, devices: int, micro_steps: int,
    alone: float,
) -> ScalingRow:  # fmt: skip
    """`alone` is what one device does in a second."""
    taken = step_time(memory, step, placement, devices, micro_steps, hardware)
    rate = step.rows * micro_steps * devices / taken.seconds
    return ScalingRow(
        devices=devices, rows=step.rows, samples_per_second=rate, efficiency=rate / devices / alone,
        bound=taken.bound, peak=rank_memory(memory, step, placement, devices).peak,
    )  # fmt: skip


def _alone(memory: ModelMemory, step: StepMemory, placement: Placement, hardware: Hardware, micro_steps: int) -> float:
    """Rows a second of one device."""
    return step.rows * micro_steps / step_time(memory, step, placement, 1, micro_steps, hardware).seconds
