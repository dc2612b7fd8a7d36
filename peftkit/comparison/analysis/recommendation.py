"""Recommendation of one row, with its reasons."""

import math
from collections.abc import Sequence

from peftkit.comparison.analysis.types import Pair, RowFindings, format_mib, is_score
from peftkit.metrics.base import Metric

# Peaks within this factor count as equal; then the shorter training decides.
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
) -> tuple[str | None, str]:
    """Recommend the cheapest row that is not significantly worse than the best; return its name and the reasons."""
    # A row with a failed seed is not recommended.
    candidates = [row for row in rows if row.status == "complete" and is_score(row.scores[metrics[0].name].mean)]
    if any(row.status == "unfinished" for row in rows):
        return None, "Not finished: repeat the command to continue. The tables show the finished runs."
    if not candidates:
        return None, "No recommendation: no row has a score for all its runs. The table shows the causes."
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
    # A row below a significantly worse one is not eligible, whatever its own test says.
    eligible = [row for row in candidates if row is best or rank(row) > max(worse, default=-math.inf)]
    lowest = min(row.memory[kind] for row in eligible)
    chosen = min(
        (row for row in eligible if row.memory[kind] <= MEMORY_FACTOR * lowest),
        key=lambda row: row.cost["train_seconds"],
    )
    name = metric.title
    if baseline is not None and mean(best) <= baseline:
        return None, (
            f"No recommendation: the best {name} ({mean(best):.3f}, {best.name}) does not beat the majority-class "
            f"baseline ({baseline:.3f})."
        )
    costs = f"{format_mib(chosen.memory[kind])} peak memory, {chosen.cost['train_seconds']:.0f} s of training"
    if len(rows) == 1:
        return (
            chosen.name,
            f"{chosen.name}: {name} {mean(chosen):.3f}, {costs}. It is the only row.",
        )
    if chosen is best:
        cheaper = [row.name for row in candidates if row.memory[kind] * MEMORY_FACTOR < chosen.memory[kind]]
        why = f"Rows that need less memory ({', '.join(cheaper)}) are significantly worse." if cheaper else (
            "No row needs clearly less memory." if len(candidates) > 1 else "No other row has a score for all its runs."
        )  # fmt: skip
        others = ", ".join(row.name for row in eligible if row is not best)
        note = f" No significant difference to {others}." if others else ""
        return chosen.name, f"Use {chosen.name}: best {name} ({mean(chosen):.3f}), {costs}.{note} {why}"
    pair = against[chosen.name]
    lost = metric.format_difference(rank(best) - rank(chosen))
    sign = 1 if pair.first == best.name else -1
    worst = max(sign * metric.rank(end) for end in pair.ci95)
    points = " points" if metric.has_points else ""
    is_wide = metric.has_points and 100 * worst > INCONCLUSIVE_POINTS
    memory = chosen.memory[kind] / best.memory[kind]
    seconds = chosen.cost["train_seconds"] / best.cost["train_seconds"]
    return chosen.name, (
        f"Use {chosen.name}: {name} {mean(chosen):.3f}, {costs}. The best row, {best.name}, has {mean(best):.3f}; the "
        f"difference is not significant. {chosen.name} needs {memory:.2f} times its memory and {seconds:.2f} times its "
        f"training time. It loses {lost}{points}, at most {metric.format_difference(worst)} (95 % interval)."
        + (" The interval is wide: use more test rows or seeds." if is_wide else "")
    )
