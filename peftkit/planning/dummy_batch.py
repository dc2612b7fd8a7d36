"""Dummy batches of the maximum length, for tracing a training step without data."""

import torch

from peftkit.tasks import Task


def make_dummy_batch(task: Task, rows: int, classes: int) -> dict[str, torch.Tensor]:
    """Return a collated batch of `rows` rows of the maximum length, with arbitrary values."""
    lengths = list(task.columns.max_lengths.values())
    inputs = {name: torch.ones(rows, lengths[0], dtype=torch.long) for name in ("input_ids", "attention_mask")}
    if task.output_kind != "sequence":
        # The length of the target if there is one, else of the input.
        return {**inputs, "labels": torch.zeros(rows, lengths[-1], dtype=torch.long)}
    if task.model.problem_type == "regression":
        return {**inputs, "labels": torch.zeros(rows)}
    if task.model.problem_type == "multi_label_classification":
        return {**inputs, "labels": torch.zeros(rows, classes)}
    return {**inputs, "labels": torch.zeros(rows, dtype=torch.long)}
