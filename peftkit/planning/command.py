"""Implementation of `peftkit plan`: find hardware and data statistics, plan, format."""

import dataclasses
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from peftkit.errors import UserError
from peftkit.planning.dataset_stats import read_dataset_stats
from peftkit.planning.hardware import GPU, Hardware, measure_local_hardware
from peftkit.planning.options import PlanOptions
from peftkit.planning.planner import Plan, make_arguments, plan, read_config, trace_method
from peftkit.planning.scaling import ScalingRow, estimate_strong_scaling, estimate_weak_scaling
from peftkit.planning.selection import PlanRow
from peftkit.planning.tables import format_plan, format_scaling
from peftkit.planning.tracing import trace
from peftkit.planning.zero import PLACEMENTS, parse_placement
from peftkit.recipe.method import find_method
from peftkit.recipe.parser import dict_to_recipe
from peftkit.recipe.schema import Recipe
from peftkit.runs.report import read_report
from peftkit.system.files import write_json


def plan_recipe(recipe: Recipe, methods: Sequence[str], options: PlanOptions) -> str:
    """Plan the methods of a recipe and format the plan; write JSON to `options.output`. Raises UserError."""
    candidates = [find_method(name, recipe.method) for name in methods]
    # Raise errors of the recipe before the data is read.
    make_arguments(recipe)
    if (deepspeed := recipe.training.get("deepspeed")) != "auto":
        parse_placement(deepspeed)
    hardware, on_gpu = _find_hardware(options)
    data = read_dataset_stats(recipe, options.rows)
    result = plan(
        recipe, ranks=options.gpus or 1, hardware=hardware, on_gpu=on_gpu, labels=data.labels, train_rows=data.rows,
        filled=data.fill, methods=candidates,
    )  # fmt: skip
    tables: dict[str, list[ScalingRow]] = {}
    if options.scaling and result.chosen is not None:
        tables = _estimate_scaling(recipe, result, result.rows[result.chosen], data.labels, on_gpu)
    if options.output is not None:
        scaling = {title: [dataclasses.asdict(row) for row in table] for title, table in tables.items()}
        write_json(options.output, {**dataclasses.asdict(result), "scaling": scaling})
    return "\n\n".join([format_plan(result), *(format_scaling(title, table) for title, table in tables.items())])


def _find_hardware(options: PlanOptions) -> tuple[Hardware, bool]:
    """Find the hardware to plan for, and whether it is a GPU."""
    if options.gpus is None and options.memory_bytes is None:
        hardware, on_gpu = measure_local_hardware()
    else:
        hardware, on_gpu = replace(GPU, memory=options.memory_bytes or GPU.memory), True
    if hardware.memory <= hardware.reserved:
        reserved = f"{hardware.reserved / 2**30:.2f} GiB reserved for libraries and fragmentation"
        raise UserError(f"--gpu-memory {options.gpu_memory or hardware.memory}: must be more than the {reserved}")
    values: dict[str, Any] = {
        "flops": options.tflops and options.tflops * 1e12,
        "bandwidth": options.bandwidth and options.bandwidth * 1e9,
        "network": options.network and options.network * 1e9,
        "devices_per_host": options.gpus_per_host,
    }
    if options.speed_from is not None:
        values["flops"] = read_speed(options.speed_from, on_gpu)
    return replace(hardware, **{name: value for name, value in values.items() if value is not None}), on_gpu


def read_speed(folder: Path, on_gpu: bool) -> float:
    """Read the floating point operations per second of training from a finished run with one process.

    The result is computed from tokens per second and the operations of a full row. For seq2seq, source tokens count,
    and the targets are assumed to have the same share of their maximum length. Raises UserError.
    """
    report = read_report(folder)
    if report.status != "complete" or report.environment.get("processes") != 1:
        raise UserError(f"--speed-from {folder}: not a complete run of one process; use another run")
    recipe = dict_to_recipe(report.recipe)
    if (bool(report.environment.get("gpus")) and not recipe.training.get("use_cpu")) != on_gpu:
        there, here = ("a CPU", "GPUs") if on_gpu else ("a GPU", "a CPU")
        raise UserError(f"--speed-from {folder}: the plan is for {here}, the run used {there}; pass --tflops N")
    config = read_config(recipe.model)
    try:
        memory = trace(
            config, recipe.task, recipe.method, make_arguments(recipe), labels=report.data["labels"],
            dtype=recipe.model.dtype, rows=(1,), on_gpu=on_gpu,
        )  # fmt: skip
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"--speed-from {folder}: cannot trace a training step without tensor values; pass --tflops N"
        ) from error
    columns = recipe.task.columns
    return memory.steps[0].flops / columns.max_lengths[columns.length_field] * report.times["tokens_per_second"]


def _estimate_scaling(
    recipe: Recipe, result: Plan, row: PlanRow, labels: Sequence[str], on_gpu: bool
) -> dict[str, list[ScalingRow]]:
    """Estimate the scaling of a row of the plan, keyed by table title."""
    placement = next(placement for placement in PLACEMENTS if placement.name == row.placement)
    method, config = find_method(row.method, recipe.method), read_config(recipe.model)
    memories = trace_method(recipe, config, method, row.checkpointing, labels, on_gpu, result.filled)
    memory = memories.select(placement)
    batch = memory.steps[0].rows * result.ranks * result.batch["micro_batches"]
    name = f"{row.method}, {row.placement}"
    return {
        f"weak scaling of {name}: {memory.steps[0].rows} rows per step on each device": estimate_weak_scaling(
            memory, memory.steps[0], placement, result.hardware
        ),
        f"strong scaling of {name}: {batch} rows per step in total, at most {memory.steps[0].rows} at a time": (
            estimate_strong_scaling(memory, memory.steps, placement, result.hardware, batch)
        ),
    }
