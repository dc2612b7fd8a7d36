"""Runs in processes of their own, so that one's memory or crash is not another's: started, watched, and ended."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from peftkit.errors import UserError
from peftkit.recipe.parser import recipe_to_dict, recipe_to_yaml
from peftkit.recipe.schema import Recipe
from peftkit.runs.manifest import RECIPE
from peftkit.runs.report import FILE_NAME, Report, read_report
from peftkit.system.environment import is_out_of_memory_message
from peftkit.system.files import redact_home_in_text, write_text

LOG = "run.log"
PROGRESS = ".progress.json"
POLL_SECONDS = 0.2
# The last words of a process that could not report.
TAIL_CHARACTERS = 4000
AS_MEMORY = ", as the system does when memory runs out"


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """A run to be made.

    Attributes:
        title: What progress calls it.
        recipe: The whole of it; its `output_dir` is set to `folder`.
        folder: Where it goes.
        trial: Scored on validation only; its weights are not kept.
    """

    title: str
    recipe: Recipe
    folder: Path
    trial: bool = False


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a run is made.

    Attributes:
        environment: Variables that give it its GPUs, or its number of threads.
        cores: Those it may use; all where the system can't say.
    """

    environment: Mapping[str, str] = field(default_factory=dict)
    cores: frozenset[int] = frozenset()


@dataclass
class RunProcess:
    """A run under way."""

    planned: PlannedRun
    process: subprocess.Popen[bytes]
    place: Place
    started: float = field(default_factory=time.perf_counter)

    def progress(self) -> dict[str, Any]:
        """What it last told of itself: step, max_steps, loss; empty before its first log."""
        try:
            return json.loads((self.planned.folder / PROGRESS).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}

    def end(self) -> None:
        """Kill it and the ranks below it, before they report a death that was not theirs; nothing if it has ended."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.kill()
        self.process.wait()


def places(jobs: int, processes: int) -> list[Place]:
    """The places of `jobs` runs at a time, of `processes` ranks each: GPUs of its own, or cores.

    Raises UserError when there are too few: runs that share a device tell nothing of memory and time.
    """
    import torch

    gpus = torch.cuda.device_count()
    pinned = hasattr(os, "sched_getaffinity")
    cores = sorted(os.sched_getaffinity(0)) if pinned else list(range(os.cpu_count() or 1))
    devices, kind = (gpus, "GPU") if gpus else (len(cores), "core")
    if jobs * processes > devices:
        raise UserError(
            f"--jobs {jobs}, --processes {processes}: {jobs * processes} processes at a time, and {devices} {kind}(s) "
            "here; runs that share one tell nothing of memory and time"
        )
    if gpus:
        seen = os.environ.get("CUDA_VISIBLE_DEVICES")
        ids = seen.split(",") if seen else [str(index) for index in range(gpus)]
        shares = [ids[job * processes : (job + 1) * processes] for job in range(jobs)]
        return [Place(environment={"CUDA_VISIBLE_DEVICES": ",".join(share)}) for share in shares]
    if jobs * processes == 1:
        return [Place()]
    each = len(cores) // jobs
    threads = {"OMP_NUM_THREADS": str(each // processes)}
    return [
        Place(environment=threads, cores=frozenset(cores[job * each : (job + 1) * each] if pinned else ()))
        for job in range(jobs)
    ]


def start(planned: PlannedRun, place: Place, processes: int) -> RunProcess:
    """Start a run in its new folder; what it prints goes to `run.log` there."""
    write_text(planned.folder / RECIPE, recipe_to_yaml(planned.recipe))
    words = [sys.executable]
    if processes > 1:
        words += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    words += ["-m", "peftkit.comparison.worker", str(planned.folder / RECIPE), *(["--trial"] if planned.trial else [])]
    environment = {**os.environ, **place.environment, "TQDM_DISABLE": "1", "PYTHONUNBUFFERED": "1"}
    with (planned.folder / LOG).open("wb") as log:
        # In a session of its own: Ctrl-C is for the comparison, which then ends its runs.
        process = subprocess.Popen(  # noqa: S603
            words, env=environment, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    if place.cores:
        # It may have ended by now, if it could not even start.
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(process.pid, place.cores)
    return RunProcess(planned, process, place)


def run_all(
    planned: Sequence[PlannedRun],
    free: Sequence[Place],
    processes: int,
    *,
    ended: Callable[[RunProcess, Report], None],
    watch: Callable[[Sequence[RunProcess]], None],
) -> None:
    """Make the runs in order, as many at a time as there are free places; `ended` is told of each as it ends."""
    waiting, places_left = list(planned), list(free)
    active: list[RunProcess] = []
    try:
        while waiting or active:
            while waiting and places_left:
                active.append(start(waiting.pop(0), places_left.pop(), processes))
            time.sleep(POLL_SECONDS)
            for one in [one for one in active if one.process.poll() is not None]:
                active.remove(one)
                one.end()
                places_left.append(one.place)
                ended(one, report_of(one.planned, one.process.returncode))
            watch(active)
    finally:
        for one in active:
            one.end()


def report_of(planned: PlannedRun, returncode: int) -> Report:
    """The report of a run that has ended; one that could not write it has its cause told from how it ended.

    Of several ranks, one that the system killed can't tell; the others report a lost connection.
    """
    folder = planned.folder
    log = (folder / LOG).read_text(encoding="utf-8", errors="replace")
    write_text(folder / LOG, redact_home_in_text(log))
    tail = log[-TAIL_CHARACTERS:]
    killed = "(SIGKILL)" in tail
    report = read_report(folder) if (folder / FILE_NAME).exists() else None
    if report is not None and not (report.status == "failed" and killed):
        return report
    last = [line.strip() for line in re.split(r"[\r\n]", tail) if line.strip(" =-")][-1:]
    words = f"; its last words: {redact_home_in_text(last[0])[:300]}" if last else ""
    memory = killed or is_out_of_memory_message(tail)
    if killed:
        cause = f"a rank was ended by SIGKILL{AS_MEMORY}"
    elif returncode < 0:
        cause = f"ended by {signal.Signals(-returncode).name}"
        memory |= returncode == -signal.SIGKILL
        cause += AS_MEMORY if returncode == -signal.SIGKILL else words
    else:
        cause = f"ended with exit code {returncode} before it could report{words}"
    report = replace(
        report or Report(name=planned.recipe.name, method=planned.recipe.method.name, status="failed"),
        status="out_of_memory" if memory else "failed", error=cause, recipe=recipe_to_dict(planned.recipe),
        seed=planned.recipe.training.get("seed"),
    )  # fmt: skip
    report.write(folder)
    return report
