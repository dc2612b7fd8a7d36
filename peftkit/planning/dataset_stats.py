"""Data statistics for a plan: training rows, labels and token lengths."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow.compute
from datasets import Dataset

from peftkit.data.splits import load_splits
from peftkit.errors import UserError
from peftkit.models.loading import load_tokenizer
from peftkit.recipe.schema import Recipe
from peftkit.system.logging import logger

SAMPLE_ROWS = 1000
"""Number of training rows for the mean length."""


@dataclass(frozen=True, kw_only=True)
class DatasetStats:
    """Statistics of the training data.

    Attributes:
        rows: Number of training rows; None if the data is not available.
        labels: Label names.
        fill: Mean row length as a share of the maximum length.
    """

    rows: int | None
    labels: Sequence[str] = ("0", "1")
    fill: float = 1


def read_dataset_stats(recipe: Recipe, rows: int | None) -> DatasetStats:
    """Read the statistics of the recipe's data; if `rows` is given, do not read the data."""
    if rows is not None:
        return DatasetStats(rows=rows)
    try:
        splits = load_splits(recipe.data, recipe.task)
    except UserError as error:
        logger.warning("dataset not available, so training time is not estimated; pass --rows N (%s)", error)
        return DatasetStats(rows=None)
    stats = DatasetStats(rows=len(splits.train), labels=splits.labels or ("0", "1"))
    try:
        tokenizer = load_tokenizer(recipe.model, recipe.task)
    except UserError as error:
        logger.warning("tokenizer not available, so training time assumes rows of full length (%s)", error)
        return stats
    sample = splits.train.shuffle(seed=recipe.data.seed).select(range(min(SAMPLE_ROWS, len(splits.train))))
    encoded = recipe.task.encode(sample, tokenizer, splits.labels)
    lengths = count_row_tokens(recipe, encoded)
    tokens = sum(pyarrow.compute.mean(each).as_py() for each in lengths.values())
    return replace(
        stats,
        # Token classification splits a long text into several rows.
        rows=round(len(splits.train) * len(encoded) / len(sample)),
        fill=min(1, tokens / sum(recipe.task.columns.max_lengths[field] for field in lengths)),
    )


def count_row_tokens(recipe: Recipe, encoded: Dataset) -> dict[str, Any]:
    """Count the tokens of each encoded row, by the task field that limits the tokens."""
    arrays = encoded.with_format("arrow")
    return {
        field: pyarrow.compute.list_value_length(arrays[column][:])
        for field, column in zip(recipe.task.columns.max_lengths, ("input_ids", "labels"), strict=False)
    }
