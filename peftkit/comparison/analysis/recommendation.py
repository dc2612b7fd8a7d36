"""Which row to take, in one sentence with its reasons."""

import math
from collections.abc import Sequence

from peftkit.comparison.analysis.types import Pair, RowFindings, is_score, mebibytes
from peftkit.metrics.base import Metric

# Peaks of memory as near as this are alike; then the shorter training decides.
ALIKE = 1.05
# Points at the far end of an interval beyond which "not significantly worse" says little.
FEW_POINTS = 5.0
WIDE = "so few test rows or seeds can hardly tell these rows apart"


def recommend(
    rows: Sequence[RowFindings],
    pairs: Sequence[Pair],
    metrics: tuple[Metric, ...],
    kind: str,
    untested: str | None,
    trivial: float | None,
) -> tuple[str | None, str]:
    """The cheapest row that is not significantly worse than the best, and a sentence on it."""
    # A row that failed with one of its seeds is not advised.
    sound = [row for row in rows if row.status == "complete" and is_score(row.scores[metrics[0].name].mean)]
    if any(row.status == "unfinished" for row in rows):
        return None, "Not finished: the same command continues it; what follows is what there is so far."
    if not sound:
        return None, "No row came to a score with all its runs; the table says why."
    if untested:
        return None, "The rows were not tested on the same data, so which is better can't be told."

    def mean(row: RowFindings) -> float:
        return row.scores[metrics[0].name].mean or 0.0

    metric = metrics[0]

    def rank(row: RowFindings) -> float:
        return metric.rank(mean(row))

    best = max(sound, key=rank)
    against = {pair.second: pair for pair in pairs if pair.first == best.name}
    against |= {pair.first: pair for pair in pairs if pair.second == best.name}
    worse = [rank(row) for row in sound if row is not best and against[row.name].significant]
    # What scores lower than a row that is significantly worse is no better, whatever its own test says.
    eligible = [row for row in sound if row is best or rank(row) > max(worse, default=-math.inf)]
    least = min(row.memory[kind] for row in eligible)
    chosen = min(
        (row for row in eligible if row.memory[kind] <= ALIKE * least), key=lambda row: row.cost["train_seconds"]
    )
    name = metric.title
    if trivial is not None and mean(best) <= trivial:
        return None, (
            f"None can be advised: the best {name}, {mean(best):.3f} of {best.name}, is not over that of always "
            f"answering the most frequent label, {trivial:.3f}."
        )
    costs = f"{mebibytes(chosen.memory[kind])} of memory at the peak, {chosen.cost['train_seconds']:.0f} s of training"
    if len(rows) == 1:
        return (
            chosen.name,
            f"{chosen.name}: {name} {mean(chosen):.3f} with {costs}; there is nothing to compare it with.",
        )
    if chosen is best:
        cheaper = [row.name for row in sound if row.memory[kind] * ALIKE < chosen.memory[kind]]
        why = f"those that need less memory ({', '.join(cheaper)}) are significantly worse" if cheaper else (
            "none needs clearly less memory" if len(sound) > 1 else "no other row came to a score with all its runs"
        )  # fmt: skip
        alike = ", ".join(row.name for row in eligible if row is not best)
        told = f" (no significant difference to {alike})" if alike else ""
        return chosen.name, f"Take {chosen.name}: the best {name}, {mean(chosen):.3f}{told}, with {costs}; {why}."
    pair = against[chosen.name]
    lost = metric.format_difference(rank(best) - rank(chosen))
    ahead = 1 if pair.first == best.name else -1
    worst = max(ahead * metric.rank(end) for end in pair.ci95)
    points = " points" if metric.has_points else ""
    memory = chosen.memory[kind] / best.memory[kind]
    seconds = chosen.cost["train_seconds"] / best.cost["train_seconds"]
    return chosen.name, (
        f"Take {chosen.name}: {name} {mean(chosen):.3f} where the best, {best.name}, has {mean(best):.3f}, no "
        f"significant difference, with {memory:.2f} times its memory and {seconds:.2f} times its training time "
        f"({costs}); it gives up {lost}{points}, and {metric.format_difference(worst)} at the far end of the 95 % "
        "interval" + (f", which is wide: {WIDE}." if metric.has_points and 100 * worst > FEW_POINTS else ".")
    )
