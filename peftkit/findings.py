"""What a comparison found: scores over seeds, cost, differences, and which row to take."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from peftkit.gathered import Gathered, GatheredRow, read_predictions
from peftkit.methods import usual_learning_rate
from peftkit.metrics.paired import ALPHA, holm, paired_difference, resampled, seed_interval
from peftkit.parsing import dict_to_recipe
from peftkit.report import Report

# A p-value adjusted for many pairs needs more resamples to become small.
RESAMPLES, RESAMPLES_A_PAIR, MOST_RESAMPLES = 2000, 200, 10_000
# Peaks of memory as near as this are alike; then the shorter training decides.
ALIKE = 1.05
SHARES = ("start_up", "data", "train", "evaluate")
# As papers write them; any other goes by its own name.
METRIC_NAMES = {
    "f1": "F1", "f1_macro": "macro F1", "f1_micro": "micro F1", "pearson": "Pearson's r", "spearman": "Spearman's rho",
    "rougeL": "ROUGE-L", "bleu": "BLEU",
}  # fmt: skip


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
        seeds: Of the runs that came to a score.
        scores: By metric.
        learning_rate, r: The setting that was run; `r` None where the method has no rank.
        tried: Each trial's learning rate, rank, validation score and status.
        memory: Bytes at the peak, by kind: the largest over ranks and seeds.
        memory_per_rank: The same of each rank, the largest over seeds.
        cost: Means over seeds: `train_seconds`, `seconds_to_best`, `total_seconds`, `samples_per_second`,
            `tokens_per_second`, `tokens`, and `joules_cpu`, `joules_gpu` where they are counted.
        tuning_seconds: Of all trials together.
        shares: Of a run's time, by what it went on.
        trainable, total: Weights.
        trained_bytes, merged_bytes: Sizes; `merged_bytes` None for what can't be merged.
    """

    name: str
    values: Mapping[str, str]
    status: str
    cause: str | None = None
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
        rows: As they were asked for.
        pairs: Every two rows with a score.
        recommendation: One sentence: which row to take, why, and what it gives up.
        recommended: That row's name.
        notes: How it was made, and what is odd about it, a sentence each.
        memory_kind: The kind of peak that rows are compared by.
    """

    name: str
    metrics: tuple[str, ...]
    quick: bool
    rows: list[RowFindings]
    pairs: list[Pair]
    recommendation: str
    recommended: str | None
    notes: list[str]
    memory_kind: str


def metric_name(metric: str) -> str:
    """A metric as papers write it."""
    return METRIC_NAMES.get(metric, metric)


def task_of(report: Report) -> Any:
    """The task of a run's recipe."""
    return dict_to_recipe(report.recipe).task


def find(gathered: Gathered) -> Findings:
    """Aggregate the runs, test every pair, and recommend."""
    reports = [report for row in gathered.rows for report in (*row.runs.values(), *row.trials)]
    metrics = tuple(task_of(reports[0]).main_metrics) if reports else ()
    rows = [_row(row, metrics) for row in gathered.rows]
    quick = bool(gathered.plan.get("quick"))
    kinds = [set(row.memory) for row in rows if row.memory]
    kind = "allocated_peak" if kinds and all("allocated_peak" in one for one in kinds) else "process_peak"
    pairs, untested = _pairs(gathered.rows, rows, metrics)
    recommended, sentence = _recommend(rows, pairs, metrics, kind, untested)
    if quick and recommended:
        sentence += " One setting and one seed each (--quick): a first look, not a finding."
    notes = _notes(gathered, rows, quick)
    if untested:
        notes.append(untested)
    return Findings(
        name=gathered.name, metrics=metrics, quick=quick, rows=rows, pairs=pairs, recommendation=sentence,
        recommended=recommended, notes=notes, memory_kind=kind,
    )  # fmt: skip


def _score(reports: Sequence[Report], metric: str) -> Score:
    found = [report.metrics["test"].get(metric) for report in reports]
    per_seed = [float(value) for value in found if value is not None]
    if not per_seed:
        return Score(per_seed=[], mean=None, ci95=None)
    ci95 = seed_interval(per_seed)
    if ci95 is None:
        over_rows = reports[0].metrics["test"].get(f"{metric}_ci95")
        ci95 = None if over_rows is None or None in over_rows else list(over_rows)
    return Score(per_seed=per_seed, mean=float(np.mean(per_seed)), ci95=ci95)


def best_seen(report: Report, metric: str) -> tuple[float, float] | None:
    """Training seconds and score of the best look at validation on the way; None when it never looked."""
    looks = [
        (row["seconds"], row[f"eval_{metric}"])
        for row in report.history
        if row.get(f"eval_{metric}") is not None and "seconds" in row
    ]
    return max(looks, key=lambda look: look[1]) if looks else None


def _row(row: GatheredRow, metrics: tuple[str, ...]) -> RowFindings:
    tried = [_tried(report, metrics[0]) for report in row.trials]
    complete = list(row.complete.values())
    status, cause = _status(row)
    if not complete:
        return RowFindings(name=row.name, values=row.values, status=status, cause=cause, tried=tried)
    first = complete[0]
    memory = {kind: max(report.memory[kind] for report in complete) for kind in first.memory}
    per_rank = [
        {kind: max(report.memory_per_rank[rank][kind] for report in complete) for kind in first.memory}
        for rank in range(len(first.memory_per_rank))
    ]
    means: dict[str, Callable[[Report], float]] = {
        "train_seconds": lambda report: report.times["train"],
        "seconds_to_best": lambda report: (best_seen(report, metrics[0]) or (report.times["train"],))[0],
        "total_seconds": lambda report: report.times["total"],
        "samples_per_second": lambda report: report.times["samples_per_second"],
        "tokens_per_second": lambda report: report.times["tokens_per_second"],
        "tokens": lambda report: report.tokens,
    }
    setting = _tried(first, metrics[0])
    return RowFindings(
        name=row.name,
        values=row.values,
        status=status,
        cause=cause,
        seeds=[report.seed for report in complete if report.seed is not None],
        scores={metric: _score(complete, metric) for metric in metrics},
        learning_rate=setting["learning_rate"],
        r=setting["r"],
        tried=tried,
        memory=memory,
        memory_per_rank=per_rank,
        cost={
            **{name: float(np.mean([mean(report) for report in complete])) for name, mean in means.items()},
            **{f"joules_{kind}": float(np.mean([report.energy[kind] for report in complete])) for kind in first.energy},
        },
        tuning_seconds=sum(report.times.get("total", 0.0) for report in row.trials),
        shares={
            name: float(np.mean([report.times[name] / report.times["total"] for report in complete])) for name in SHARES
        },
        trainable=first.parameters["trainable"],
        total=first.parameters["total"],
        trained_bytes=first.sizes["trained"],
        merged_bytes=first.sizes.get("merged"),
    )


def _tried(report: Report, metric: str) -> dict[str, Any]:
    # Only what differs from the defaults is written down.
    recipe = dict_to_recipe(report.recipe)
    rank = getattr(recipe.method.peft, "r", None)
    return {
        "learning_rate": float(recipe.training.get("learning_rate") or usual_learning_rate(recipe.method)),
        "r": rank if isinstance(rank, int) and rank > 0 else None,
        "score": report.metrics.get("validation", {}).get(metric),
        "status": report.status,
        "cause": report.error,
    }


def _status(row: GatheredRow) -> tuple[str, str | None]:
    """How the row stands, and why it does not stand better."""
    lost = {folder.name: report for folder, report in row.runs.items() if report.status != "complete"}
    if lost:
        report = next(iter(lost.values()))
        which = f"{len(lost)} of {row.expected} runs: " if row.complete else ""
        return ("partly" if row.complete else report.status), f"{which}{report.error}"
    failed = [report for report in row.trials if report.status != "trial"]
    if failed and len(failed) == row.expected_trials:
        return failed[0].status, failed[0].error
    done = len(row.trials) + len(row.runs)
    if len(row.runs) < row.expected:
        return "unfinished", f"{done} of {row.expected + row.expected_trials} runs made; the same command continues"
    return "complete", None


def _pairs(
    gathered: Sequence[GatheredRow], rows: Sequence[RowFindings], metrics: tuple[str, ...]
) -> tuple[list[Pair], str | None]:
    """Every two rows that were tested on the same test rows; and a sentence when some were not."""
    scored = {row.name: row for row in rows if row.scores and _finite(row.scores[metrics[0]].mean)}
    statistics: dict[str, list[Any]] = {}
    tested: dict[str, Any] = {}
    for row in gathered:
        if row.name not in scored:
            continue
        for folder, report in row.complete.items():
            numbers, references, answers = read_predictions(folder)
            statistics.setdefault(row.name, []).append(task_of(report).statistics(answers, references)[metrics[0]])
            tested.setdefault(row.name, (numbers, references))
    combinations = list(itertools.combinations(scored, 2))
    wanted = min(MOST_RESAMPLES, max(RESAMPLES, RESAMPLES_A_PAIR * len(combinations)))
    drawn: dict[str, np.ndarray] = {}
    found = []
    for one, other in combinations:
        if tested[one] != tested[other]:
            continue
        for name in (one, other):
            if name not in drawn:
                drawn[name] = resampled(statistics[name], len(tested[name][0]), n_resamples=wanted)
        means = {name: scored[name].scores[metrics[0]].mean or 0.0 for name in (one, other)}
        if means[other] > means[one]:
            one, other = other, one
        found.append((one, other, paired_difference(drawn[one], drawn[other], (means[one], means[other]))))
    adjusted = holm([difference.p_value for *_, difference in found])
    pairs = []
    for (one, other, difference), p_adjusted in zip(found, adjusted, strict=True):
        significant = p_adjusted < ALPHA
        low, high = (100 * end for end in difference.ci95)
        told = f"{100 * difference.mean:.1f} points of {metric_name(metrics[0])}, 95 % interval {low:.1f} to {high:.1f}"
        told += f", p = {p_adjusted:.3f}" if p_adjusted >= 0.001 else ", p < 0.001"
        sentence = (
            f"{one} is better than {other}: {told}." if significant
            else f"No significant difference between {one} and {other}: {told}."
        )  # fmt: skip
        pairs.append(
            Pair(
                first=one, second=other, difference=difference.mean, ci95=difference.ci95,
                p_value=difference.p_value, p_adjusted=p_adjusted, significant=significant, sentence=sentence,
            )
        )  # fmt: skip
    untested = None
    if len(found) < len(combinations):
        untested = "Some rows were not tested on the same data as others: between those no difference can be tested."
    return pairs, untested


def _finite(mean: float | None) -> bool:
    return mean is not None and math.isfinite(mean)


def _recommend(
    rows: Sequence[RowFindings], pairs: Sequence[Pair], metrics: tuple[str, ...], kind: str, untested: str | None
) -> tuple[str | None, str]:
    """The cheapest row that is not significantly worse than the best, and a sentence on it."""
    # A row that failed with one of its seeds is not advised.
    sound = [row for row in rows if row.status == "complete" and _finite(row.scores[metrics[0]].mean)]
    if any(row.status == "unfinished" for row in rows):
        return None, "Not finished: the same command continues it; what follows is what there is so far."
    if not sound:
        return None, "No row came to a score with all its runs; the table says why."
    if untested:
        return None, "The rows were not tested on the same data, so which is better can't be told."

    def mean(row: RowFindings) -> float:
        return row.scores[metrics[0]].mean or 0.0

    best = max(sound, key=mean)
    against = {pair.second: pair for pair in pairs if pair.first == best.name}
    against |= {pair.first: pair for pair in pairs if pair.second == best.name}
    eligible = [row for row in sound if row is best or not against[row.name].significant]
    least = min(row.memory[kind] for row in eligible)
    chosen = min(
        (row for row in eligible if row.memory[kind] <= ALIKE * least), key=lambda row: row.cost["train_seconds"]
    )
    name = metric_name(metrics[0])
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
        return chosen.name, f"Take {chosen.name}: the best {name}, {mean(chosen):.3f}, with {costs}; {why}."
    pair = against[chosen.name]
    lost = 100 * (mean(best) - mean(chosen))
    worst = 100 * max(abs(end) for end in pair.ci95) if pair.first == best.name else 0.0
    memory = chosen.memory[kind] / best.memory[kind]
    seconds = chosen.cost["train_seconds"] / best.cost["train_seconds"]
    return chosen.name, (
        f"Take {chosen.name}: {name} {mean(chosen):.3f} where the best, {best.name}, has {mean(best):.3f}, no "
        f"significant difference, with {memory:.2f} times its memory and {seconds:.2f} times its training time "
        f"({costs}); it gives up {lost:.1f} points, and {worst:.1f} at the far end of the 95 % interval."
    )


def mebibytes(size: float) -> str:
    """Bytes as MiB."""
    found = size / 2**20
    return f"{found:,.0f} MiB" if found >= 10 else f"{found:.1f} MiB"


def _at_the_edge(row: RowFindings) -> bool:
    """Whether the learning rate that was run is the first or the last of several tried."""
    rates = sorted({tried["learning_rate"] for tried in row.tried})
    return len(rates) > 1 and row.learning_rate in (rates[0], rates[-1])


def _notes(gathered: Gathered, rows: Sequence[RowFindings], quick: bool) -> list[str]:
    reports = [report for row in gathered.rows for report in row.complete.values()]
    if not reports:
        return []
    first, plan = reports[0], gathered.plan
    where = ", ".join(first.environment["gpus"]) or f"{first.environment['cores']} cores of {first.environment['cpu']}"
    count = first.data["rows"]
    notes = []
    if quick:
        notes.append("Quick: one setting and one seed a row. Another seed or learning rate may turn the order around.")
    if plan and not quick:
        tuned = (
            f"{plan['trials']} settings of learning rate, and rank where there is one, tried on validation for each row"
            if plan["trials"] > 1 else "each row at its usual setting, untuned"
        )  # fmt: skip
        notes.append(f"{tuned[0].upper()}{tuned[1:]}; then seeds {', '.join(map(str, plan['seeds']))}, tested once.")
    if edge := [row.name for row in rows if _at_the_edge(row)]:
        notes.append(
            f"Of {', '.join(edge)} the best learning rate is the highest or the lowest that was tried: one beyond may "
            "be better; --learning_rates moves the middle, --trials tries more."
        )
    several = max((len(row.seeds) for row in rows), default=0) > 1
    notes.append(
        "In brackets the 95 % interval: "
        + ("of the mean over seeds (Student's t)." if several else "over test rows (bootstrap), of one seed.")
    )
    notes.append(
        "Differences: paired bootstrap over the same test rows, and over seeds; p-values for all pairs at once (Holm)."
    )
    kinds = "the process" + (", allocated on the GPU, reserved on the GPU" if len(first.memory) > 1 else "")
    at_once = f", {plan['jobs']} runs at a time" if plan and plan["jobs"] > 1 else ""
    notes.append(
        f"{count['train']} training, {count['validation']} validation and {count['test']} test rows; "
        f"{first.environment['processes']} process(es) a run{at_once}, on {where}. Peak memory: {kinds}, to the end of "
        "training, its looks at validation included. Time to best: training until the best look at validation."
    )
    if len({report.data["fingerprint"] for report in reports}) > 1:
        notes.append("The rows differ in data.")
    by_seed: dict[Any, set[tuple[Any, Any]]] = {}
    for report in reports:
        by_seed.setdefault(report.seed, set()).add((report.audit.get("end_step"), report.tokens))
    if any(len(found) > 1 for found in by_seed.values()):
        notes.append("The rows differ in steps or tokens: their budgets are not the same.")
    if len({str([report.environment[name] for name in ("cpu", "gpus", "packages")]) for report in reports}) > 1:
        notes.append("The runs were not all made on the same hardware with the same packages.")
    return notes
