"""What the plan says of a run on its own rows, to stand beside what was measured."""

import dataclasses
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pyarrow.compute
from datasets import Dataset
from transformers import TrainingArguments

from peftkit.models.loading import disable_zero3
from peftkit.planning.tracing import trace
from peftkit.planning.zero import placement_of, rank_memory
from peftkit.recipe.schema import Recipe


def planned_run(
    recipe: Recipe, config: Any, train: Dataset, arguments: TrainingArguments, *, labels: Sequence[str],
    head: Sequence[str], ranks: int, rows: int, before: int,
) -> dict[str, Any]:  # fmt: skip
    """What the plan says of a run on its encoded rows, to stand beside what was measured: field `plan` of a report.

    `rows` is the batch of a device, `before` what the process held before the model. A step that can't be traced is
    told as `error`.
    """
    on_gpu = arguments.device.type == "cuda"
    try:
        task = replace(recipe.task, **longest(recipe, train))  # type: ignore[type-var]
        words = recipe.training.get("deepspeed")
        placement = placement_of(words)
        with disable_zero3():
            memory = trace(
                config, task, recipe.method, arguments, labels=labels, dtype=recipe.model.dtype, rows=(rows,),
                on_gpu=on_gpu, head=head, deepspeed=words is not None,
            )  # fmt: skip
        found = rank_memory(memory, memory.steps[0], placement, ranks)
    except Exception as error:
        # What a model does with values is not for a run to fail by that has ended well.
        return {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}
    told = {
        "placement": placement.name, "rows": rows, **task.columns.max_lengths,
        **dataclasses.asdict(found), "process_before": before,
    }  # fmt: skip
    return told if on_gpu else {**told, "process_peak": before + found.peak + found.host}


def longest(recipe: Recipe, train: Dataset) -> dict[str, int]:
    """The task's lengths in tokens, as far as the encoded rows make use of them."""
    return {field: pyarrow.compute.max(lengths).as_py() for field, lengths in row_lengths(recipe, train).items()}


def row_lengths(recipe: Recipe, encoded: Dataset) -> dict[str, Any]:
    """The number of tokens of each encoded row, by the field of the task that limits it."""
    arrays = encoded.with_format("arrow")
    return {
        field: pyarrow.compute.list_value_length(arrays[column][:])
        for field, column in zip(recipe.task.columns.max_lengths, ("input_ids", "labels"), strict=False)
    }
