"""How a comparison was made, and what is odd about it."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from peftkit.comparison.analysis.types import RowFindings
from peftkit.comparison.results import ComparisonResults, read_predictions
from peftkit.metrics.base import Metric


def _at_the_edge(row: RowFindings) -> bool:
    """Whether the learning rate that was run is the first or the last of several tried."""
    rates = sorted({tried["learning_rate"] for tried in row.tried})
    return len(rates) > 2 and row.learning_rate in (rates[0], rates[-1])


def _counted(trials: Sequence[int]) -> str:
    """How many settings; where what is compared left fewer to try, from how many."""
    low, high = max(1, min(trials)), max(trials)
    return f"{high} settings" if low == high else f"{low} to {high} settings"


def trivial_answer(results: ComparisonResults, metrics: tuple[Metric, ...]) -> tuple[str, float] | None:
    """The most frequent label of test and the accuracy of answering nothing else; None where that is no score."""
    folders = [folder for row in results.rows for folder in row.complete]
    if not folders or metrics[0].name != "accuracy":
        return None
    counts = Counter(map(str, read_predictions(folders[0])[1]))
    label, count = counts.most_common(1)[0]
    return label, count / counts.total()


def warnings(results: ComparisonResults, rows: Sequence[RowFindings]) -> list[str]:
    """What the reader of the advice has to know, a sentence each."""
    reports = [report for row in results.rows for report in row.complete.values()]
    told = []
    if len({report.data["fingerprint"] for report in reports}) > 1:
        told.append(f"The rows differ in data: {_range([report.data['rows']['train'] for report in reports])} train.")
    by_seed: dict[Any, set[tuple[Any, Any]]] = {}
    for report in reports:
        by_seed.setdefault(report.seed, set()).add((report.audit.get("end_step"), report.tokens))
    if any(len(found) > 1 for found in by_seed.values()):
        steps = _range([report.audit.get("end_step", 0) for report in reports])
        tokens = _range([report.tokens for report in reports])
        told.append(f"The rows differ in their budgets: {steps} steps, {tokens} tokens.")
    if len({str([report.environment[name] for name in ("cpu", "gpus", "packages")]) for report in reports}) > 1:
        told.append("The runs were not all made on the same hardware with the same packages.")
    if edge := [row.name for row in rows if _at_the_edge(row)]:
        told.append(
            f"Of {', '.join(edge)} the best learning rate is the highest or the lowest that was tried: one beyond may "
            "be better; --learning_rates moves the middle, --trials tries more."
        )
    found = [line for report in reports for line in report.data.get("checks", {}).get("warnings", ())]
    return told + [f"Data: {line}." for line in dict.fromkeys(found)]


def notes(results: ComparisonResults, rows: Sequence[RowFindings], trivial: tuple[str, float] | None) -> list[str]:
    """How it was made and what is meant, a sentence each."""
    reports = [report for row in results.rows for report in row.complete.values()]
    if not reports:
        return []
    first, plan = reports[0], results.plan
    told = []
    if plan:
        trials = [row["trials"] for row in plan["rows"]]
        tuned = (
            f"{_counted(trials)} of learning rate, and rank where there is one, tried on validation for each row"
            if max(trials) > 1 else "Each row at its usual setting, untuned"
        )  # fmt: skip
        seeds = ", ".join(map(str, plan["seeds"]))
        told.append(f"{tuned}; then seed{'s' * (len(plan['seeds']) > 1)} {seeds}, each run tested once.")
    if trivial is not None:
        told.append(f"Always to answer {trivial[0]}, the most frequent label of test, has accuracy {trivial[1]:.3f}.")
    seeds_of = [len(row.seeds) for row in rows if row.seeds]
    ways = ["of the mean over seeds (Student's t, within the metric's bounds)"] if max(seeds_of) > 1 else []
    ways += ["over test rows (bootstrap) where there is one seed"] if min(seeds_of) == 1 else []
    told.append(f"In brackets the 95 % interval: {'; '.join(ways)}.")
    told.append(
        "Differences: paired bootstrap over the same test rows, and over seeds. The p-values are adjusted for all "
        "pairs at once (Holm), the intervals are not."
    )
    count = {
        split: _range([report.data["rows"][split] for report in reports]) for split in ("train", "validation", "test")
    }
    here = first.environment
    where = ", ".join(here["gpus"]) or f"{_plural(here['cores'], 'core')} of {here['cpu']}"
    at_once = f", {plan['jobs']} runs at a time" if plan and plan["jobs"] > 1 else ""
    kinds = "the process" + (", allocated on the GPU, reserved on the GPU" if len(first.memory) > 1 else "")
    told.append(
        f"{count['train']} training, {count['validation']} validation and {count['test']} test rows of data; "
        f"{_plural(here['processes'], 'process', 'processes')} a run{at_once}, on {where}. Peak memory: {kinds}, to "
        "the end of training, its looks at validation included. Time to best: of training, until the best look at "
        "validation."
    )
    decisions = [line for report in reports for line in report.data.get("decisions", ())]
    return told + [f"Data: {line}." for line in dict.fromkeys(decisions)]


def _range(counts: Sequence[int]) -> str:
    low, high = min(counts), max(counts)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _plural(count: int, one: str, several: str = "") -> str:
    return f"{count} {one if count == 1 else several or one + 's'}"
