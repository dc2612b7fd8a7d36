import json
import logging

import pytest

from peftkit import Recipe
from peftkit.comparison.progress import Progress
from peftkit.comparison.scheduler import DeviceSlot, RunProcess, RunSpec
from peftkit.runs.report import Report
from peftkit.system.logging import logger


@pytest.fixture
def lines(monkeypatch):
    """The lines that peftkit logs; standard error is no terminal here."""
    found = []
    handler = logging.Handler()
    handler.emit = lambda record: found.append(record.getMessage())
    monkeypatch.setattr(logger, "handlers", [handler])
    return found


@pytest.fixture
def start(tmp_path):
    def make(name):
        folder = tmp_path / name
        folder.mkdir()
        return RunProcess(RunSpec(title=f"{name}, seed 1", recipe=Recipe(name=name), folder=folder), None, DeviceSlot())

    return make


def write_progress(process, **values):
    (process.run.folder / ".progress.json").write_text(json.dumps(values))


def test_a_run_is_logged_when_it_starts_trains_and_is_evaluated(start, lines):
    full = start("full")
    training = {"max_steps": 40, "loss": 1.5, "num_input_tokens_seen": 800, "seconds": 4.0}
    with Progress(2, 1) as progress:
        progress.show_active([full])
        write_progress(full, step=1, **training)
        progress.show_active([full])
        write_progress(full, step=10, **training)
        progress.show_active([full])
        write_progress(full, step=10, **training, eval_accuracy=0.25, eval_runtime=1.0)
        progress.show_active([full])
        (full.run.folder / ".progress.json").unlink()
        progress.show_active([full])
    assert lines[0] == "[0/2] full, seed 1: starting"
    assert lines[1] == "[0/2] full, seed 1: step 1/40, loss 1.500, 200 tokens/s"
    assert lines[2].startswith(
        "[0/2] full, seed 1: step 10/40, loss 1.500, validation accuracy 0.2500, 200 tokens/s; less"
    )
    assert len(lines) == 3


def test_the_remaining_time_follows_from_steps_and_finished_runs(start, lines):
    steps = {"step": 10, "max_steps": 40, "seconds": 13.0}
    with Progress(3, 1) as progress:
        assert progress.estimate_seconds_left([({}, 1.0)]) is None
        # 52 seconds of training are 80 seconds of a run; two more runs wait.
        assert progress.estimate_seconds_left([(steps, 20.0)]) == pytest.approx(60 + 2 * 80)
        full = start("full")
        full.started -= 100
        report = Report(name="full", method="full", status="complete", metrics={"test": {"accuracy": 0.5}})
        report.times.update({"train": 50.0, "samples_per_second": 9.0})
        progress.log_result(full, report)
        assert lines == ["[1/3] full, seed 1: test accuracy 0.5000, 9.0 samples/s; about 03:20 left"]
        assert progress.estimate_seconds_left([({}, 10.0)]) == pytest.approx(90 + 100, rel=0.01)
        # Training was half of the finished run.
        assert progress.estimate_seconds_left([(steps, 20.0)]) == pytest.approx(84 + 100, rel=0.01)
    with Progress(4, 2) as progress:
        assert progress.estimate_seconds_left([(steps, 20.0)] * 2) == pytest.approx((2 * 60 + 2 * 80) / 2)
