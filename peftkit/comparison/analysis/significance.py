"""Paired significance tests of all pairs of rows on the same test rows."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from peftkit.comparison.analysis.types import Pair, RowFindings, is_score
from peftkit.comparison.results import RowResults, read_predictions, read_task
from peftkit.metrics.base import Metric
from peftkit.metrics.significance import ALPHA, adjust_p_values, compare_paired_scores, resample_scores

# With many pairs the number is larger: the smallest possible adjusted p-value is half of the significance level.
MIN_RESAMPLES = 2000


def compare_pairs(
    results: Sequence[RowResults], rows: Sequence[RowFindings], metrics: tuple[Metric, ...]
) -> tuple[list[Pair], str | None]:
    """Test all pairs of rows with the same test rows; the second result is a warning about untested pairs."""
    scored = {row.name: row for row in rows if row.scores and is_score(row.scores[metrics[0].name].mean)}
    statistics: dict[str, list[Any]] = {}
    tested: dict[str, Any] = {}
    for row in results:
        if row.name not in scored:
            continue
        for folder, report in row.complete.items():
            numbers, references, predictions = read_predictions(folder)
            statistics.setdefault(row.name, []).append(
                read_task(report).metrics.statistics(predictions, references)[metrics[0].name]
            )
            tested.setdefault(row.name, (numbers, references))
    combinations = list(itertools.combinations(scored, 2))
    n_resamples = max(MIN_RESAMPLES, math.ceil(4 / ALPHA) * len(combinations))
    drawn: dict[str, np.ndarray] = {}
    found = []
    for one, other in combinations:
        if tested[one] != tested[other]:
            continue
        for name in (one, other):
            if name not in drawn:
                drawn[name] = resample_scores(statistics[name], len(tested[name][0]), n_resamples=n_resamples)
        means = {name: scored[name].scores[metrics[0].name].mean or 0.0 for name in (one, other)}
        if metrics[0].rank(means[other]) > metrics[0].rank(means[one]):
            one, other = other, one
        found.append((one, other, compare_paired_scores(drawn[one], drawn[other], (means[one], means[other]))))
    adjusted = adjust_p_values([difference.p_value for *_, difference in found])
    pairs = []
    for (one, other, difference), p_adjusted in zip(found, adjusted, strict=True):
        significant = p_adjusted < ALPHA
        metric, unit = metrics[0], "points of " if metrics[0].has_points else ""
        low, high = (metric.format_difference(end) for end in difference.ci95)
        text = f"{metric.format_difference(difference.mean)} {unit}{metric.title}, 95 % interval {low} to {high}"
        text += f", adjusted p = {p_adjusted:.3f}" if p_adjusted >= 0.001 else ", adjusted p < 0.001"
        sentence = (
            f"{one} is better than {other}: {text}." if significant
            else f"No significant difference between {one} and {other}: {text}."
        )  # fmt: skip
        pairs.append(
            Pair(
                first=one, second=other, difference=difference.mean, ci95=difference.ci95,
                p_value=difference.p_value, p_adjusted=p_adjusted, significant=significant, sentence=sentence,
            )
        )  # fmt: skip
    untested = None
    if len(found) < len(combinations):
        untested = "Some rows have different test data; their differences are not tested."
    return pairs, untested
