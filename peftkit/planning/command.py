"""`peftkit plan`: what the user says of the hardware and what the recipe's data tells, to a plan."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow.compute
from accelerate.utils.modeling import convert_file_size_to_int

from peftkit.data.splits import load_splits
from peftkit.errors import UserError
from peftkit.models.loading import load_tokenizer
from peftkit.planning.hardware import GPU, Hardware, local_hardware
from peftkit.planning.planner import Plan, arguments_of, plan, read_config, traced_method
from peftkit.planning.run_estimate import row_lengths
from peftkit.planning.scaling import ScalingRow, strong_scaling, weak_scaling
from peftkit.planning.tables import plan_text, scaling_text
from peftkit.planning.tracing import trace
from peftkit.planning.zero import PLACEMENTS
from peftkit.recipe.method import find_method
from peftkit.recipe.parser import dict_to_recipe
from peftkit.recipe.schema import Recipe
from peftkit.runs.report import read_report
from peftkit.system.files import write_json
from peftkit.system.logging import logger

DRAWN = 1000
"""Training rows of which the mean length is taken."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the command line says; None where it says nothing.

    Attributes:
        gpus: Devices.
        gpu_memory: Of each, such as `24GiB`.
        rows: Training rows; else the data is read.
        tflops: Operations in 10^12 a second that training reaches on a device.
        speed_from: A finished run of one process to take them from.
        bandwidth: Between devices of a host, in GB/s.
        network: Between hosts, a device's share, in GB/s.
        gpus_per_host: Devices of a host.
        scaling: Whether to go on to 1,024 devices.
    """

    gpus: int | None = None
    gpu_memory: str | None = None
    rows: int | None = None
    tflops: float | None = None
    speed_from: Path | None = None
    bandwidth: float | None = None
    network: float | None = None
    gpus_per_host: int | None = None
    scaling: bool = False


def planned(recipe: Recipe, methods: Sequence[str], asked: Asked, output: Path | None = None) -> str:
    """The plan in words; `output` takes it as JSON too. Raises UserError."""
    if output is not None and output.suffix != ".json":
        raise UserError(f"--output {output}: give a .json file")
    for name in ("gpus", "rows", "tflops", "bandwidth", "network", "gpus_per_host"):
        if (value := getattr(asked, name)) is not None and value <= 0:
            raise UserError(f"--{name.replace('_', '-')} {value}: must be more than 0")
    hardware, on_gpu = _hardware(asked)
    data = known_data(recipe, asked.rows)
    found = plan(
        recipe, ranks=asked.gpus or 1, hardware=hardware, on_gpu=on_gpu, labels=data.labels, train_rows=data.rows,
        filled=data.filled, methods=[find_method(word, recipe.method) for word in methods],
    )  # fmt: skip
    tables = _scaling(recipe, found, data.labels, on_gpu) if asked.scaling and found.chosen is not None else {}
    if output is not None:
        write_json(output, {**dataclasses.asdict(found), "scaling": _plain(tables)})
    return "\n\n".join([plan_text(found), *(scaling_text(title, table) for title, table in tables.items())])


def _hardware(asked: Asked) -> tuple[Hardware, bool]:
    memory = None
    if asked.gpu_memory is not None:
        try:
            memory = convert_file_size_to_int(asked.gpu_memory)
        except ValueError:
            memory = -1
        if memory <= 0:
            raise UserError(f"--gpu-memory {asked.gpu_memory}: not a size; such as 24GiB")
    if asked.gpus is None and memory is None:
        hardware, on_gpu = local_hardware()
    else:
        hardware, on_gpu = replace(GPU, memory=memory or GPU.memory), True
    if hardware.memory <= hardware.reserved:
        taken = f"{hardware.reserved / 2**30:.2f} GiB that libraries and fragments take"
        raise UserError(f"--gpu-memory {asked.gpu_memory or hardware.memory}: must be more than the {taken}")
    given: dict[str, Any] = {
        "flops": asked.tflops and asked.tflops * 1e12,
        "bandwidth": asked.bandwidth and asked.bandwidth * 1e9,
        "network": asked.network and asked.network * 1e9,
        "devices_per_host": asked.gpus_per_host,
    }
    if asked.speed_from is not None:
        if asked.tflops is not None:
            raise UserError("--tflops and --speed-from: say one of them")
        given["flops"] = reached(asked.speed_from, on_gpu)
    return replace(hardware, **{name: value for name, value in given.items() if value is not None}), on_gpu


def reached(folder: Path, on_gpu: bool) -> float:
    """Floating point operations a second that a finished run of one process reached in training, on a GPU or not.

    From its tokens a second, and the operations of a full row; of seq2seq by source tokens, as if targets were as long
    against sources as their greatest lengths. Raises UserError.
    """
    report = read_report(folder)
    if report.status != "complete" or report.environment.get("processes") != 1:
        raise UserError(f"--speed-from {folder}: must be a complete run of one process")
    recipe = dict_to_recipe(report.recipe)
    if (bool(report.environment.get("gpus")) and not recipe.training.get("use_cpu")) != on_gpu:
        there, here = ("a CPU", "GPUs") if on_gpu else ("a GPU", "a CPU")
        raise UserError(f"--speed-from {folder}: trained on {there}, and this plan is for {here}; say --tflops N")
    config = read_config(recipe.model)
    try:
        found = trace(
            config, recipe.task, recipe.method, arguments_of(recipe), labels=report.data["labels"],
            dtype=recipe.model.dtype, rows=(1,), on_gpu=on_gpu,
        )  # fmt: skip
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"--speed-from {folder}: a step can't be traced without values; say --tflops N") from error
    return (
        found.steps[0].flops
        / recipe.task.columns.max_lengths[recipe.task.columns.length_field]
        * report.times["tokens_per_second"]
    )


@dataclass(frozen=True, kw_only=True)
class KnownData:
    """What a plan takes from the data: training rows, label names, and the share of the full length that rows have."""

    rows: int | None
    labels: Sequence[str] = ("0", "1")
    filled: float = 1


def known_data(recipe: Recipe, rows: int | None) -> KnownData:
    """The recipe's data, where it is at hand and `rows` does not say how many there are."""
    if rows is not None:
        return KnownData(rows=rows)
    try:
        splits = load_splits(recipe.data, recipe.task)
    except UserError as error:
        logger.warning("the data is not read, so there are no hours; --rows N tells how many there are (%s)", error)
        return KnownData(rows=None)
    found = KnownData(rows=len(splits.train), labels=splits.labels or ("0", "1"))
    try:
        tokenizer = load_tokenizer(recipe.model, recipe.task)
    except UserError as error:
        logger.warning("rows are taken to be of full length for time too (%s)", error)
        return found
    drawn = splits.train.shuffle(seed=recipe.data.seed).select(range(min(DRAWN, len(splits.train))))
    encoded = recipe.task.encode(drawn, tokenizer, splits.labels)
    lengths = row_lengths(recipe, encoded)
    tokens = sum(pyarrow.compute.mean(each).as_py() for each in lengths.values())
    return replace(
        found,
        # A long text of entities is several rows.
        rows=round(len(splits.train) * len(encoded) / len(drawn)),
        filled=min(1, tokens / sum(getattr(recipe.task, field) for field in lengths)),
    )


def _scaling(recipe: Recipe, found: Plan, labels: Sequence[str], on_gpu: bool) -> dict[str, list[ScalingRow]]:
    assert found.chosen is not None
    row = found.rows[found.chosen]
    placement = next(one for one in PLACEMENTS if one.name == row.placement)
    method, config = find_method(row.method, recipe.method), read_config(recipe.model)
    traced = traced_method(recipe, config, method, row.checkpointing, labels, on_gpu, found.filled)
    memory = traced.under(placement)
    batch = memory.steps[0].rows * found.ranks * found.batch["micro_batches"]
    said = f"{row.method}, {row.placement}"
    return {
        f"weak scaling of {said}: each device keeps {memory.steps[0].rows} rows a step": weak_scaling(
            memory, memory.steps[0], placement, found.hardware
        ),
        f"strong scaling of {said}: {batch} rows a step in all, at most {memory.steps[0].rows} at once": strong_scaling(
            memory, memory.steps, placement, found.hardware, batch
        ),
    }


def _plain(tables: dict[str, list[ScalingRow]]) -> dict[str, list[dict[str, Any]]]:
    return {title: [dataclasses.asdict(row) for row in table] for title, table in tables.items()}
