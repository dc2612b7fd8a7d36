"""How far a score might move with another test set of the same size."""

import math
import warnings
from collections.abc import Callable, Mapping

import numpy as np

# A metric as a function of the numbers of the rows that count, each as often as it is named.
Statistic = Callable[[np.ndarray], float]

RESAMPLES = 1000
# Row numbers drawn at a time: bounds the memory.
AT_ONCE = 1_000_000


def bootstrap_interval(statistic: Statistic, rows: int, *, seed: int = 0, n_resamples: int = RESAMPLES) -> list[float]:
    """95 % interval `[low, high]` of `statistic`, which takes row numbers drawn with replacement from `rows`.

    Percentile bootstrap over rows (Efron and Tibshirani 1993, chapter 13), by `scipy.stats.bootstrap`, seeded. It
    knows nothing of another training seed. With fewer than two rows both ends are the score itself. Resamples without
    a score, such as the correlation of a constant, are left out; without any score both ends are NaN.
    """
    if rows < 2:
        return [statistic(np.arange(rows))] * 2
    from scipy.stats import bootstrap

    with warnings.catch_warnings(action="ignore", category=RuntimeWarning):
        scores = bootstrap(
            (np.arange(rows),), statistic, vectorized=False, n_resamples=n_resamples, method="percentile", rng=seed,
            batch=max(1, AT_ONCE // rows),
        ).bootstrap_distribution  # fmt: skip
    scores = scores[np.isfinite(scores)]
    return [float(end) for end in np.percentile(scores, [2.5, 97.5])] if len(scores) else [math.nan, math.nan]


def bootstrap_intervals(
    statistics: Mapping[str, Statistic], rows: int, *, seed: int = 0, n_resamples: int = RESAMPLES
) -> dict[str, list[float]]:
    """The interval of each statistic, as `{name}_ci95: [low, high]`."""
    return {
        f"{name}_ci95": bootstrap_interval(statistic, rows, seed=seed, n_resamples=n_resamples)
        for name, statistic in statistics.items()
    }
