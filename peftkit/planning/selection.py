"""The ways to train that a plan looks at, and which of them to choose."""

from collections.abc import Sequence
from dataclasses import dataclass

from peftkit.planning.hardware import Hardware
from peftkit.planning.step_time import StepTime
from peftkit.planning.zero import PLACEMENTS, RankMemory

TIGHT = 0.05
"""Share of a device's memory that should be left over: fragments can take as much."""


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


def _needed(memory: RankMemory, hardware: Hardware) -> int:
    """Bytes of the device; where that is the host itself, what is offloaded stays there."""
    return memory.peak + (memory.host if hardware.is_host else 0)


def fits(memory: RankMemory, hardware: Hardware) -> bool:
    """Whether the peak leaves the device what is reserved."""
    return _needed(memory, hardware) + hardware.reserved <= hardware.memory


def choose(rows: Sequence[PlanRow]) -> int | None:
    """Index of the fastest row that fits; of those as fast within 2 % and a millisecond, the simplest.

    A stage of ZeRO must be 10 % faster than no sharding: DeepSpeed's own work is not counted.
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


def least(rows: Sequence[PlanRow], hardware: Hardware) -> int:
    """Index of the row that needs the least memory of the device."""
    return min(range(len(rows)), key=lambda index: _needed(rows[index].memory, hardware))


def _size(size: float) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 / 10 else f"{size / 2**20:.1f} MiB"


def advice(rows: Sequence[PlanRow], chosen: int | None, ranks: int, hardware: Hardware) -> str:
    """The advice, in one sentence."""
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
