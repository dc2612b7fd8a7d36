"""Result types of the analysis; `findings.json` has these field names."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from peftkit.metrics.base import Metric


@dataclass(frozen=True, kw_only=True)
class Score:
    """One metric of one row on test.

    Attributes:
        per_seed: Scores in the order of the seeds, without missing scores.
        mean: Mean over seeds; None without scores.
        ci95: 95 % interval over seeds; with one seed over test rows, by bootstrap; None without an interval.
    """

    per_seed: list[float]
    mean: float | None
    ci95: list[float] | None


@dataclass(frozen=True, kw_only=True)
class RowFindings:
    """One row of a comparison.

    Attributes:
        name: Name of the row in tables.
        values: Compared values by field.
        status: `complete`, `unfinished`, `partly`, or the status of a failed run.
        cause: Error in one line, for a row that is not complete.
        broken: Whether a run failed for another reason than memory or divergence.
        seeds: Seeds of the complete runs.
        scores: Scores by metric.
        learning_rate, r: Setting of the runs; `r` is None if the method has no rank.
        tried: Learning rate, rank, validation score and status of each trial.
        memory: Peak bytes by kind; the maximum over ranks and seeds.
        memory_per_rank: Peak bytes by kind of each rank; the maximum over seeds.
        cost: Means over seeds: `train_seconds`, `seconds_to_best`, `total_seconds`, `samples_per_second`,
            `tokens_per_second`, `tokens`.
        tuning_seconds: Seconds of all trials.
        shares: Shares of the time of a run, by part.
        trainable, total: Number of trainable weights and of all weights.
        trained_bytes, merged_bytes: Bytes of saved and merged weights; `merged_bytes` is None if merging is impossible.
    """

    name: str
    values: Mapping[str, str]
    status: str
    cause: str | None = None
    broken: bool = False
    seeds: list[int] = field(default_factory=list)
    scores: dict[str, Score] = field(default_factory=dict)
    learning_rate: float = 0.0
    r: int | None = None
    tried: list[dict[str, Any]] = field(default_factory=list)
    memory: dict[str, int] = field(default_factory=dict)
    memory_per_rank: list[dict[str, int]] = field(default_factory=list)
    cost: dict[str, float] = field(default_factory=dict)
    tuning_seconds: float = 0.0
    shares: dict[str, float] = field(default_factory=dict)
    trainable: int = 0
    total: int = 0
    trained_bytes: int = 0
    merged_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Difference of two rows on the same test rows.

    Attributes:
        first, second: Names of the rows, the better row first.
        difference: Difference of the main metric: first minus second.
        ci95: 95 % interval of the difference.
        p_value: Two-sided p-value of the hypothesis of no difference.
        p_adjusted: p-value adjusted for all pairs (Holm).
        significant: Whether the adjusted p-value is below 0.05.
        sentence: The result as a sentence.
    """

    first: str
    second: str
    difference: float
    ci95: list[float]
    p_value: float
    p_adjusted: float
    significant: bool
    sentence: str


@dataclass(frozen=True, kw_only=True)
class Findings:
    """Findings of a comparison.

    Attributes:
        name: Name of the comparison.
        metrics: Metrics in tables; tuning and tests use the first one.
        quick: Whether each row has one setting and one seed.
        rows: Rows in the order of the command line.
        pairs: All pairs of rows with scores.
        recommendation: At most four sentences: the recommended row with reasons.
        recommended: Name of the recommended row.
        warnings: Warnings that affect the recommendation, one sentence each.
        notes: Notes on data, budget and statistics.
        memory_kind: Kind of peak memory for comparing rows.
    """

    name: str
    metrics: tuple[Metric, ...]
    quick: bool
    rows: list[RowFindings]
    pairs: list[Pair]
    recommendation: str
    recommended: str | None
    warnings: list[str]
    notes: list[str]
    memory_kind: str


def format_mib(size: float) -> str:
    """Format bytes as MiB."""
    found = size / 2**20
    return f"{found:,.0f} MiB" if found >= 10 else f"{found:.1f} MiB"


def is_score(mean: float | None) -> bool:
    """Return whether the mean is a finite number."""
    return mean is not None and math.isfinite(mean)
