"""Experimental: estimated throughput on 1 to 1,024 devices; never compared with runs on more than two ranks."""

from collections.abc import Sequence
from dataclasses import dataclass

from peftkit.planning.hardware import Hardware
from peftkit.planning.step_time import estimate_step_time
from peftkit.planning.tracing import ModelMemory, StepMemory, interpolate_step
from peftkit.planning.zero import Placement, estimate_rank_memory

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


def estimate_weak_scaling(
    memory: ModelMemory, step: StepMemory, placement: Placement, hardware: Hardware, devices: Sequence[int] = DEVICES
) -> list[ScalingRow]:
    """Each device keeps its batch, so the global batch grows with the devices; one pass a step."""
    alone = _measure_single_device(memory, step, placement, hardware, 1)
    return [_row(memory, step, placement, hardware, count, 1, alone) for count in devices]


def estimate_strong_scaling(
    memory: ModelMemory, steps: Sequence[StepMemory], placement: Placement, hardware: Hardware, global_batch: int,
    devices: Sequence[int] = DEVICES,
) -> list[ScalingRow]:  # fmt: skip
    """The global batch stays, so a device's share shrinks, down to one row; passes of the traced size at the most."""
    found = []
    alone = _measure_single_device(memory, steps[0], placement, hardware, max(1, global_batch // steps[0].rows))
    for count in devices:
        if global_batch % count:
            continue
        share = global_batch // count
        rows = min(share, steps[0].rows)
        found.append(_row(memory, interpolate_step(steps, rows), placement, hardware, count, share // rows, alone))
    return found


def _row(
    memory: ModelMemory, step: StepMemory, placement: Placement, hardware: Hardware, devices: int, micro_steps: int,
    alone: float,
) -> ScalingRow:  # fmt: skip
    """Make one row; `alone` is the rows a second of a single device."""
    taken = estimate_step_time(memory, step, placement, devices, micro_steps, hardware)
    rate = step.rows * micro_steps * devices / taken.seconds
    return ScalingRow(
        devices=devices, rows=step.rows, samples_per_second=rate, efficiency=rate / devices / alone,
        bound=taken.bound, peak=estimate_rank_memory(memory, step, placement, devices).peak,
    )  # fmt: skip


def _measure_single_device(
    memory: ModelMemory, step: StepMemory, placement: Placement, hardware: Hardware, micro_steps: int
) -> float:
    """Estimate the rows a second of a single device."""
    return step.rows * micro_steps / estimate_step_time(memory, step, placement, 1, micro_steps, hardware).seconds
