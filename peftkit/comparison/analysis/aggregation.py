"""From the runs of a row to its scores, its cost and how it stands."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from peftkit.comparison.analysis.types import RowFindings, Score
from peftkit.comparison.results import RowResults, read_method
from peftkit.metrics.base import Metric
from peftkit.metrics.significance import compute_seed_interval
from peftkit.recipe.method import get_default_learning_rate
from peftkit.runs.report import Report

SHARES = ("start_up", "data", "train", "evaluate")


def _planned(complete: Sequence[Report]) -> dict[str, float]:
    """The largest peak that was planned, in bytes: of the process on a CPU, of what is allocated on a GPU."""
    found = [report.plan.get("process_peak", report.plan.get("peak")) for report in complete]
    known = [float(peak) for peak in found if peak is not None]
    return {"planned_peak": max(known)} if known else {}


def _score(reports: Sequence[Report], metric: Metric) -> Score:
    found = [report.metrics["test"].get(metric.name) for report in reports]
    per_seed = [float(value) for value in found if value is not None]
    if not per_seed:
        return Score(per_seed=[], mean=None, ci95=None)
    ci95 = compute_seed_interval(per_seed)
    if ci95 is None:
        over_rows = reports[0].metrics["test"].get(f"{metric.name}_ci95")
        ci95 = None if over_rows is None or None in over_rows else list(over_rows)
    elif all(math.isfinite(end) for end in ci95):
        # Of two or three seeds Student's interval is wide, and no score lies beyond what the metric can be.
        ci95 = [float(end) for end in np.clip(ci95, *metric.bounds)]
    return Score(per_seed=per_seed, mean=float(np.mean(per_seed)), ci95=ci95)


def _best_seen(report: Report, metric: Metric) -> tuple[float, float] | None:
    """Training seconds and score of the best look at validation on the way; None when it never looked."""
    looks = [
        (row["seconds"], row[f"eval_{metric.name}"])
        for row in report.history
        if row.get(f"eval_{metric.name}") is not None and "seconds" in row
    ]
    return max(looks, key=lambda look: metric.rank(look[1])) if looks else None


def row_findings(row: RowResults, metrics: tuple[Metric, ...]) -> RowFindings:
    """What the runs of a row say together."""
    tried = [_tried(report, metrics[0].name) for report in row.trials]
    complete = list(row.complete.values())
    status, cause = _status(row, metrics)
    if not complete:
        return RowFindings(
            name=row.name, values=row.values, status=status, cause=cause, broken=_broken(row, status), tried=tried
        )
    first = complete[0]
    memory = {kind: max(report.memory[kind] for report in complete) for kind in first.memory}
    per_rank = [
        {kind: max(report.memory_per_rank[rank][kind] for report in complete) for kind in first.memory}
        for rank in range(len(first.memory_per_rank))
    ]
    means: dict[str, Callable[[Report], float]] = {
        "train_seconds": _trained_for,
        "seconds_to_best": lambda report: (_best_seen(report, metrics[0]) or (_trained_for(report),))[0],
        "total_seconds": lambda report: report.times["total"],
        "samples_per_second": lambda report: report.times["samples_per_second"],
        "tokens_per_second": lambda report: report.times["tokens_per_second"],
        "tokens": lambda report: report.tokens,
    }
    setting = _tried(first, metrics[0].name)
    return RowFindings(
        name=row.name,
        values=row.values,
        status=status,
        cause=cause,
        broken=_broken(row, status),
        seeds=[report.seed for report in complete if report.seed is not None],
        scores={metric.name: _score(complete, metric) for metric in metrics},
        learning_rate=setting["learning_rate"],
        r=setting["r"],
        tried=tried,
        memory=memory,
        memory_per_rank=per_rank,
        cost={
            **{name: float(np.mean([mean(report) for report in complete])) for name, mean in means.items()},
            **_planned(complete),
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
    method = read_method(report)
    rank = None if hasattr(method.peft, "init_r") else getattr(method.peft, "r", None)
    return {
        "learning_rate": float(report.recipe["training"].get("learning_rate") or get_default_learning_rate(method)),
        "r": rank if isinstance(rank, int) and rank > 0 else None,
        "score": report.metrics.get("validation", {}).get(metric),
        "status": report.status,
        "cause": report.error,
    }


def _trained_for(report: Report) -> float:
    """Seconds of training without its looks at validation, on the clock of the history."""
    return report.history[-1]["seconds"] if report.history else report.times["train"]


def _broken(row: RowResults, status: str) -> bool:
    broken = ("failed", "not_reproduced")
    return status in broken or any(report.status in broken for report in row.runs.values())


def _status(row: RowResults, metrics: tuple[Metric, ...]) -> tuple[str, str | None]:
    """How the row stands, and why it does not stand better."""
    lost = [report for report in row.runs.values() if report.status != "complete"]
    if lost:
        which = f"{len(lost)} of {row.expected} runs: " if row.complete else ""
        return ("partly" if row.complete else lost[0].status), f"{which}{lost[0].error or 'was not tested'}"
    scoreless = [report for report in row.runs.values() if report.metrics["test"].get(metrics[0].name) is None]
    if scoreless:
        return "partly", f"{len(scoreless)} of {row.expected} runs: no {metrics[0].title} can be told"
    failed = [report for report in row.trials if report.status != "trial"]
    if failed and len(failed) == row.expected_trials:
        return failed[0].status, failed[0].error
    done = len(row.trials) + len(row.runs)
    if len(row.runs) < row.expected:
        return "unfinished", f"{done} of {row.expected + row.expected_trials} runs made; the same command continues"
    return "complete", None
