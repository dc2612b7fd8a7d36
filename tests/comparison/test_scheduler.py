import os
import re
import signal
import subprocess
import sys

import pytest

from peftkit import Recipe
from peftkit.comparison.scheduler import DeviceSlot, RunProcess, RunSpec, allocate_slots, collect_report
from peftkit.errors import UserError
from peftkit.runs.report import Report


def make_run(folder, log=""):
    (folder / "run.log").write_text(log)
    return RunSpec(title="lora, seed 1", recipe=Recipe(name="x"), folder=folder)


def test_each_run_at_a_time_has_its_share_of_the_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert allocate_slots(1, 1) == [DeviceSlot()]
    halves = [frozenset(range(4)), frozenset(range(4, 8))]
    assert allocate_slots(2, 1) == [DeviceSlot(environment={"OMP_NUM_THREADS": "4"}, cores=half) for half in halves]
    assert allocate_slots(2, 2) == [DeviceSlot(environment={"OMP_NUM_THREADS": "2"}, cores=half) for half in halves]
    assert allocate_slots(1, 2)[0].environment == {"OMP_NUM_THREADS": "4"}
    with pytest.raises(UserError, match="expected 9 cores, got 8"):
        allocate_slots(9, 1)


def test_each_run_at_a_time_has_gpus_of_its_own(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert allocate_slots(2, 2) == [DeviceSlot(environment={"CUDA_VISIBLE_DEVICES": ids}) for ids in ("0,1", "2,3")]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    assert allocate_slots(1, 1) == [DeviceSlot(environment={"CUDA_VISIBLE_DEVICES": "4"})]
    with pytest.raises(UserError, match="expected 5 GPUs, got 4"):
        allocate_slots(5, 1)


@pytest.mark.parametrize(
    ("returncode", "log", "status", "message"),
    [
        (-signal.SIGKILL, "", "out_of_memory", "SIGKILL, probably by the system because memory ran out"),
        (-signal.SIGSEGV, "at work\n", "failed", "SIGSEGV; last line of the log: at work"),
        (1, "peftkit: started\nImportError: no module\n", "failed", "exit code 1.*ImportError: no module"),
        (1, "terminate called\n  what():  std::bad_alloc\n", "out_of_memory", "bad_alloc"),
        (1, "OSError: [Errno 12] Cannot allocate memory\n", "out_of_memory", "Cannot allocate"),
        (1, "peftkit: MemoryError: \n", "out_of_memory", "MemoryError"),
        (1, "RuntimeError: gloo\nexitcode: -9 (SIGKILL)\n=====\n", "out_of_memory", "rank killed by SIGKILL"),
        (1, "it broke\n=======\n", "failed", "last line of the log: it broke"),
    ],
)
def test_a_run_that_could_not_report_has_its_cause_told(tmp_path, returncode, log, status, message):
    report = collect_report(make_run(tmp_path, log), returncode)
    assert report.status == status
    assert re.search(message, report.error)
    assert (tmp_path / "report.json").exists()


def test_a_rank_that_the_system_killed_is_told_over_the_connection_that_the_others_lost(tmp_path):
    one = make_run(tmp_path, "exitcode  : -9 (SIGKILL)\n")
    Report(name="x", method="lora", status="failed", error="RuntimeError: gloo").write(tmp_path)
    assert collect_report(one, 1).status == "out_of_memory"
    Report(name="x", method="lora", status="diverged", error="nan").write(tmp_path)
    assert collect_report(one, 1).status == "diverged"


def test_the_log_that_stays_names_no_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    report = collect_report(make_run(tmp_path, f"saved in {tmp_path}/runs\nit broke at {tmp_path}/x\n"), 1)
    assert (tmp_path / "run.log").read_text() == "saved in ~/runs\nit broke at ~/x\n"
    assert report.error.endswith("it broke at ~/x")


def test_a_run_ends_with_the_process_that_started_it():
    # The child's only tie to its parent is standard input, as a kill -9 would leave it.
    words = (
        "import sys, time; from peftkit.comparison.worker import _exit_with_parent; _exit_with_parent(); "
        "print('ready', flush=True); time.sleep(600)"
    )
    child = subprocess.Popen([sys.executable, "-c", words], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout.readline() == b"ready\n"
    assert child.poll() is None
    child.stdin.close()
    assert child.wait(timeout=30) == 1
    child.stdout.close()


def test_progress_of_a_run_that_has_not_told_any_is_empty(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    run = RunProcess(make_run(tmp_path), child, DeviceSlot())
    assert run.read_progress() == {}
    (tmp_path / ".progress.json").write_text('{"step": 3, "loss": NaN}')
    assert run.read_progress()["step"] == 3
    run.stop()
    assert child.returncode is not None
