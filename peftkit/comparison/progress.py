"""Progress of a comparison: current runs, results and remaining time."""

import time
from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from peftkit.comparison.scheduler import RunProcess, RunSpec
from peftkit.runs.report import Report
from peftkit.system.logging import logger

# Without a terminal the active runs are logged at this interval.
LOG_INTERVAL_SECONDS = 60.0


class Progress:
    """Progress of a comparison: a bar on a terminal, and a log line per run."""

    def __init__(self, count: int, jobs: int) -> None:
        self.count = count
        self.done = 0
        self.seconds: list[float] = []
        self.jobs = jobs
        self.last_logged = time.perf_counter()
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
        """Show step, loss and speed of the active runs."""
        lines = []
        for process in active:
            row = process.read_progress()
            if row:
                loss = f", loss {row['loss']:.3f}" if "loss" in row else ""
                tokens, seconds = row.get("num_input_tokens_seen"), row.get("seconds")
                speed = f", {tokens / seconds:.0f} tokens/s" if tokens and seconds else ""
                lines.append(f"{process.run.title}: step {row['step']}/{row['max_steps']}{loss}{speed}")
            else:
                lines.append(f"{process.run.title}: starting")
        self.bar.set_postfix_str("; ".join(lines), refresh=True)
        if self.bar.disable and time.perf_counter() - self.last_logged > LOG_INTERVAL_SECONDS:
            self.last_logged = time.perf_counter()
            logger.info("[%d/%d] %s", self.done, self.count, "; ".join(lines))

    def log_result(self, process: RunProcess, report: Report) -> None:
        """Log the score or the error of an ended run, and the estimated remaining time."""
        run = process.run
        self.done += 1
        self.last_logged = time.perf_counter()
        self.seconds.append(self.last_logged - process.started)
        remaining = sum(self.seconds) / len(self.seconds) * (self.count - self.done) / self.jobs
        metric = run.recipe.task.metrics.main[0]
        split = "validation" if run.is_trial else "test"
        if report.status in ("trial", "complete"):
            score = report.metrics[split][metric]
            result = f"{split} {metric} {'none' if score is None else format(score, '.4f')}"
            result += f", {report.times['samples_per_second']:.1f} samples/s"
        else:
            result = f"{report.status.replace('_', ' ')}: {report.error}"
        time_left = f"; about {tqdm.format_interval(remaining)} left" if self.done < self.count else ""
        logger.info("[%d/%d] %s: %s%s", self.done, self.count, run.title, result, time_left)
        self.bar.update(1)
