"""Warnings about a comparison, and notes on data, budget and statistics."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from peftkit.comparison.analysis.types import RowFindings
from peftkit.comparison.results import ComparisonResults, read_predictions
from peftkit.metrics.base import Metric


def _is_at_edge(row: RowFindings) -> bool:
    """Return whether the best learning rate is the lowest or the highest of at least three values."""
    rates = sorted({trial["learning_rate"] for trial in row.tried})
    return len(rates) > 2 and row.learning_rate in (rates[0], rates[-1])


def _format_settings(trials: Sequence[int]) -> str:
    """Format the number of settings per row; a range if the numbers differ between rows."""
    low, high = max(1, min(trials)), max(trials)
    return f"{high} settings" if low == high else f"{low} to {high} settings"


def find_majority_baseline(results: ComparisonResults, metrics: tuple[Metric, ...]) -> tuple[str, float] | None:
    """Find the most frequent test label and the accuracy of always predicting it; None without accuracy."""
    folders = [folder for row in results.rows for folder in row.complete]
    if not folders or metrics[0].name != "accuracy":
        return None
    counts = Counter(map(str, read_predictions(folders[0])[1]))
    label, count = counts.most_common(1)[0]
    return label, count / counts.total()


def list_warnings(results: ComparisonResults, rows: Sequence[RowFindings]) -> list[str]:
    """List warnings that affect the recommendation, one sentence each."""
    reports = [report for row in results.rows for report in row.complete.values()]
    lines = []
    if len({report.data["fingerprint"] for report in reports}) > 1:
        lines.append(
            "The candidates use different data: "
            f"{_format_range([report.data['rows']['train'] for report in reports])} training rows."
        )
    by_seed: dict[Any, set[tuple[Any, Any]]] = {}
    for report in reports:
        by_seed.setdefault(report.seed, set()).add((report.audit.get("end_step"), report.tokens))
    if any(len(found) > 1 for found in by_seed.values()):
        steps = _format_range([report.audit.get("end_step", 0) for report in reports])
        tokens = _format_range([report.tokens for report in reports])
        lines.append(
            f"The candidates were trained for different numbers of steps or tokens: {steps} steps, {tokens} tokens."
        )
    if len({str([report.environment[name] for name in ("cpu", "gpus", "packages")]) for report in reports}) > 1:
        lines.append("The runs used different hardware or packages.")
    if edge := [row.name for row in rows if _is_at_edge(row)]:
        lines.append(
            f"{', '.join(edge)}: the best learning rate is at the edge of the search range. Use --learning_rates to "
            "move the range or --trials to widen the search."
        )
    found = [line for report in reports for line in report.data.get("checks", {}).get("warnings", ())]
    return lines + [f"Data: {line}." for line in dict.fromkeys(found)]


def list_notes(
    results: ComparisonResults, rows: Sequence[RowFindings], baseline: tuple[str, float] | None
) -> list[str]:
    """List notes on data, budget and statistics."""
    reports = [report for row in results.rows for report in row.complete.values()]
    if not reports:
        return []
    first, comparison = reports[0], results.comparison
    lines = []
    if comparison:
        trials = [row["trials"] for row in comparison["rows"]]
        tuned = (
            f"Tuning: {_format_settings(trials)} of learning rate and rank per row, compared on validation."
            if max(trials) > 1 else "Tuning: none, each row uses the default setting."
        )  # fmt: skip
        seeds = ", ".join(map(str, comparison["seeds"]))
        lines.append(
            f"{tuned} Seed{'s' * (len(comparison['seeds']) > 1)}: {seeds}; each run is evaluated once on test."
        )
    if baseline is not None:
        lines.append(f"Majority-class baseline ({baseline[0]}): accuracy {baseline[1]:.3f}.")
    seeds_of = [len(row.seeds) for row in rows if row.seeds]
    ways = ["With several seeds: Student's t over seeds, within the metric's bounds."] if max(seeds_of) > 1 else []
    ways += ["With one seed: bootstrap over test examples."] if min(seeds_of) == 1 else []
    lines.append(f"Parentheses contain the 95 % interval. {' '.join(ways)}")
    lines.append(
        "Differences: paired bootstrap over test rows and seeds. The p-values are adjusted for all pairs (Holm). The "
        "intervals are not adjusted."
    )
    count = {
        split: _format_range([report.data["rows"][split] for report in reports])
        for split in ("train", "validation", "test")
    }
    here = first.environment
    where = ", ".join(here["gpus"]) or f"{_format_count(here['cores'], 'core')} of {here['cpu']}"
    parallel = f", {comparison['jobs']} parallel runs" if comparison and comparison["jobs"] > 1 else ""
    kinds = "the process" + (", allocated on the GPU, reserved on the GPU" if len(first.memory) > 1 else "")
    lines.append(
        f"Data: {count['train']} training, {count['validation']} validation and {count['test']} test rows. Hardware: "
        f"{_format_count(here['processes'], 'process', 'processes')} per run{parallel}, on {where}. Peak memory: "
        f"{kinds}, measured until the end of training, evaluations included. Time to best: training time until the "
        "best evaluation on validation."
    )
    decisions = [line for report in reports for line in report.data.get("decisions", ())]
    return lines + [f"Data: {line}." for line in dict.fromkeys(decisions)]


def _format_range(counts: Sequence[int]) -> str:
    low, high = min(counts), max(counts)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _format_count(count: int, one: str, several: str = "") -> str:
    return f"{count} {one if count == 1 else several or one + 's'}"
