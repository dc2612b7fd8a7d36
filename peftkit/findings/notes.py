"""How a comparison was made, and what is odd about it."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from peftkit.findings.values import RowFindings
from peftkit.gathered import Gathered, read_predictions


def _at_the_edge(row: RowFindings) -> bool:
    """Whether the learning rate that was run is the first or the last of several tried."""
    rates = sorted({tried["learning_rate"] for tried in row.tried})
    return len(rates) > 2 and row.learning_rate in (rates[0], rates[-1])


def _counted(trials: Sequence[int]) -> str:
    """How many settings; where what is compared left fewer to try, from how many."""
    low, high = max(1, min(trials)), max(trials)
    return f"{high} settings" if low == high else f"{low} to {high} settings"


def _trivial(gathered: Gathered) -> str:
    """What a score is worth beside the answer that needs no model."""
    folder = next(folder for row in gathered.rows for folder in row.complete)
    counts = Counter(map(str, read_predictions(folder)[1]))
    label, count = counts.most_common(1)[0]
    return f"Always to answer {label}, the most frequent label of test, has accuracy {count / counts.total():.3f}."


def notes(gathered: Gathered, rows: Sequence[RowFindings], metrics: tuple[str, ...], quick: bool) -> list[str]:
    """A sentence each."""
    reports = [report for row in gathered.rows for report in row.complete.values()]
    if not reports:
        return []
    first, plan = reports[0], gathered.plan
    where = ", ".join(first.environment["gpus"]) or f"{first.environment['cores']} cores of {first.environment['cpu']}"
    count = first.data["rows"]
    told = []
    if quick:
        told.append("Quick: one setting and one seed a row. Another seed or learning rate may turn the order around.")
    if plan and not quick:
        trials = [row["trials"] for row in plan["rows"]]
        tuned = (
            f"{_counted(trials)} of learning rate, and rank where there is one, tried on validation for each row"
            if max(trials) > 1 else "each row at its usual setting, untuned"
        )  # fmt: skip
        told.append(f"{tuned[0].upper()}{tuned[1:]}; then seeds {', '.join(map(str, plan['seeds']))}, tested once.")
    if edge := [row.name for row in rows if _at_the_edge(row)]:
        told.append(
            f"Of {', '.join(edge)} the best learning rate is the highest or the lowest that was tried: one beyond may "
            "be better; --learning_rates moves the middle, --trials tries more."
        )
    seeds = [len(row.seeds) for row in rows if row.seeds]
    ways = ["of the mean over seeds (Student's t)"] if max(seeds) > 1 else []
    ways += ["over test rows (bootstrap) where there is one seed"] if min(seeds) == 1 else []
    told.append(f"In brackets the 95 % interval: {'; '.join(ways)}.")
    told.append(
        "Differences: paired bootstrap over the same test rows, and over seeds; p-values for all pairs at once (Holm)."
    )
    kinds = "the process" + (", allocated on the GPU, reserved on the GPU" if len(first.memory) > 1 else "")
    at_once = f", {plan['jobs']} runs at a time" if plan and plan["jobs"] > 1 else ""
    told.append(
        f"{count['train']} training, {count['validation']} validation and {count['test']} test rows; "
        f"{first.environment['processes']} process(es) a run{at_once}, on {where}. Peak memory: {kinds}, to the end of "
        "training, its looks at validation included. Time to best: training until the best look at validation."
    )
    if metrics[0] == "accuracy":
        told.append(_trivial(gathered))
    if plan and plan["jobs"] > 1 and any("cpu" in report.energy for report in reports):
        told.append("The processor's energy is of all runs at a time together.")
    if len({report.data["fingerprint"] for report in reports}) > 1:
        told.append("The rows differ in data.")
    by_seed: dict[Any, set[tuple[Any, Any]]] = {}
    for report in reports:
        by_seed.setdefault(report.seed, set()).add((report.audit.get("end_step"), report.tokens))
    if any(len(found) > 1 for found in by_seed.values()):
        told.append("The rows differ in steps or tokens: their budgets are not the same.")
    if len({str([report.environment[name] for name in ("cpu", "gpus", "packages")]) for report in reports}) > 1:
        told.append("The runs were not all made on the same hardware with the same packages.")
    return told
