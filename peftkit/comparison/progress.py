"""Which run of how many, how far it is, and what remains."""

import time
from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from peftkit.comparison.scheduler import PlannedRun, RunProcess
from peftkit.runs.report import Report
from peftkit.system.logging import logger

# Where there is no terminal, so often a line is said of what is under way.
QUIET_SECONDS = 60.0


class Progress:
    """Which run of how many, how far it is, and what remains; a bar on a terminal, a line a run anywhere."""

    def __init__(self, count: int, jobs: int) -> None:
        self.count = count
        self.done = 0
        self.seconds: list[float] = []
        self.jobs = jobs
        self.told = time.perf_counter()
        self.bar: Any = tqdm(total=count, unit="run", disable=None, dynamic_ncols=True)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()

    def made_before(self, planned: PlannedRun) -> None:
        """Say that a run needs not be made again."""
        self.skip()
        logger.info("[%d/%d] %s: made before", self.done, self.count, planned.title)

    def skip(self) -> None:
        """Count a run that will not be made."""
        self.done += 1
        self.bar.update(1)

    def watch(self, active: Sequence[RunProcess]) -> None:
        """Show how far the active runs are."""
        words = []
        for one in active:
            row = one.progress()
            if row:
                loss = f", loss {row['loss']:.3f}" if "loss" in row else ""
                tokens, seconds = row.get("num_input_tokens_seen"), row.get("seconds")
                speed = f", {tokens / seconds:.0f} tokens/s" if tokens and seconds else ""
                words.append(f"{one.planned.title}: step {row['step']}/{row['max_steps']}{loss}{speed}")
            else:
                words.append(f"{one.planned.title}: starting")
        self.bar.set_postfix_str("; ".join(words), refresh=True)
        if self.bar.disable and time.perf_counter() - self.told > QUIET_SECONDS:
            self.told = time.perf_counter()
            logger.info("[%d/%d] %s", self.done, self.count, "; ".join(words))

    def ended(self, one: RunProcess, report: Report) -> None:
        """Say how a run ended and what remains."""
        planned = one.planned
        self.done += 1
        self.told = time.perf_counter()
        self.seconds.append(self.told - one.started)
        left = sum(self.seconds) / len(self.seconds) * (self.count - self.done) / self.jobs
        metric = planned.recipe.task.main_metrics[0]
        split = "validation" if planned.trial else "test"
        if report.status in ("trial", "complete"):
            score = report.metrics[split][metric]
            words = f"{split} {metric} {'none' if score is None else format(score, '.4f')}"
            words += f", {report.times['samples_per_second']:.1f} samples/s"
        else:
            words = f"{report.status.replace('_', ' ')}: {report.error}"
        remains = f"; about {tqdm.format_interval(left)} remain" if self.done < self.count else ""
        logger.info("[%d/%d] %s: %s%s", self.done, self.count, planned.title, words, remains)
        self.bar.update(1)
