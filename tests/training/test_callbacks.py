import sys

import pytest
import torch
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerState, TrainingArguments

from peftkit import full, lora
from peftkit.errors import DivergedError
from peftkit.runs.report import read_report
from peftkit.training.callbacks import LogLineCallback, LogLineProgressCallback, format_log_line
from peftkit.training.run import run
from peftkit.training.trainer import replace_log_output


@pytest.mark.parametrize(("learning_rate", "message"), [(1e30, "finite|nan"), (30.0, "loss increased from 1.9")])
def test_a_run_that_diverges_is_told_from_one_that_fails(small_recipe, tmp_path, learning_rate, message):
    recipe = small_recipe(method=full(), learning_rate=learning_rate, max_steps=8, logging_steps=1, report_to="none")
    with pytest.raises(DivergedError, match=message):
        run(recipe)
    report = read_report(tmp_path / "run")
    assert report.status == "diverged"
    assert not list((tmp_path / "run").rglob("*.safetensors"))


def test_a_fine_tuned_model_whose_loss_is_small_may_rise(small_recipe):
    # Ten times over where it began is no divergence while it is under ten.
    report = run(small_recipe(method=lora(), learning_rate=0.5, logging_steps=1, report_to="none"))
    assert report.status == "complete"


def test_progress_is_told_and_evaluation_does_not_count_as_training(small_recipe):
    told = []
    recipe = small_recipe(logging_steps=2, eval_strategy="steps", eval_steps=2, report_to="none")
    report = run(recipe, progress=lambda row: told.append(dict(row)))
    assert [row["step"] for row in told if "eval_loss" not in row][:2] == [1, 2]
    assert all(row["max_steps"] == 6 and "loss" in row for row in told)
    seconds = [row["seconds"] for row in report.history]
    assert seconds == sorted(seconds)
    times = report.times
    looks = sum(row.get("eval_runtime", 0.0) for row in report.history)
    assert looks > 0
    assert times["train"] + times["data"] < report.history[-1]["train_runtime"] - looks + times["data"] + 0.01
    assert sum(times[name] for name in ("start_up", "data", "train", "evaluate")) == pytest.approx(times["total"])
    assert report.tokens == report.history[-1]["num_input_tokens_seen"] > 0
    assert report.memory_per_rank == [report.memory]
    assert report.sizes["merged"] > report.sizes["trained"]


def test_a_trial_is_not_tested_and_keeps_no_weights(small_recipe, tmp_path):
    report = run(small_recipe(report_to="none"), trial=True)
    assert report.status == "trial"
    assert set(report.metrics) == {"validation"}
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["report.json"]
    # Its place is free for a run.
    assert run(small_recipe(report_to="none")).status == "complete"


def test_a_log_is_one_readable_line():
    state = TrainerState(global_step=10, max_steps=100, epoch=0.1234)
    logs = {
        "loss": 0.53216,
        "train_runtime": 3.0,
        "grad_norm": 1.2,
        "learning_rate": 9e-4,
        "epoch": 0.1234,
        "num_input_tokens_seen": 480,
    }
    assert format_log_line(logs, state) == "step 10/100 epoch 0.12 loss 0.5322 grad_norm 1.2 lr 9.0e-04"
    evaluation = {"eval_loss": 0.5, "eval_accuracy": 0.25, "eval_samples_per_second": 9.0, "epoch": 0.1234}
    assert format_log_line(evaluation, state) == "step 10/100 epoch 0.12 eval_loss 0.5 eval_accuracy 0.25"


@pytest.mark.parametrize(
    ("disable_tqdm", "is_terminal", "kind"),
    [(False, False, LogLineCallback), (False, True, LogLineProgressCallback), (True, True, LogLineCallback)],
)
def test_a_progress_bar_is_for_terminals(disable_tqdm, is_terminal, kind, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal, raising=False)
    arguments = TrainingArguments(str(tmp_path), report_to="none", use_cpu=True, disable_tqdm=disable_tqdm)
    trainer = Trainer(torch.nn.Linear(1, 1), arguments)
    replace_log_output(trainer)
    outputs = (PrinterCallback, ProgressCallback, LogLineCallback)
    assert [type(one) for one in trainer.callback_handler.callbacks if isinstance(one, outputs)] == [kind]
