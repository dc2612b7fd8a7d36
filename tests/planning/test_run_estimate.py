from dataclasses import replace

import pytest
from transformers import AutoConfig

from peftkit import Seq2Seq
from peftkit.cli.main import main
from peftkit.errors import UserError
from peftkit.planning.planner import make_arguments
from peftkit.planning.run_estimate import estimate_run, find_peak, format_run_estimate
from peftkit.planning.tracing import trace
from peftkit.recipe.serialization import recipe_to_dict
from peftkit.runs.report import Report


@pytest.fixture
def report(small_recipe):
    recipe = small_recipe()
    return Report(
        name="small", method="lora", status="complete", recipe=recipe_to_dict(recipe),
        environment={"gpus": [], "processes": 1},
        data={"labels": ["a", "b", "c"], "token_lengths": {"max_length": 20}}, head=["classifier"],
        batch={"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}, process_before=10**9,
        memory={"process_peak": 11 * 10**8},
    )  # fmt: skip


def test_an_estimate_is_of_the_batch_and_the_lengths_of_the_run(report, small_recipe, checkpoints, tmp_path):
    report.write(tmp_path)
    estimate = estimate_run(tmp_path)
    recipe = small_recipe(per_device_train_batch_size=4, gradient_accumulation_steps=2)
    memory = trace(
        AutoConfig.from_pretrained(checkpoints / "bert"), replace(recipe.task, max_length=20), recipe.method,
        make_arguments(recipe), labels=("a", "b", "c"), dtype=recipe.model.dtype, rows=(4,), on_gpu=False,
        head=("classifier",),
    )  # fmt: skip
    assert estimate["peak"] == memory.peak(memory.steps[0])
    assert (estimate["placement"], estimate["rows"], estimate["max_length"]) == ("none", 4, 20)
    assert find_peak(estimate) == 10**9 + estimate["peak"]
    assert "estimated 0.9" in (text := format_run_estimate(tmp_path))
    assert "measured 1.02 GiB" in text


def test_the_decoder_keeps_no_cache_as_in_training(report, small_recipe, checkpoints, tmp_path):
    task = Seq2Seq(max_source_length=16, max_target_length=8)
    recipe = small_recipe("t5", task=task, per_device_train_batch_size=4, gradient_accumulation_steps=2)
    data = {"labels": [], "token_lengths": {"max_source_length": 16, "max_target_length": 8}}
    replace(report, recipe=recipe_to_dict(recipe), data=data, head=[]).write(tmp_path)
    config = AutoConfig.from_pretrained(checkpoints / "t5")
    config.use_cache = False
    memory = trace(
        config, task, recipe.method, make_arguments(recipe), labels=(), dtype=recipe.model.dtype, rows=(4,),
        on_gpu=False, head=(),
    )  # fmt: skip
    assert estimate_run(tmp_path)["peak"] == memory.peak(memory.steps[0])


def test_a_gpu_is_compared_by_what_is_allocated(report, tmp_path):
    replace(
        report, environment={"gpus": ["H200"], "processes": 2}, memory={"process_peak": 1, "allocated_peak": 2**29}
    ).write(tmp_path)
    estimate = estimate_run(tmp_path)
    assert find_peak(estimate) == estimate["peak"]
    assert estimate["buffers"] == estimate["gradients"]
    assert "allocated on the GPU" in format_run_estimate(tmp_path)


def test_the_estimate_of_an_old_report_is_used(report, tmp_path):
    replace(report, plan={"peak": 5, "process_peak": 7}, batch={}).write(tmp_path)
    assert estimate_run(tmp_path) == {"peak": 5, "process_peak": 7}


def test_a_run_that_did_not_finish_has_no_estimate(report, tmp_path):
    replace(report, status="failed", batch={}, data={}).write(tmp_path)
    with pytest.raises(UserError, match="the run is not finished"):
        estimate_run(tmp_path)


def test_a_model_that_is_gone_is_an_error_in_the_estimate(report, tmp_path):
    recipe = {**report.recipe, "model": {"name_or_path": str(tmp_path / "gone")}}
    replace(report, recipe=recipe).write(tmp_path)
    assert "gone" in estimate_run(tmp_path)["error"]
    with pytest.raises(UserError, match="cannot trace"):
        format_run_estimate(tmp_path)


def test_the_command_prints_the_estimate_of_a_run(report, tmp_path, capsys):
    report.write(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["plan", "--run", str(tmp_path)])
    assert ended.value.code == 0
    assert "measured 1.02 GiB" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        main(["plan"])
    assert ended.value.code == 2
    assert "plan: missing RECIPE" in capsys.readouterr().err
