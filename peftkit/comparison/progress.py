"""Progress of a comparison: current runs, results and remaining time."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from peftkit.comparison.scheduler import RunProcess, RunSpec
from peftkit.runs.report import Report
from peftkit.system.logging import logger

# Without a terminal the active runs are logged at this interval.
LOG_INTERVAL_SECONDS = 60.0
# Assumed share of training in the duration of a run, until the first run ends. The rest is start-up and evaluation.
TRAINING_SHARE = 0.65


class Progress:
    """Progress of a comparison: a bar on a terminal, log lines elsewhere, and a line per finished run."""

    def __init__(self, count: int, jobs: int) -> None:
        self.count = count
        self.done = 0
        self.seconds: list[float] = []
        self.shares: list[float] = []
        self.jobs = jobs
        self.last_logged = time.perf_counter()
        self.values: dict[Path, Mapping[str, Any]] = {}
        self.shown: dict[Path, Any] = {}
        self.bar: Any = tqdm(total=count, unit="run", disable=None, dynamic_ncols=True)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()

    def skip_finished(self, run: RunSpec) -> None:
        """Count and log a run that has a report already."""
        self.skip()
        logger.info("[%d/%d] %s: skipped, already finished", self.done, self.count, run.title)

    def skip(self) -> None:
        """Count a run that will not be started."""
        self.done += 1
        self.bar.update(1)

    def show_active(self, active: Sequence[RunProcess]) -> None:
        """Show step, loss, score and speed of the active runs, and the remaining time.

        Without a terminal they are logged when a run starts, trains or is evaluated, and at an interval.
        """
        # A run removes its progress file when it ends. Its last values are shown until then.
        values = {
            process.run.folder: process.read_progress() or self.values.get(process.run.folder, {}) for process in active
        }
        self.values = values
        # State of each run: whether training has started, and the time of the last evaluation.
        shown = {folder: (bool(row), row.get("eval_runtime")) for folder, row in values.items()}
        has_news = any(self.shown.get(folder) != state for folder, state in shown.items())
        self.shown = shown
        if not active:
            return
        lines = [format_active(process.run, values[process.run.folder]) for process in active]
        left = self.estimate_seconds_left(
            [
                (values[process.run.folder], time.perf_counter() - process.started)
                for process in active
            ]
        )  # fmt: skip
        text = "; ".join(lines) + format_time_left(left)
        self.bar.set_postfix_str(text, refresh=True)
        if self.bar.disable and (has_news or time.perf_counter() - self.last_logged > LOG_INTERVAL_SECONDS):
            self.last_logged = time.perf_counter()
            logger.info("[%d/%d] %s", self.done, self.count, text)

    def estimate_seconds_left(self, active: Sequence[tuple[Mapping[str, Any], float]]) -> float | None:
        """Estimate the seconds until the last run ends; None before the first run has made a few steps.

        `active` contains the last values and the age in seconds of each active run. The duration of a run is
        extrapolated from its steps; a run without steps has the mean duration of the others.
        """
        share = sum(self.shares) / len(self.shares) if self.shares else TRAINING_SHARE
        totals = [
            # The first step is slower than the others.
            row["seconds"] * row["max_steps"] / row["step"] / share if row.get("step", 0) > 1 else None
            for row, _ in active
        ]
        known = self.seconds or [total for total in totals if total is not None]
        if not known:
            return None
        mean = sum(known) / len(known)
        left = [max(0.0, (total or mean) - age) for total, (_, age) in zip(totals, active, strict=True)]
        waiting = self.count - self.done - len(active)
        return (sum(left) + waiting * mean) / self.jobs

    def log_result(self, process: RunProcess, report: Report) -> None:
        """Log the score or the error of an ended run, and the estimated remaining time."""
        run = process.run
        self.done += 1
        self.last_logged = time.perf_counter()
        self.seconds.append(self.last_logged - process.started)
        if train := report.times.get("train"):
            self.shares.append(min(1.0, train / self.seconds[-1]))
        metric = run.recipe.task.metrics.main[0]
        split = "validation" if run.is_trial else "test"
        if report.status in ("trial", "complete"):
            score = report.metrics[split][metric]
            result = f"{split} {metric} {'undefined' if score is None else format(score, '.4f')}"
            result += f", {report.times['samples_per_second']:.1f} samples/s"
        else:
            result = f"{report.status.replace('_', ' ')}: {report.error}"
        time_left = format_time_left(self.estimate_seconds_left([])) if self.done < self.count else ""
        logger.info("[%d/%d] %s: %s%s", self.done, self.count, run.title, result, time_left)
        self.bar.update(1)


def format_active(run: RunSpec, row: Mapping[str, Any]) -> str:
    """Format the last values that an active run has logged."""
    if not row:
        return f"{run.title}: starting"
    parts = [f"step {row['step']}/{row['max_steps']}"]
    if "loss" in row:
        parts.append(f"loss {row['loss']:.3f}")
    metric = run.recipe.task.metrics.main[0]
    if row.get(f"eval_{metric}") is not None:
        parts.append(f"validation {metric} {row[f'eval_{metric}']:.4f}")
    tokens, seconds = row.get("num_input_tokens_seen"), row.get("seconds")
    if tokens and seconds:
        parts.append(f"{tokens / seconds:.0f} tokens/s")
    return f"{run.title}: {', '.join(parts)}"


def format_time_left(seconds: float | None) -> str:
    """Format the end of a line about the remaining time; empty where it is not known."""
    if seconds is None:
        return ""
    return "; less than a minute left" if seconds < 60 else f"; about {tqdm.format_interval(seconds)} left"
