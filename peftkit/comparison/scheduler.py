"""Run subprocesses, one per run to isolate memory and crashes: start, poll and stop."""

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
from peftkit.recipe.schema import Recipe
from peftkit.recipe.serialization import recipe_to_dict, recipe_to_yaml
from peftkit.runs.manifest import RECIPE
from peftkit.runs.report import FILE_NAME, Report, read_report
from peftkit.system.environment import is_out_of_memory_message
from peftkit.system.files import redact_home_in_text, write_text

LOG_FILE = "run.log"
PROGRESS_FILE = ".progress.json"
POLL_SECONDS = 0.2
# Length of the end of the log that is searched for the cause of a failure.
LOG_TAIL_CHARACTERS = 4000
MEMORY_HINT = ", probably by the system because memory ran out"


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """Description of a run to start.

    Attributes:
        title: Name of the run in progress lines.
        recipe: Complete recipe; its `output_dir` is `folder`.
        folder: Run folder.
        is_trial: Whether the run is evaluated only on validation and its weights are not saved.
    """

    title: str
    recipe: Recipe
    folder: Path
    is_trial: bool = False


@dataclass(frozen=True, kw_only=True)
class DeviceSlot:
    """Devices for one run.

    Attributes:
        environment: Environment variables for the GPUs or the number of threads.
        cores: Cores of the run; empty for all cores.
    """

    environment: Mapping[str, str] = field(default_factory=dict)
    cores: frozenset[int] = frozenset()


@dataclass
class RunProcess:
    """A running run."""

    run: RunSpec
    process: subprocess.Popen[bytes]
    slot: DeviceSlot
    started: float = field(default_factory=time.perf_counter)

    def read_progress(self) -> dict[str, Any]:
        """Read the last logged step, max_steps and loss; empty before the first log."""
        try:
            return json.loads((self.run.folder / PROGRESS_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}

    def stop(self) -> None:
        """Kill the run and its ranks, before a rank reports another lost rank; no effect on an ended run."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.kill()
        self.process.wait()


def allocate_slots(jobs: int, processes: int) -> list[DeviceSlot]:
    """Allocate separate GPUs or cores to `jobs` simultaneous runs of `processes` ranks each.

    Raises UserError for too few devices: runs sharing a device give invalid memory and time measurements.
    """
    import torch

    gpus = torch.cuda.device_count()
    can_pin = hasattr(os, "sched_getaffinity")
    cores = sorted(os.sched_getaffinity(0)) if can_pin else list(range(os.cpu_count() or 1))
    devices, kind = (gpus, "GPU") if gpus else (len(cores), "core")
    if jobs * processes > devices:
        raise UserError(
            f"--jobs {jobs}, --processes {processes}: expected {jobs * processes} {kind}s, got {devices} (runs sharing "
            "a device give invalid memory and time measurements); use fewer jobs"
        )
    if gpus:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        ids = visible.split(",") if visible else [str(index) for index in range(gpus)]
        shares = [ids[job * processes : (job + 1) * processes] for job in range(jobs)]
        return [DeviceSlot(environment={"CUDA_VISIBLE_DEVICES": ",".join(share)}) for share in shares]
    if jobs * processes == 1:
        return [DeviceSlot()]
    share = len(cores) // jobs
    threads = {"OMP_NUM_THREADS": str(share // processes)}
    return [
        DeviceSlot(environment=threads, cores=frozenset(cores[job * share : (job + 1) * share] if can_pin else ()))
        for job in range(jobs)
    ]


def start_run(run: RunSpec, slot: DeviceSlot, processes: int) -> RunProcess:
    """Start a run in a new folder, with its output in `run.log` in that folder."""
    write_text(run.folder / RECIPE, recipe_to_yaml(run.recipe))
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command += ["-m", "peftkit.comparison.worker", str(run.folder / RECIPE), *(["--trial"] if run.is_trial else [])]
    environment = {**os.environ, **slot.environment, "TQDM_DISABLE": "1", "PYTHONUNBUFFERED": "1"}
    with (run.folder / LOG_FILE).open("wb") as log:
        # In a new session: Ctrl-C interrupts only the comparison, which then stops the runs.
        process = subprocess.Popen(  # noqa: S603
            command,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    if slot.cores:
        # The process may have ended.
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(process.pid, slot.cores)
    return RunProcess(run, process, slot)


def run_all(
    runs: Sequence[RunSpec],
    slots: Sequence[DeviceSlot],
    processes: int,
    *,
    on_end: Callable[[RunProcess, Report], None],
    on_poll: Callable[[Sequence[RunProcess]], None],
) -> None:
    """Run all runs in order, one per slot; `on_end` receives each ended run, `on_poll` the active runs."""
    waiting, free = list(runs), list(slots)
    active: list[RunProcess] = []
    try:
        while waiting or active:
            while waiting and free:
                active.append(start_run(waiting.pop(0), free.pop(), processes))
            time.sleep(POLL_SECONDS)
            for process in [process for process in active if process.process.poll() is not None]:
                active.remove(process)
                process.stop()
                free.append(process.slot)
                on_end(process, collect_report(process.run, process.process.returncode))
            on_poll(active)
    finally:
        for process in active:
            process.stop()


def collect_report(run: RunSpec, returncode: int) -> Report:
    """Read the report of an ended run; without a report, write one with the cause from exit code and log.

    A rank that the system killed cannot write a report; the other ranks report a lost connection.
    """
    folder = run.folder
    log = (folder / LOG_FILE).read_text(encoding="utf-8", errors="replace")
    write_text(folder / LOG_FILE, redact_home_in_text(log))
    tail = log[-LOG_TAIL_CHARACTERS:]
    is_killed = "(SIGKILL)" in tail
    report = read_report(folder) if (folder / FILE_NAME).exists() else None
    if report is not None and not (report.status == "failed" and is_killed):
        return report
    last = [line.strip() for line in re.split(r"[\r\n]", tail) if line.strip(" =-")][-1:]
    last_line = f"; last line of the log: {redact_home_in_text(last[0])[:300]}" if last else ""
    is_out_of_memory = is_killed or is_out_of_memory_message(tail)
    if is_killed:
        cause = f"rank killed by SIGKILL{MEMORY_HINT}"
    elif returncode < 0:
        cause = f"ended by {signal.Signals(-returncode).name}"
        is_out_of_memory |= returncode == -signal.SIGKILL
        cause += MEMORY_HINT if returncode == -signal.SIGKILL else last_line
    else:
        cause = f"ended with exit code {returncode} without a report{last_line}"
    report = replace(
        report or Report(name=run.recipe.name, method=run.recipe.method.name, status="failed"),
        status="out_of_memory" if is_out_of_memory else "failed", error=cause, recipe=recipe_to_dict(run.recipe),
        seed=run.recipe.training.get("seed"),
    )  # fmt: skip
    report.write(folder)
    return report
