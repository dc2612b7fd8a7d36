"""Batches without data, as long as a task allows, to trace a step on."""

import torch

from peftkit.tasks import Task


def make_dummy_batch(task: Task, rows: int, classes: int) -> dict[str, torch.Tensor]:
    """Return a collated batch of `rows` rows of the full length; its values have no meaning."""
    lengths = list(task.columns.max_lengths.values())
    inputs = {name: torch.ones(rows, lengths[0], dtype=torch.long) for name in ("input_ids", "attention_mask")}
    if task.output_kind != "sequence":
        # Of the target where there is one, else of the input.
        return {**inputs, "labels": torch.zeros(rows, lengths[-1], dtype=torch.long)}
    if task.model.problem_type == "regression":
        return {**inputs, "labels": torch.zeros(rows)}
    if task.model.problem_type == "multi_label_classification":
        return {**inputs, "labels": torch.zeros(rows, classes)}
    return {**inputs, "labels": torch.zeros(rows, dtype=torch.long)}
