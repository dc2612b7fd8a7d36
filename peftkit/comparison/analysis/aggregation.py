"""Aggregation of a row's runs: scores, cost and status."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from peftkit.comparison.analysis.types import RowFindings, Score
from peftkit.comparison.results import RowResults, read_method
from peftkit.metrics.base import Metric
from peftkit.metrics.significance import compute_seed_interval
from peftkit.planning.run_estimate import find_peak
from peftkit.recipe.method import get_default_learning_rate
from peftkit.runs.report import Report

SHARES = ("start_up", "data", "train", "evaluate")


def _find_planned_peak(row: RowResults) -> dict[str, float]:
    """Find the largest estimated peak in bytes: of the process on a CPU, of allocated memory on a GPU."""
    # Reports of version 0.1.0 contain the estimate.
    estimates = [row.estimate, *(report.plan for report in row.complete.values())]
    peaks = [float(peak) for peak in map(find_peak, estimates) if peak is not None]
    return {"planned_peak": max(peaks)} if peaks else {}


def _aggregate_score(reports: Sequence[Report], metric: Metric) -> Score:
    found = [report.metrics["test"].get(metric.name) for report in reports]
    per_seed = [float(value) for value in found if value is not None]
    if not per_seed:
        return Score(per_seed=[], mean=None, ci95=None)
    ci95 = compute_seed_interval(per_seed)
    if ci95 is None:
        over_rows = reports[0].metrics["test"].get(f"{metric.name}_ci95")
        ci95 = None if over_rows is None or None in over_rows else list(over_rows)
    elif all(math.isfinite(end) for end in ci95):
        # With two or three seeds the interval of Student's t is wide and may exceed the bounds of the metric.
        ci95 = [float(end) for end in np.clip(ci95, *metric.bounds)]
    return Score(per_seed=per_seed, mean=float(np.mean(per_seed)), ci95=ci95)


def _find_best_evaluation(report: Report, metric: Metric) -> tuple[float, float] | None:
    """Find training seconds and score of the best evaluation during training; None without evaluations."""
    evaluations = [
        (row["seconds"], row[f"eval_{metric.name}"])
        for row in report.history
        if row.get(f"eval_{metric.name}") is not None and "seconds" in row
    ]
    return max(evaluations, key=lambda evaluation: metric.rank(evaluation[1])) if evaluations else None


def aggregate_row(row: RowResults, metrics: tuple[Metric, ...]) -> RowFindings:
    """Aggregate the runs of a row over seeds."""
    trials = [_summarize_trial(report, metrics[0].name) for report in row.trials]
    complete = list(row.complete.values())
    status, cause = _find_status(row, metrics)
    if not complete:
        return RowFindings(
            name=row.name, values=row.values, status=status, cause=cause, broken=_is_broken(row, status), tried=trials
        )
    first = complete[0]
    memory = {kind: max(report.memory[kind] for report in complete) for kind in first.memory}
    per_rank = [
        {kind: max(report.memory_per_rank[rank][kind] for report in complete) for kind in first.memory}
        for rank in range(len(first.memory_per_rank))
    ]
    means: dict[str, Callable[[Report], float]] = {
        "train_seconds": _get_train_seconds,
        "seconds_to_best": partial(_get_seconds_to_best, metrics[0]),
        "total_seconds": lambda report: report.times["total"],
        "samples_per_second": lambda report: report.times["samples_per_second"],
        "tokens_per_second": lambda report: report.times["tokens_per_second"],
        "tokens": lambda report: report.tokens,
    }
    setting = _summarize_trial(first, metrics[0].name)
    return RowFindings(
        name=row.name,
        values=row.values,
        status=status,
        cause=cause,
        broken=_is_broken(row, status),
        seeds=[report.seed for report in complete if report.seed is not None],
        scores={metric.name: _aggregate_score(complete, metric) for metric in metrics},
        learning_rate=setting["learning_rate"],
        r=setting["r"],
        tried=trials,
        memory=memory,
        memory_per_rank=per_rank,
        cost={
            **{name: float(np.mean([mean(report) for report in complete])) for name, mean in means.items()},
            **_find_planned_peak(row),
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


def _summarize_trial(report: Report, metric: str) -> dict[str, Any]:
    # A report contains only fields that differ from the defaults.
    method = read_method(report)
    rank = None if hasattr(method.peft, "init_r") else getattr(method.peft, "r", None)
    return {
        "learning_rate": float(report.recipe["training"].get("learning_rate") or get_default_learning_rate(method)),
        "r": rank if isinstance(rank, int) and rank > 0 else None,
        "score": report.metrics.get("validation", {}).get(metric),
        "status": report.status,
        "cause": report.error,
    }


def _get_train_seconds(report: Report) -> float:
    """Return the seconds of training without evaluation, from the history."""
    return report.history[-1]["seconds"] if report.history else report.times["train"]


def _get_seconds_to_best(metric: Metric, report: Report) -> float:
    """Return the training seconds until the best evaluation; without evaluations, of the whole training."""
    best = _find_best_evaluation(report, metric)
    return _get_train_seconds(report) if best is None else best[0]


def _is_broken(row: RowResults, status: str) -> bool:
    failures = ("failed", "not_reproduced")
    return status in failures or any(report.status in failures for report in row.runs.values())


def _find_status(row: RowResults, metrics: tuple[Metric, ...]) -> tuple[str, str | None]:
    """Find the status of a row, and the cause if the row is not complete."""
    failed_runs = [report for report in row.runs.values() if report.status != "complete"]
    if failed_runs:
        which = f"{len(failed_runs)} of {row.expected} runs: " if row.complete else ""
        return ("partly" if row.complete else failed_runs[0].status), f"{which}{failed_runs[0].error or 'not tested'}"
    scoreless = [report for report in row.runs.values() if report.metrics["test"].get(metrics[0].name) is None]
    if scoreless:
        return "partly", f"{len(scoreless)} of {row.expected} runs: {metrics[0].title} is undefined"
    failed_trials = [report for report in row.trials if report.status != "trial"]
    if failed_trials and len(failed_trials) == row.expected_trials:
        return failed_trials[0].status, failed_trials[0].error
    done = len(row.trials) + len(row.runs)
    if len(row.runs) < row.expected:
        return "unfinished", f"{done} of {row.expected + row.expected_trials} runs done; repeat the command to continue"
    return "complete", None
