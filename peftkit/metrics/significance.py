"""Significance tests: intervals over seeds, paired bootstrap, correction for multiple tests."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from peftkit.metrics.bootstrap import MAX_DRAWS, Statistic

ALPHA = 0.05


def compute_seed_interval(scores: Sequence[float]) -> list[float] | None:
    """Compute the 95 % interval of the mean over seeds by Student's t; None for fewer than two."""
    if len(scores) < 2:
        return None
    from scipy import stats

    mean, error = float(np.mean(scores)), float(stats.sem(scores))
    if error == 0.0:
        return [mean, mean]
    low, high = stats.t.interval(1 - ALPHA, len(scores) - 1, loc=mean, scale=error)
    return [float(low), float(high)]


def resample_scores(runs: Sequence[Statistic], rows: int, *, n_resamples: int, seed: int = 0) -> np.ndarray:
    """Compute the score of each run on rows drawn with replacement; the shape is (runs, n_resamples).

    Equal `rows` and `seed` draw equal rows, the same as `scipy.stats.bootstrap`.
    """
    rng = np.random.default_rng(seed)
    batch_size = max(1, MAX_DRAWS // rows)
    scores: list[list[float]] = [[] for _ in runs]
    for first in range(0, n_resamples, batch_size):
        for drawn in rng.integers(0, rows, (min(batch_size, n_resamples - first), rows)):
            for index, run in enumerate(runs):
                scores[index].append(run(drawn))
    return np.array(scores)


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The difference of two methods: first minus second.

    Attributes:
        mean: Difference of the scores on all rows, averaged over seeds.
        ci95: `[low, high]` from resampling.
        p_value: Two-sided p-value of the hypothesis of no difference.
    """

    mean: float
    ci95: list[float]
    p_value: float


def compare_paired_scores(
    first: np.ndarray, second: np.ndarray, means: tuple[float, float], *, seed: int = 0
) -> Difference:
    """Compute difference and p-value of two methods from resampled scores, each (seeds, n_resamples).

    Paired percentile bootstrap over rows (Efron and Tibshirani 1993, chapters 13 and 16): a resample draws the same
    rows for both methods. It also draws seeds, separately for each method, to include the variance between seeds.
    """
    # A different random stream from the one that draws the rows.
    rng = np.random.default_rng([seed, 1])

    def over_seeds(scores: np.ndarray) -> np.ndarray:
        seeds, resamples = scores.shape
        drawn = rng.integers(0, seeds, (seeds, resamples))
        return np.take_along_axis(scores, drawn, 0).mean(0)

    found = over_seeds(first) - over_seeds(second)
    found = found[np.isfinite(found)]
    mean = means[0] - means[1]
    if not len(found):
        return Difference(mean=mean, ci95=[mean, mean], p_value=1.0)
    low, high = np.percentile(found, [100 * ALPHA / 2, 100 * (1 - ALPHA / 2)])
    # Add one to both counts: a finite number of resamples cannot give p = 0 (Davison and Hinkley 1997, section 4.2).
    below, above = ((1 + np.sum(side)) / (1 + len(found)) for side in (found <= 0, found >= 0))
    return Difference(mean=mean, ci95=[float(low), float(high)], p_value=float(min(1.0, 2 * min(below, above))))


def adjust_p_values(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for multiple tests by Holm's step-down method (Holm 1979)."""
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(np.argsort(p_values, kind="stable")):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted
