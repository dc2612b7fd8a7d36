"""Bootstrap confidence intervals over rows."""

import math
import warnings
from collections.abc import Callable, Mapping

import numpy as np

# A metric as a function of row numbers that are drawn with replacement.
Statistic = Callable[[np.ndarray], float]

RESAMPLES = 1000
# Maximum number of row numbers that are drawn at a time; limits memory.
MAX_DRAWS = 1_000_000


def compute_interval(statistic: Statistic, rows: int, *, seed: int = 0, n_resamples: int = RESAMPLES) -> list[float]:
    """Compute the 95 % interval `[low, high]` of `statistic` over row numbers drawn from `rows`.

    Seeded percentile bootstrap over rows (Efron and Tibshirani 1993, chapter 13) by `scipy.stats.bootstrap`. The
    interval does not include the variance between training seeds. With fewer than two rows both ends are the score.
    Resamples without a score, such as the correlation of a constant, are skipped; without any score both ends are NaN.
    """
    if rows < 2:
        return [statistic(np.arange(rows))] * 2
    from scipy.stats import bootstrap

    with warnings.catch_warnings(action="ignore", category=RuntimeWarning):
        scores = bootstrap(
            (np.arange(rows),), statistic, vectorized=False, n_resamples=n_resamples, method="percentile", rng=seed,
            batch=max(1, MAX_DRAWS // rows),
        ).bootstrap_distribution  # fmt: skip
    scores = scores[np.isfinite(scores)]
    return [float(end) for end in np.percentile(scores, [2.5, 97.5])] if len(scores) else [math.nan, math.nan]


def compute_intervals(
    statistics: Mapping[str, Statistic], rows: int, *, seed: int = 0, n_resamples: int = RESAMPLES
) -> dict[str, list[float]]:
    """Compute the interval of each statistic, as `{name}_ci95: [low, high]`."""
    return {
        f"{name}_ci95": compute_interval(statistic, rows, seed=seed, n_resamples=n_resamples)
        for name, statistic in statistics.items()
    }
