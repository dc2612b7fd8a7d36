"""Recommendation of one row, with reasons."""

import math
from collections.abc import Sequence

from peftkit.comparison.analysis.types import Pair, RowFindings, format_mib, is_score
from peftkit.metrics.base import Metric

# Memory peaks within this factor count as equal; then training time decides.
MEMORY_FACTOR = 1.05
# Upper end of the interval, in points, above which the test is inconclusive.
INCONCLUSIVE_POINTS = 5.0


def recommend(
    rows: Sequence[RowFindings],
    pairs: Sequence[Pair],
    metrics: tuple[Metric, ...],
    kind: str,
    untested: str | None,
    baseline: float | None,
    *,
    is_quick: bool = False,
) -> tuple[str | None, str]:
    """Recommend the cheapest row that is not significantly worse than the best row.

    Returns the name of the row and at most four sentences with the reasons.
    """
    # A row with a failed seed is not recommended.
    candidates = [row for row in rows if row.status == "complete" and is_score(row.scores[metrics[0].name].mean)]
    if any(row.status == "unfinished" for row in rows):
        return None, "Not finished: repeat the command to continue. The tables contain the finished runs."
    if not candidates:
        return None, "No recommendation: no row has a score for all its runs. The table contains the errors."
    if untested:
        return None, "No recommendation: the rows were not tested on the same data."

    def mean(row: RowFindings) -> float:
        return row.scores[metrics[0].name].mean or 0.0

    metric = metrics[0]

    def rank(row: RowFindings) -> float:
        return metric.rank(mean(row))

    best = max(candidates, key=rank)
    against = {pair.second: pair for pair in pairs if pair.first == best.name}
    against |= {pair.first: pair for pair in pairs if pair.second == best.name}
    worse = [rank(row) for row in candidates if row is not best and against[row.name].significant]
    # A row below a significantly worse row is not eligible, even if its difference is not significant.
    eligible = [row for row in candidates if row is best or rank(row) > max(worse, default=-math.inf)]
    lowest = min(row.memory[kind] for row in eligible)
    selected = min(
        (row for row in eligible if row.memory[kind] <= MEMORY_FACTOR * lowest),
        key=lambda row: row.cost["train_seconds"],
    )
    name = metric.title
    if baseline is not None and mean(best) <= baseline:
        return None, (
            f"No recommendation: the best {name} ({mean(best):.3f}, {best.name}) does not beat the majority-class "
            f"baseline ({baseline:.3f})."
        )
    costs = f"{format_mib(selected.memory[kind])} peak memory, {selected.cost['train_seconds']:.0f} s of training"
    caveat = ["This is only a first look: each row has one setting and one seed."] if is_quick else []
    if len(rows) == 1:
        sentences = [f"{selected.name}: {name} {mean(selected):.3f}, {costs}.", "No other row was compared.", *caveat]
        return selected.name, " ".join(sentences)
    if selected is best:
        cheaper = [row.name for row in candidates if row.memory[kind] * MEMORY_FACTOR < selected.memory[kind]]
        if cheaper:
            is_tested = all(against[name].significant for name in cheaper)
            reason = (
                "are significantly worse" if is_tested else "are significantly worse, or score lower than such a row"
            )
            why = f"Rows with less memory ({', '.join(cheaper)}) {reason}."
        else:
            why = "No row needs less memory." if len(candidates) > 1 else "No other row has a score for all its runs."
        others = ", ".join(row.name for row in eligible if row is not best)
        note = [f"The difference to {others} is not significant."] if others else []
        sentences = [f"Use {selected.name}: best {name} ({mean(selected):.3f}), {costs}.", *note, why, *caveat]
        return selected.name, " ".join(sentences)
    pair = against[selected.name]
    loss = metric.format_difference(rank(best) - rank(selected))
    sign = 1 if pair.first == best.name else -1
    worst = max(sign * metric.rank(end) for end in pair.ci95)
    points = " points" if metric.has_points else ""
    is_wide = metric.has_points and 100 * worst > INCONCLUSIVE_POINTS
    memory = selected.memory[kind] / best.memory[kind]
    seconds = selected.cost["train_seconds"] / best.cost["train_seconds"]
    if is_wide:
        start = "This is only a first look with a wide interval" if is_quick else "The interval is wide"
        caveat = [f"{start}: use more test rows or seeds."]
    sentences = [
        f"Use {selected.name}: {name} {mean(selected):.3f}, {costs}.",
        f"The difference to {best.name} ({mean(best):.3f}) is {loss}{points}, at most "
        f"{metric.format_difference(worst)} (95 % interval), and not significant.",
        f"{selected.name} needs {memory:.2f} times the memory and {seconds:.2f} times the time of {best.name}.",
        *caveat,
    ]
    return selected.name, " ".join(sentences)
