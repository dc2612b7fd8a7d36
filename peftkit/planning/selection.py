"""Rows of a plan and the choice of the recommended row."""

from collections.abc import Sequence
from dataclasses import dataclass

from peftkit.planning.hardware import Hardware
from peftkit.planning.step_time import StepTime
from peftkit.planning.zero import PLACEMENTS, RankMemory

TIGHT = 0.05
"""Share of the device memory that should stay free for fragmentation."""


@dataclass(frozen=True, kw_only=True)
class PlanRow:
    """One row of a plan; the JSON output has these field names.

    Attributes:
        method: Name of the method.
        placement: `none`, or the name of a config in `ds_configs`.
        checkpointing: Whether activation checkpointing is enabled.
        memory: Memory of a rank in bytes.
        time: Time of an optimizer step in seconds.
        fits: Whether the peak fits on the device. The host of a GPU is assumed to have enough memory for offloading.
        largest_batch: Largest batch size per rank that fits; 0 if one row does not fit.
        hours: Duration of the training; None if the number of training rows is unknown.
    """

    method: str
    placement: str
    checkpointing: bool
    memory: RankMemory
    time: StepTime
    fits: bool
    largest_batch: int
    hours: float | None


def _count_device_bytes(memory: RankMemory, hardware: Hardware) -> int:
    """Count the bytes on the device; on a CPU this includes offloaded bytes."""
    return memory.peak + (memory.host if hardware.is_host else 0)


def has_room(memory: RankMemory, hardware: Hardware) -> bool:
    """Whether the peak and the reserved memory fit on the device."""
    return _count_device_bytes(memory, hardware) + hardware.reserved <= hardware.memory


def choose_row(rows: Sequence[PlanRow]) -> int | None:
    """Return the index of the fastest row that fits; within 2 % and one millisecond, of the simplest row.

    A ZeRO stage must be 10 % faster than no sharding, because the estimate excludes the overhead of DeepSpeed.
    """
    fitting = [index for index, row in enumerate(rows) if row.fits]
    if not fitting:
        return None
    fastest = min(rows[index].time.seconds for index in fitting)
    order = [placement.name for placement in PLACEMENTS]
    chosen = min(
        (index for index in fitting if rows[index].time.seconds <= 1.02 * fastest + 1e-3),
        key=lambda index: (order.index(rows[index].placement), rows[index].checkpointing, index),
    )
    same = rows[chosen].method, "none", rows[chosen].checkpointing
    for index in fitting:
        row = rows[index]
        enough = row.time.seconds <= 1.1 * rows[chosen].time.seconds
        if (row.method, row.placement, row.checkpointing) == same and enough:
            return index
    return chosen


def find_smallest(rows: Sequence[PlanRow], hardware: Hardware) -> int:
    """Return the index of the row with the least device memory."""
    return min(range(len(rows)), key=lambda index: _count_device_bytes(rows[index].memory, hardware))


def _format_size(size: float) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 / 10 else f"{size / 2**20:.1f} MiB"


def explain_choice(rows: Sequence[PlanRow], chosen: int | None, ranks: int, hardware: Hardware) -> str:
    """Explain the choice in one line."""
    room = f"{_format_size(hardware.memory)} per device, {_format_size(hardware.reserved)} of it reserved"
    if chosen is None:
        row = rows[find_smallest(rows, hardware)]
        return (
            f"no row fits in {room}: the smallest is {_describe(row)} with {_format_size(row.memory.peak)}; "
            "use a smaller batch, shorter rows or more devices"
        )
    row = rows[chosen]
    same = [other for other in rows if other.method == row.method and other.checkpointing == row.checkpointing]
    plain = next((other for other in same if other.placement == "none"), None)
    text = f"{_describe(row)}: {_format_size(row.memory.peak)} of {room}; the fastest row that fits"
    if ranks > 1 and row.placement == "none":
        saved = [other for other in same if other.placement in ("zero1", "zero2")]
        most = max((row.memory.optimizer - other.memory.optimizer for other in saved), default=0)
        if most < 0.02 * row.memory.peak:
            text += f"; ZeRO-1 and ZeRO-2 would save at most {_format_size(max(0, most))} of optimizer state per rank"
    elif plain is not None and row.placement != "none" and not plain.fits:
        text += f"; without sharding the peak would be {_format_size(plain.memory.peak)}"
    left = hardware.memory - hardware.reserved - _count_device_bytes(row.memory, hardware)
    if left < TIGHT * hardware.memory:
        text += f"; tight: only {_format_size(left)} free for fragmentation"
    if len({other.method for other in rows}) > 1:
        text += "; peftkit compare measures the accuracy of each method"
    return text


def _describe(row: PlanRow) -> str:
    checkpointing = " with activation checkpointing" if row.checkpointing else ""
    stage = "no sharding" if row.placement == "none" else row.placement
    return f"{row.method}, {stage}{checkpointing}"
