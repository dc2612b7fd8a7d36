"""Text tables of a plan and of its scaling."""

from collections.abc import Sequence

from tabulate import tabulate

from peftkit.planning.hardware import Hardware
from peftkit.planning.planner import Plan
from peftkit.planning.scaling import ScalingRow
from peftkit.planning.selection import PlanRow

HEADS = (
    "method", "sharding", "recompute", "weights", "grads", "optim", "buffers", "activ", "peak", "host", "fits",
    "max batch", "s/step", "sent", "time",
)  # fmt: skip


def format_plan(plan: Plan) -> str:
    """Format the table in GiB per rank, the assumptions and the choice."""
    rows = [
        _cells(row, " *" * (index == plan.chosen) + " +" * (index == plan.own)) for index, row in enumerate(plan.rows)
    ]
    counts = "; ".join(
        f"{name}: {found['trainable']:,} of {found['total']:,} weights trained" for name, found in plan.weights.items()
    )
    batch = ", ".join(f"{name} {value}" for name, value in plan.batch.items())
    lines = [
        f"{plan.model} on {plan.ranks} device{'s' * (plan.ranks > 1)}; {counts}",
        f"batch per device: {batch}; memory assumes rows of full length, time {plan.filled:.0%} of it",
        "",
        tabulate(rows, headers=HEADS, disable_numparse=True, colalign=("left", "left", *["right"] * (len(HEADS) - 2))),
        "",
        "GiB of a rank; recompute: activations are computed again in the backward pass; host: in the host's memory;",
        "max batch: most rows of a rank that fit; sent: by a rank in a step; time: of the whole training;",
        "*: the choice; +: the recipe as it is.",
        f"assumed  {format_assumptions(plan.hardware)}",
        *(f"left out {name}: {why}" for name, why in plan.not_traced.items()),
        f"choose   {plan.why}",
    ]
    return "\n".join(lines)


def format_assumptions(hardware: Hardware) -> str:
    """Format the hardware in one line."""
    operator = f"at least {hardware.launch * 1e6:.3g} us an operator, " if hardware.launch else ""
    return (
        f"a device reaches {hardware.flops / 1e12:.3g} TFLOP/s, {operator}"
        f"memory {hardware.memory_bandwidth / 1e9:.4g} GB/s; "
        f"{hardware.bandwidth / 1e9:.4g} GB/s between devices, {hardware.network / 1e9:.4g} between hosts of "
        f"{hardware.devices_per_host}, {hardware.host_link / 1e9:.4g} to the host; "
        f"communication {'takes time from' if hardware.is_host else 'hides behind'} computing; "
        f"{_gib(hardware.reserved)} GiB of {_gib(hardware.memory)} for libraries and fragments"
    )


def format_scaling(title: str, rows: Sequence[ScalingRow]) -> str:
    """Format one scaling table, marked as experimental."""
    cells = [
        [row.devices, row.rows, f"{row.samples_per_second:.4g}", f"{row.efficiency:.1%}", row.bound, _gib(row.peak)]
        for row in rows
    ]
    heads = ("devices", "rows each", "samples / s", "efficiency", "bound", "peak")
    return f"Experimental: {title}\n{tabulate(cells, headers=heads, disable_numparse=True)}"


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f}"


def _time(hours: float | None) -> str:
    if hours is None:
        return "?"
    for unit, in_an_hour in (("s", 3600), ("min", 60)):
        if hours * in_an_hour < 100:
            return f"{hours * in_an_hour:.2g} {unit}"
    return f"{hours:.3g} h"


def _cells(row: PlanRow, mark: str) -> list[str]:
    memory = row.memory
    sizes = (memory.weights, memory.gradients, memory.optimizer, memory.buffers, memory.activations, memory.peak)
    return [
        f"{row.method}{mark}", row.placement, "yes" if row.checkpointing else "no",
        *(_gib(size) for size in sizes), _gib(memory.host), "yes" if row.fits else "no", f"{row.largest_batch:,}",
        f"{row.time.seconds:.3g}", _gib(row.time.sent), _time(row.hours),
    ]  # fmt: skip
