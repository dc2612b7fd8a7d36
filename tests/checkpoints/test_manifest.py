"""A run that was stopped and goes on is the run that was not stopped."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from peftkit import DataConfig, full, lora, qlora
from peftkit.checkpoints import files
from peftkit.checkpoints.manifest import (
    CheckpointManifest,
    check_identity,
    find_last_complete,
    list_checkpoints,
    read_manifest,
    set_batch_sizes,
)
from peftkit.errors import UserError
from peftkit.runs.report import read_report
from peftkit.training import evaluation
from peftkit.training.run import run

# Six steps an epoch; what is logged, accumulated and saved falls on different steps.
OPTIONS = {
    "max_steps": 10, "logging_steps": 3, "save_strategy": "steps", "save_steps": 4, "report_to": "none",
    "per_device_train_batch_size": 8, "gradient_accumulation_steps": 2,
}  # fmt: skip
TOLD = ("step", "epoch", "loss", "grad_norm", "learning_rate", "num_input_tokens_seen", "eval_loss", "train_loss")


class StoppedError(Exception):
    pass


def stop_at(step):
    def tell(row):
        if row["step"] >= step:
            raise StoppedError

    return tell


def told(report):
    return [{name: row[name] for name in TOLD if name in row} for row in report.history]


def weights(folder):
    names = ("model.safetensors", "adapter_model.safetensors")
    return load_file(next(folder / name for name in names if (folder / name).exists()))


def same_weights(folder, other):
    one, two = weights(folder), weights(other)
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def both(small_recipe, tmp_path, stop, **options):
    """The report of a run that was not stopped, and of one that was stopped at a logged step and went on."""
    options = OPTIONS | options
    whole = run(small_recipe(output_dir=str(tmp_path / "whole"), **options))
    recipe = small_recipe(output_dir=str(tmp_path / "parts"), **options)
    with pytest.raises(StoppedError):
        run(recipe, progress=stop_at(stop))
    assert read_report(tmp_path / "parts").status == "failed"
    return whole, run(recipe, resume=True)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        (full(), {"lr_scheduler_type": "reduce_lr_on_plateau"}),
        (lora(lora_dropout=0.1), {"train_sampling_strategy": "group_by_length", "optim": "adafactor"}),
        (qlora(), {"lr_scheduler_type": "cosine", "warmup_steps": 3}),
    ],
    ids=["full", "lora", "qlora"],
)
def test_a_run_goes_on_bit_for_bit(small_recipe, tmp_path, method, options):
    options = {"eval_strategy": "steps", "eval_steps": 4, "save_total_limit": 1, **options}
    whole, parts = both(small_recipe, tmp_path, 9, method=method, **options)
    assert told(parts) == told(whole)
    assert same_weights(tmp_path / "parts", tmp_path / "whole")
    assert parts.metrics == whole.metrics
    assert parts.tokens == whole.tokens
    assert parts.resumed == [{"from": "checkpoint-8", "step": 8, "processes": 1, "zero_stage": None}]
    assert (parts.audit["verdict"], parts.audit["resumed_at_step"]) == ("passed", 8)
    seconds = [row["seconds"] for row in parts.history]
    assert seconds == sorted(seconds)
    parts_of_total = (parts.times[name] for name in ("start_up", "data", "train", "evaluate"))
    assert sum(parts_of_total) == pytest.approx(parts.times["total"])
    assert [path.name for path in list_checkpoints(tmp_path / "parts")] == ["checkpoint-10"]


def test_an_optimizer_that_began_anew_would_be_seen(small_recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "read_optimizer", lambda *_: None)
    whole, parts = both(small_recipe, tmp_path, 5, method=full(), logging_steps=1)
    losses = [[row["loss"] for row in report.history if "loss" in row] for report in (whole, parts)]
    far = [abs(one / other - 1) for one, other in zip(*losses, strict=True)]
    # The step after the checkpoint still sees its weights.
    assert far[:5] == [0] * 5
    assert max(far) > 1e-4


def test_a_checkpoint_is_plain_and_can_be_used(small_recipe, tmp_path, monkeypatch):
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    monkeypatch.setenv("HOME", str(tmp_path.parent))
    run(small_recipe(**OPTIONS))
    folder = tmp_path / "run" / "checkpoint-4"
    assert {path.name for path in folder.iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors", "checkpoint.json", "optimizer.json",
        "optimizer.safetensors", "rng.safetensors", "scheduler.json", "trained.safetensors", "trainer_state.json",
    }  # fmt: skip
    for path in folder.iterdir():
        assert str(tmp_path.parent).encode() not in path.read_bytes(), path.name
    state, trained = load_file(folder / "optimizer.safetensors"), load_file(folder / "trained.safetensors")
    assert {name.rpartition("/")[0] for name in state} == trained.keys()
    for name, tensor in trained.items():
        assert state[f"{name}/exp_avg"].shape == state[f"{name}/exp_avg_sq"].shape == tensor.shape
        assert state[f"{name}/exp_avg"].dtype == torch.float32
        assert state[f"{name}/step"].item() == 4
    base = AutoModelForSequenceClassification.from_pretrained(small_recipe().model.name_or_path, num_labels=7)
    PeftModel.from_pretrained(base, str(folder))
    # The last one is the run's own result.
    last = tmp_path / "run" / "checkpoint-10"
    assert same_weights(last, tmp_path / "run")
    # One that was cut short is passed over.
    assert find_last_complete(tmp_path / "run") == last
    file = last / "optimizer.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    assert find_last_complete(tmp_path / "run").name == "checkpoint-8"
    with pytest.raises(UserError, match=r"optimizer\.safetensors: file is missing or truncated"):
        read_manifest(last)


def test_a_checkpoint_that_was_not_finished_does_not_count(small_recipe, tmp_path, monkeypatch):
    def fail(folder, *_):
        if folder.name.endswith("-8"):
            raise StoppedError
        write(folder, *_)

    write = files.write_schedule
    monkeypatch.setattr(files, "write_schedule", fail)
    recipe = small_recipe(**OPTIONS)
    with pytest.raises(StoppedError):
        run(recipe)
    assert [path.name for path in list_checkpoints(tmp_path / "run")] == ["checkpoint-4"]
    assert (tmp_path / "run" / ".checkpoint-8").is_dir()
    monkeypatch.setattr(files, "write_schedule", write)
    report = run(recipe, resume=True)
    assert report.resumed[0]["step"] == 4
    assert not (tmp_path / "run" / ".checkpoint-8").exists()


def test_a_run_that_failed_after_training_goes_on_with_its_evaluation(small_recipe, tmp_path, monkeypatch):
    whole = run(small_recipe(output_dir=str(tmp_path / "whole"), **OPTIONS))
    fitted = evaluation.Scoring.calibrate

    def fail(*_):
        raise MemoryError("evaluation")

    monkeypatch.setattr(evaluation.Scoring, "calibrate", fail)
    recipe = small_recipe(**OPTIONS)
    with pytest.raises(MemoryError):
        run(recipe)
    monkeypatch.setattr(evaluation.Scoring, "calibrate", fitted)
    report = run(recipe, resume=True)
    assert (report.status, report.resumed[0]["step"], report.audit["verdict"]) == ("complete", 10, "passed")
    assert report.metrics == whole.metrics
    assert told(report)[:-1] == told(whole)[:-1]
    assert report.history[-1]["train_loss"] == whole.history[-1]["train_loss"]
    assert same_weights(tmp_path / "run", tmp_path / "whole")


def test_the_best_model_is_found_again(small_recipe, tmp_path):
    options = {
        "eval_strategy": "steps", "eval_steps": 2, "save_steps": 2, "logging_steps": 1, "load_best_model_at_end": True,
        "save_total_limit": 2, "metric_for_best_model": "accuracy", "learning_rate": 3e-3,
    }  # fmt: skip
    whole, parts = both(small_recipe, tmp_path, 9, **options)
    best = json.loads((tmp_path / "whole" / "checkpoint-10" / "trainer_state.json").read_text())
    assert best["best_model_checkpoint"] is None
    assert told(parts) == told(whole)
    assert same_weights(tmp_path / "parts", tmp_path / "whole")
    assert same_weights(tmp_path / "parts", tmp_path / "parts" / f"checkpoint-{best['best_global_step']}")


def test_what_can_not_go_on_is_one_line(small_recipe, tmp_path):
    recipe = small_recipe(**OPTIONS)
    with pytest.raises(UserError, match=r"--resume: no complete checkpoint in .*; to write checkpoints pass"):
        run(recipe, resume=True)
    with pytest.raises(StoppedError):
        run(recipe, progress=stop_at(6))
    with pytest.raises(UserError, match=r"contains checkpoint-4 of an interrupted run; use --resume"):
        run(recipe)
    there = tmp_path / "run" / "checkpoint-4"
    for change, message in [
        (
            {"training": {**recipe.training, "learning_rate": 0.5}},
            r"training\.learning_rate differs from .* \(expected 0\.001, got 0\.5",
        ),
        ({"method": lora(r=4)}, r"method\.peft\.init_args\.r differs from checkpoint-4 \(expected null, got 4\)"),
        (
            {"task": replace(recipe.task, max_length=16)},
            r"task\.init_args\.max_length differs from checkpoint-4 \(expected 32, got 16",
        ),
        (
            {"data": DataConfig(max_train_samples=95, max_eval_samples=40)},
            r"data\.fingerprint differs from .* \(expected \"\w+\", got \"",
        ),
    ]:
        other = replace(recipe, **change)
        other = replace(other, training={**other.training, "output_dir": str(tmp_path / "other")})
        with pytest.raises(UserError, match=message):
            run(other, resume=there)
    with pytest.raises(UserError, match="is not a peftkit checkpoint"):
        run(recipe, resume=tmp_path)
    # What was tried has taken nothing away.
    assert run(recipe, resume=there).status == "complete"
    with pytest.raises(UserError, match="contains a finished run"):
        run(recipe, resume=True)


def about(**fields):
    plain = {"step": 4, "processes": 1, "zero_stage": None, "offload": [], "per_rank_batch": 16, "resumable": True}
    return CheckpointManifest(**{**plain, "seconds": 1.0, "recipe": {}, **fields})


@pytest.mark.parametrize(
    ("ranks", "batch", "accumulation"), [(1, 8, 2), (2, 8, 1), (4, 4, 1), (16, 1, 1), (8, 2, 1)]
)  # fmt: skip
def test_the_global_batch_is_kept(small_recipe, ranks, batch, accumulation):
    recipe = set_batch_sizes(small_recipe(**OPTIONS), about(), ranks)
    kept = recipe.training["per_device_train_batch_size"], recipe.training["gradient_accumulation_steps"]
    assert kept == (batch, accumulation)


def test_a_global_batch_that_can_not_be_kept_is_told(small_recipe):
    with pytest.raises(UserError, match="global batch size 16 is not divisible by 3 ranks"):
        set_batch_sizes(small_recipe(**OPTIONS), about(), 3)
    with pytest.raises(UserError, match="group_by_length needs the checkpoint's batches"):
        set_batch_sizes(small_recipe(**OPTIONS, train_sampling_strategy="group_by_length"), about(), 4)


def test_a_field_that_only_one_side_has_is_another_recipe():
    check_identity("checkpoint-4", {"method": {"peft": {"r": 8}}}, {"method": {"peft": {"r": 8}}})
    with pytest.raises(UserError, match=r"method\.peft\.r differs from checkpoint-4 \(expected 8, got null\)"):
        check_identity("checkpoint-4", {"method": {"peft": {"r": 8}}}, {"method": {}})


def test_a_trial_leaves_no_checkpoints(small_recipe, tmp_path):
    run(small_recipe(**OPTIONS), trial=True)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["report.json"]
