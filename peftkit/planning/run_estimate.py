"""Memory estimate of a finished run, for comparison with the measured peak."""

import dataclasses
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from peftkit.errors import UserError
from peftkit.models.loading import disable_zero3
from peftkit.planning.planner import make_arguments, read_config
from peftkit.planning.tracing import trace
from peftkit.planning.zero import estimate_rank_memory, parse_placement
from peftkit.recipe.parser import dict_to_recipe
from peftkit.runs.report import Report, read_report


def estimate_run(folder: Path) -> dict[str, Any]:
    """Estimate the memory of a finished run in bytes, for batches of the longest rows.

    Returns the fields of `peftkit.planning.zero.RankMemory`, `placement`, `rows` and the token lengths. On a GPU `peak`
    corresponds to the measured `allocated_peak`, on a CPU `process_peak` to the measured value. Returns `error` instead
    if the step cannot be traced. Raises UserError if the report lacks values.
    """
    report = read_report(folder)
    # Reports of version 0.1.0 contain the estimate.
    if report.plan:
        return report.plan
    if not report.batch or "token_lengths" not in report.data:
        raise UserError(f"{folder}: the run is not finished, so memory cannot be estimated; use a finished run")
    try:
        return _estimate(report)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}


def _estimate(report: Report) -> dict[str, Any]:
    recipe = dict_to_recipe(report.recipe)
    recipe = replace(recipe, training={**recipe.training, **report.batch})
    task = replace(recipe.task, **report.data["token_lengths"])  # type: ignore[type-var]
    on_gpu = bool(report.environment.get("gpus")) and not recipe.training.get("use_cpu")
    deepspeed, rows = recipe.training.get("deepspeed"), report.batch["per_device_train_batch_size"]
    placement = parse_placement(deepspeed)
    config, arguments = read_config(recipe.model), make_arguments(recipe)
    # The Trainer sets this option too.
    config.use_cache = arguments.use_cache
    with disable_zero3():
        memory = trace(
            config, task, recipe.method, arguments, labels=report.data["labels"],
            dtype=recipe.model.dtype, rows=(rows,), on_gpu=on_gpu, head=report.head, deepspeed=deepspeed is not None,
        )  # fmt: skip
    estimate = {
        "placement": placement.name, "rows": rows, **report.data["token_lengths"],
        **dataclasses.asdict(estimate_rank_memory(memory, memory.steps[0], placement, report.environment["processes"])),
        "process_before": report.process_before,
    }  # fmt: skip
    if not on_gpu:
        estimate["process_peak"] = report.process_before + estimate["peak"] + estimate["host"]
    return estimate


def find_peak(estimate: Mapping[str, Any]) -> int | None:
    """Return the estimated peak of the process (CPU) or of allocated memory (GPU); None without one."""
    return estimate.get("process_peak", estimate.get("peak"))


def format_run_estimate(folder: Path) -> str:
    """Format the estimate of a finished run with the measured peak. Raises UserError."""
    report, estimate = read_report(folder), estimate_run(folder)
    peak = find_peak(estimate)
    if peak is None:
        raise UserError(f"{folder}: cannot trace the training step ({estimate.get('error')})")
    kind = "allocated_peak" if "allocated_peak" in report.memory else "process_peak"
    scope = "allocated on the GPU" if kind == "allocated_peak" else "of the process, libraries included"
    parts = ("weights", "gradients", "optimizer", "buffers", "activations", "host")
    lines = [
        f"peak memory {scope}: estimated {_format_gib(peak)} GiB, measured {_format_gib(report.memory[kind])} GiB",
        f"sharding {estimate['placement']}; {estimate['rows']} rows per batch, with the longest training row's length",
        "GiB per rank: " + ", ".join(f"{name} {_format_gib(estimate[name])}" for name in parts),
    ]
    if "process_peak" in estimate:
        lines.append(f"process before loading the model: {_format_gib(estimate['process_before'])} GiB")
    return "\n".join(lines)


def _format_gib(size: float) -> str:
    return f"{size / 2**30:.2f}"
