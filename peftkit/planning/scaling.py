"""Experimental throughput estimates on 1 to 1,024 devices; not validated with more than two ranks."""

from collections.abc import Sequence
from dataclasses import dataclass

from peftkit.planning.hardware import Hardware
from peftkit.planning.step_time import estimate_step_time
from peftkit.planning.tracing import ModelMemory, StepMemory, interpolate_step
from peftkit.planning.zero import Placement, estimate_rank_memory

DEVICES = tuple(2**power for power in range(11))


@dataclass(frozen=True, kw_only=True)
class ScalingRow:
    """Scaling estimate for one number of devices.

    Attributes:
        devices: Number of devices.
        rows: Micro-batch size per device.
        samples_per_second: Samples per second of all devices.
        efficiency: Samples per second of a device, relative to a single device with the whole batch.
        bound: `compute`, `network` or `optimizer`: the part with most of the step time.
        peak: Peak memory of a device in bytes.
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
    """Estimate weak scaling: constant batch per device, one pass per step."""
    alone = _estimate_single_device(memory, step, placement, hardware, 1)
    return [_make_row(memory, step, placement, hardware, count, 1, alone) for count in devices]


def estimate_strong_scaling(
    memory: ModelMemory, steps: Sequence[StepMemory], placement: Placement, hardware: Hardware, global_batch: int,
    devices: Sequence[int] = DEVICES,
) -> list[ScalingRow]:  # fmt: skip
    """Estimate strong scaling: constant global batch, micro-batches of at most the traced size."""
    found = []
    alone = _estimate_single_device(memory, steps[0], placement, hardware, max(1, global_batch // steps[0].rows))
    for count in devices:
        if global_batch % count:
            continue
        share = global_batch // count
        rows = min(share, steps[0].rows)
        found.append(_make_row(memory, interpolate_step(steps, rows), placement, hardware, count, share // rows, alone))
    return found


def _make_row(
    memory: ModelMemory, step: StepMemory, placement: Placement, hardware: Hardware, devices: int, micro_steps: int,
    alone: float,
) -> ScalingRow:  # fmt: skip
    """Make one row; `alone` is the number of samples per second of a single device."""
    step_time = estimate_step_time(memory, step, placement, devices, micro_steps, hardware)
    rate = step.rows * micro_steps * devices / step_time.seconds
    return ScalingRow(
        devices=devices, rows=step.rows, samples_per_second=rate, efficiency=rate / devices / alone,
        bound=step_time.bound, peak=estimate_rank_memory(memory, step, placement, devices).peak,
    )  # fmt: skip


def _estimate_single_device(
    memory: ModelMemory, step: StepMemory, placement: Placement, hardware: Hardware, micro_steps: int
) -> float:
    """Estimate the samples per second of a single device."""
    return step.rows * micro_steps / estimate_step_time(memory, step, placement, 1, micro_steps, hardware).seconds
