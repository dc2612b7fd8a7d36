"""Text tables of a plan and of scaling estimates."""

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
    """Format the table in GiB per rank, the assumptions and the recommendation."""
    rows = [
        _format_cells(row, " *" * (index == plan.chosen) + " +" * (index == plan.own))
        for index, row in enumerate(plan.rows)
    ]
    counts = "; ".join(
        f"{name}: {found['trainable']:,} of {found['total']:,} weights trainable"
        for name, found in plan.weights.items()
    )
    batch = ", ".join(f"{name} {value}" for name, value in plan.batch.items())
    lines = [
        f"{plan.model} on {plan.ranks} device{'s' * (plan.ranks > 1)}; {counts}",
        f"batch per device: {batch}; memory assumes rows of full length, time assumes {plan.filled:.0%} of full length",
        "",
        tabulate(rows, headers=HEADS, disable_numparse=True, colalign=("left", "left", *["right"] * (len(HEADS) - 2))),
        "",
        "Memory in GiB per rank. recompute: activation checkpointing. host: memory of the host. max batch: largest",
        "batch per rank that fits. sent: GiB that a rank sends per step. time: duration of the training.",
        "*: recommended. +: the recipe's settings.",
        f"hardware   {format_assumptions(plan.hardware)}",
        *(f"not traced {name}: {why}" for name, why in plan.not_traced.items()),
        f"recommend  {plan.why}",
    ]
    return "\n".join(lines)


def format_assumptions(hardware: Hardware) -> str:
    """Format the hardware in one line."""
    operator = f"at least {hardware.launch * 1e6:.3g} us per operator, " if hardware.launch else ""
    return (
        f"device: {hardware.flops / 1e12:.3g} TFLOP/s, {operator}"
        f"memory {hardware.memory_bandwidth / 1e9:.4g} GB/s; "
        f"{hardware.bandwidth / 1e9:.4g} GB/s between devices, {hardware.network / 1e9:.4g} between hosts of "
        f"{hardware.devices_per_host}, {hardware.host_link / 1e9:.4g} to the host; "
        f"communication {'does not overlap' if hardware.is_host else 'overlaps'} with computation; "
        f"{_format_gib(hardware.reserved)} of {_format_gib(hardware.memory)} GiB reserved for libraries, fragmentation"
    )


def format_scaling(title: str, rows: Sequence[ScalingRow]) -> str:
    """Format one scaling table, marked as experimental."""
    cells = [
        [
            row.devices,
            row.rows,
            f"{row.samples_per_second:.4g}",
            f"{row.efficiency:.1%}",
            row.bound,
            _format_gib(row.peak),
        ]
        for row in rows
    ]
    heads = ("devices", "rows per device", "samples / s", "efficiency", "bound by", "peak GiB")
    return f"Experimental: {title}\n{tabulate(cells, headers=heads, disable_numparse=True)}"


def _format_gib(size: float) -> str:
    return f"{size / 2**30:.2f}"


def _format_time(hours: float | None) -> str:
    if hours is None:
        return "?"
    for unit, in_an_hour in (("s", 3600), ("min", 60)):
        if hours * in_an_hour < 100:
            return f"{hours * in_an_hour:.2g} {unit}"
    return f"{hours:.3g} h"


def _format_cells(row: PlanRow, mark: str) -> list[str]:
    memory = row.memory
    sizes = (memory.weights, memory.gradients, memory.optimizer, memory.buffers, memory.activations, memory.peak)
    return [
        f"{row.method}{mark}", row.placement, "yes" if row.checkpointing else "no",
        *(_format_gib(size) for size in sizes), _format_gib(memory.host), "yes" if row.fits else "no",
        f"{row.largest_batch:,}", f"{row.time.seconds:.3g}", _format_gib(row.time.sent), _format_time(row.hours),
    ]  # fmt: skip
