"""Result types of the analysis; their field names are those of `findings.json`."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from peftkit.metrics.base import Metric


@dataclass(frozen=True, kw_only=True)
class Score:
    """One metric of one row on test.

    Attributes:
        per_seed: In the order of the seeds; those without a score left out.
        mean: Over seeds; None without any.
        ci95: Over seeds; with a single seed over test rows, by bootstrap; None where there is neither.
    """

    per_seed: list[float]
    mean: float | None
    ci95: list[float] | None


@dataclass(frozen=True, kw_only=True)
class RowFindings:
    """One row of a comparison.

    Attributes:
        name: What tables call it.
        values: What tells it from the others, by field.
        status: `complete`; `unfinished`; or how a run that came to no score ended.
        cause: A line on what came to no score.
        broken: Whether a run failed otherwise than by memory or by diverging: something to look at.
        seeds: Of the runs that came to a score.
        scores: By metric.
        learning_rate, r: The setting that was run; `r` None where the method has no rank.
        tried: Each trial's learning rate, rank, validation score and status.
        memory: Bytes at the peak, by kind: the largest over ranks and seeds.
        memory_per_rank: The same of each rank, the largest over seeds.
        cost: Means over seeds: `train_seconds`, `seconds_to_best`, `total_seconds`, `samples_per_second`,
            `tokens_per_second`, `tokens`.
        tuning_seconds: Of all trials together.
        shares: Of a run's time, by what it went on.
        trainable, total: Weights.
        trained_bytes, merged_bytes: Sizes; `merged_bytes` None for what can't be merged.
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
    """Two rows on the same test rows.

    Attributes:
        first, second: Their names, the better one first.
        difference: Of the main metric, first less second.
        ci95: Of the difference.
        p_value: Of no difference.
        p_adjusted: The same for all pairs at once (Holm).
        significant: Whether that is under 0.05.
        sentence: All of it in words.
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
    """What a comparison found.

    Attributes:
        name: Of the comparison.
        metrics: Those shown; the first is what was tuned for and is tested.
        quick: Whether it had one setting and one seed.
        rows: In the order of the command line.
        pairs: Every two rows with a score.
        recommendation: One sentence: which row to take, why, and what it gives up.
        recommended: That row's name.
        warnings: What the reader of the recommendation has to know, a sentence each.
        notes: How it was made and what is meant, a sentence each.
        memory_kind: The kind of peak that rows are compared by.
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
    """Bytes as MiB."""
    found = size / 2**20
    return f"{found:,.0f} MiB" if found >= 10 else f"{found:.1f} MiB"


def is_score(mean: float | None) -> bool:
    """Whether there is a mean that can be compared."""
    return mean is not None and math.isfinite(mean)
