import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import IA3Config, LoHaConfig, LoraConfig, PrefixTuningConfig

from peftkit import DataConfig, Method, Quantization, full, lora, qlora
from peftkit.errors import AuditError, LostRankError, Terminated, UserError, install_sigterm_handler, run_with_exit_code
from peftkit.models.loading import load_base
from peftkit.runs.report import Report, is_finished, read_report
from peftkit.runs.writer import check_saved_head
from peftkit.training import audit as audit_module
from peftkit.training import evaluation, preparation
from peftkit.training.failure import has_report_of_cause
from peftkit.training.run import run

METHODS = [
    full(),
    lora(),
    qlora(),
    # What a GPU computes in: bitsandbytes then rounds the biases of frozen layers.
    Method(name="qlora in bfloat16", peft=lora().peft, quantization=Quantization(bnb_4bit_compute_dtype="bfloat16")),
    Method(name="dora", peft=LoraConfig(use_dora=True, target_modules="all-linear")),
    Method(name="rslora", peft=LoraConfig(use_rslora=True, target_modules="all-linear")),
    Method(name="ia3", peft=IA3Config()),
    Method(name="prefix_tuning", peft=PrefixTuningConfig(num_virtual_tokens=4)),
    Method(name="loha", peft=LoHaConfig(target_modules=["query", "value"])),
]


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_every_method_trains_is_audited_and_reports(trained_run, method):
    report = read_report(trained_run("bert", method))
    assert report.status == "complete"
    assert report.audit["verdict"] == "passed"
    assert report.head == ["bert.pooler", "classifier"]
    assert (report.parameters["trainable"] == report.parameters["total"]) == (method.peft is None)
    low, high = report.metrics["test"]["accuracy_ci95"]
    assert low <= report.metrics["test"]["accuracy"] <= high
    assert report.times["tokens_per_second"] > report.times["samples_per_second"] > 0


def test_the_run_folder_is_whole_by_itself(small_recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path.parent))
    report = run(small_recipe())
    folder = tmp_path / "run"
    assert read_report(folder).round_trip == report.round_trip
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "adapter_config.json", "adapter_model.safetensors", "config.json", "contract.json", "held_out.safetensors",
        "predictions.jsonl",
        "recipe.yaml", "report.json", "tensorboard", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    (events,) = (folder / "tensorboard").iterdir()
    assert b"train/loss" in events.read_bytes()
    for path in (path for path in folder.rglob("*") if path.is_file()):
        assert str(tmp_path.parent).encode() not in path.read_bytes(), path.name
    config = json.loads((folder / "config.json").read_text())
    assert len(config["id2label"]) == 7
    assert read_report(folder).recipe["method"]["peft"]["class_path"] == "peft.LoraConfig"


def test_the_same_seed_gives_the_same_numbers(small_recipe, tmp_path):
    first, second = (run(small_recipe(output_dir=str(tmp_path / name))) for name in ("a", "b"))
    assert first.metrics == second.metrics
    assert first.data["fingerprint"] == second.data["fingerprint"]
    other = run(small_recipe(output_dir=str(tmp_path / "c"), seed=4))
    assert other.metrics["test"]["loss"] != first.metrics["test"]["loss"]


def test_a_finished_run_is_not_overwritten(small_recipe):
    run(small_recipe(max_steps=2))
    with pytest.raises(UserError, match="contains a finished run"):
        run(small_recipe(max_steps=2))


def test_runs_without_a_named_folder_are_numbered(small_recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = small_recipe(max_steps=2)
    recipe = replace(recipe, training={k: v for k, v in recipe.training.items() if k != "output_dir"})
    for _ in range(2):
        run(recipe)
    assert sorted(path.name for path in Path("runs").iterdir()) == ["small", "small-2"]


def test_gradient_checkpointing_reaches_the_adapter(small_recipe):
    assert run(small_recipe(gradient_checkpointing=True)).audit["verdict"] == "passed"


def test_adapters_that_no_gradient_reaches_fail_the_run_though_the_loss_falls(small_recipe, tmp_path, monkeypatch):
    def cut(*arguments):
        base = load_base(*arguments)
        base.model.bert.encoder.layer[0].register_forward_hook(lambda module, inputs, output: output.detach())
        return base

    monkeypatch.setattr(preparation, "load_base", cut)
    with pytest.raises(AuditError, match=r"step 10: trainable but without a finite non-zero gradient: .*layer\.0\."):
        run(small_recipe(max_steps=12))
    report = read_report(tmp_path / "run")
    assert report.status == "failed"
    assert "layer.0." in report.error
    assert "layer.1." not in report.error
    assert not (tmp_path / "run" / "adapter_model.safetensors").exists()


def test_a_frozen_weight_that_changes_fails_the_run(small_recipe, monkeypatch):
    start = audit_module.TrainingAudit.step

    def spoil(self, global_step):
        frozen = next(p for n, p in self.parameters.items() if "word_embeddings" in n)
        frozen.data[5, 5] += 1
        start(self, global_step)

    monkeypatch.setattr(audit_module.TrainingAudit, "step", spoil)
    with pytest.raises(AuditError, match=r"frozen but changed: .*word_embeddings"):
        run(small_recipe(max_steps=4))


def test_a_head_that_is_not_saved_is_caught(small_recipe, tmp_path):
    run(small_recipe(max_steps=3))
    check_saved_head(tmp_path / "run", {"classifier.weight", "bert.pooler.dense.bias"})
    with pytest.raises(AuditError, match=r"new parameters are not saved: another\.weight"):
        check_saved_head(tmp_path / "run", {"classifier.weight", "another.weight"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": DataConfig(path="./nowhere.csv")}, "no such file"),
        ({"method": lora(target_modules=["query", "valu"])}, "no module 'valu'; use 'value'"),
    ],
)
def test_a_run_that_fails_says_so_in_its_report(small_recipe, tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        run(replace(small_recipe(), **change))
    report = read_report(tmp_path / "run")
    assert report.status == "failed"
    assert message in report.error


def test_weights_outlive_an_evaluation_that_fails(small_recipe, tmp_path, monkeypatch):
    def fail(*_):
        raise MemoryError("evaluation")

    monkeypatch.setattr(evaluation.Scoring, "calibrate", fail)
    with pytest.raises(MemoryError):
        run(small_recipe())
    has_report = {path.name for path in (tmp_path / "run" / "unscored").iterdir()}
    assert "adapter_model.safetensors" in has_report
    assert "training_args.bin" not in has_report
    assert not is_finished(tmp_path / "run")


def test_running_out_of_memory_is_a_status(small_recipe, tmp_path, monkeypatch):
    def full_memory(self, *args, **kwargs):
        return torch.empty(2**52)

    monkeypatch.setattr(audit_module.TrainingAudit, "step", full_memory)
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        run(small_recipe())
    assert read_report(tmp_path / "run").status == "out_of_memory"


def test_a_length_the_model_does_not_know_is_one_line(small_recipe):
    recipe = small_recipe()
    with pytest.raises(UserError, match=r"task\.max_length: the model has 512 positions, got 9999"):
        run(replace(recipe, task=replace(recipe.task, max_length=9999)))


def test_the_usual_learning_rate_is_taken_when_none_is_named(small_recipe):
    recipe = small_recipe(max_steps=3, logging_steps=1)
    recipe = replace(recipe, training={k: v for k, v in recipe.training.items() if k != "learning_rate"})
    assert run(recipe).history[0]["learning_rate"] == pytest.approx(1e-3)


def test_accumulation_gives_the_loss_of_the_whole_batch(small_recipe, tmp_path):
    whole = run(small_recipe(method=full(), max_steps=3, logging_steps=1, output_dir=str(tmp_path / "a")))
    parts = run(
        small_recipe(
            method=full(), max_steps=3, logging_steps=1, per_device_train_batch_size=2, gradient_accumulation_steps=4,
            output_dir=str(tmp_path / "b"),
        )
    )  # fmt: skip
    assert parts.history[0]["loss"] == pytest.approx(whole.history[0]["loss"], rel=0.05)


def test_qlora_goes_on_training_after_a_look_at_validation(small_recipe):
    # On a CPU with bfloat16 units bitsandbytes repacks 4-bit weights at the first evaluation.
    report = run(small_recipe(method=qlora(), eval_strategy="steps", eval_steps=2))
    assert report.status == "complete"
    assert sum("eval_loss" in row for row in report.history) == 3


def test_sigterm_ends_a_run_in_order(small_recipe, tmp_path, capsys):
    before = signal.getsignal(signal.SIGTERM)
    install_sigterm_handler()
    try:
        recipe = small_recipe(logging_steps=2)
        code = run_with_exit_code(lambda: run(recipe, progress=lambda told: os.kill(os.getpid(), signal.SIGTERM)))
        # A launcher sends a second SIGTERM during the cleanup.
        os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert code == 143
    assert "peftkit: ended by SIGTERM" in capsys.readouterr().err
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"report.json", "tensorboard"}
    report = read_report(tmp_path / "run")
    assert (report.status, report.error) == ("failed", "Terminated: ended by SIGTERM")
    assert len(report.history) == 1


@pytest.mark.parametrize(("ranks", "has_report"), [("2", True), ("1", False)])
@pytest.mark.parametrize("error", [LostRankError("gone"), Terminated("ended")])
def test_a_rank_that_ends_after_another_leaves_the_cause_in_the_report(ranks, has_report, error, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", ranks)
    Report(name="a", method="lora", status="failed", error="ValueError: the cause").write(tmp_path)
    assert has_report_of_cause(tmp_path, error) == has_report
    assert not has_report_of_cause(tmp_path, ValueError("its own"))
    os.utime(tmp_path / "report.json", (0, 0))
    assert not has_report_of_cause(tmp_path, error)


def test_a_trained_classifier_as_the_base_keeps_its_answers(small_recipe, tmp_path):
    first = small_recipe("bert", full())
    labels = run(first).data["labels"]
    order = [labels[-1], *labels[:-1]]
    reordered = replace(first.task, label_names=order)
    run(replace(first, task=reordered, training={**first.training, "output_dir": str(tmp_path / "reordered")}))
    base = replace(first.model, name_or_path=str(tmp_path / "reordered"))
    training = {**first.training, "output_dir": str(tmp_path / "again"), "learning_rate": 1e-9, "max_steps": 1}
    report = run(replace(first, model=base, training=training))
    assert report.data["labels"] == order
    assert report.head == []

    def answers(name):
        lines = (tmp_path / name / "predictions.jsonl").read_text().splitlines()
        return [json.loads(line)["label"] for line in lines]

    assert answers("again") == answers("reordered")


def test_a_checkpoint_named_as_a_training_argument_is_refused(small_recipe, tmp_path):
    with pytest.raises(UserError, match=r"training\.resume_from_checkpoint: .*; pass --resume PATH instead"):
        run(small_recipe(resume_from_checkpoint=str(tmp_path)))
