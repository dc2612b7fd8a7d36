import json
from dataclasses import replace

import pytest

from peftkit import Recipe, SequenceClassification, full, lora, qlora
from peftkit.cli.main import main
from peftkit.errors import UserError
from peftkit.planning.hardware import GPU
from peftkit.planning.planner import make_arguments, plan
from peftkit.planning.selection import choose_row
from peftkit.planning.zero import PLACEMENTS, parse_placement
from peftkit.recipe.serialization import recipe_to_dict
from peftkit.runs.report import Report


@pytest.fixture
def small(small_recipe):
    return small_recipe(task=SequenceClassification(max_length=32))


def test_every_method_stage_and_checkpointing_is_planned_and_the_lightest_that_is_fastest_chosen(small):
    found = plan(small, ranks=8, hardware=GPU, on_gpu=True, methods=[full(), lora(), qlora()], train_rows=1000)
    assert len(found.rows) == 3 * len(PLACEMENTS) * 2
    assert all(row.fits for row in found.rows)
    assert found.chosen is not None
    row = found.rows[found.chosen]
    assert row.placement == "none"
    assert not row.checkpointing
    assert found.steps == 6
    by_method = {row.method: row.memory for row in found.rows if row.placement == "none" and not row.checkpointing}
    assert by_method["full"].optimizer > 20 * by_method["lora"].optimizer
    assert by_method["qlora"].weights < by_method["lora"].weights
    assert by_method["qlora"].quantization > 0
    assert "peftkit compare measures" in found.why
    adapters = plan(small, ranks=8, hardware=GPU, on_gpu=True)
    assert "peftkit compare measures" not in adapters.why
    assert "ZeRO-1 and ZeRO-2 would save at most" in adapters.why


def test_computing_is_less_where_rows_are_shorter(small):
    computing = replace(GPU, launch=0)
    whole, half = (
        plan(small, ranks=8, hardware=computing, on_gpu=True, filled=share).rows[0].time.compute for share in (1, 0.5)
    )
    assert half == pytest.approx(whole / 2)


def test_the_recipes_own_row_is_known_by_all_of_its_config(small):
    def own(config):
        found = plan(
            replace(small, training={**small.training, "deepspeed": config}), ranks=8, hardware=GPU, on_gpu=True
        )
        return None if found.own is None else found.rows[found.own].placement

    assert own("zero2") == "zero2"
    assert own({"zero_optimization": {"stage": 2, "reduce_bucket_size": 1000}}) is None


def test_what_does_not_fit_is_sharded_and_then_said_not_to_fit(small):
    wide = replace(small, method=full())
    options = {"ranks": 8, "on_gpu": True, "checkpointing": (False,)}
    needed = {row.placement: row.memory.peak for row in plan(wide, hardware=GPU, **options).rows}
    buckets = replace(GPU, reserved=0)
    tight = plan(wide, hardware=replace(buckets, memory=needed["none"] - 1), **options)
    assert tight.rows[tight.chosen].placement == "zero3"
    assert "without sharding the peak would be" in tight.why
    edge = plan(wide, hardware=replace(buckets, memory=needed["none"]), **options)
    assert "; tight: only 0.0 MiB free" in edge.why
    none = plan(wide, hardware=replace(buckets, memory=1000), **options)
    assert none.chosen is None
    assert none.why.startswith("no row fits")
    assert {row.largest_batch for row in none.rows} == {0}


def test_the_largest_batch_is_the_last_that_fits(small):
    from peftkit.planning.planner import read_config
    from peftkit.planning.tracing import trace

    wide = replace(small, method=full())
    hardware = replace(GPU, memory=2 * 2**30)
    row = plan(wide, ranks=1, hardware=hardware, on_gpu=True, checkpointing=(False,)).rows[0]

    def peak(rows):
        memory = trace(
            read_config(wide.model), wide.task, wide.method, make_arguments(wide), labels=("0", "1"), dtype="float32",
            rows=(rows,), on_gpu=True,
        )  # fmt: skip
        return memory.peak(memory.steps[0])

    assert peak(row.largest_batch) <= hardware.memory - hardware.reserved
    assert peak(int(1.02 * row.largest_batch)) > hardware.memory - hardware.reserved


def test_no_weight_is_needed(tmp_path, checkpoints, small):
    for name in ("config.json",):
        (tmp_path / name).write_text((checkpoints / "bert" / name).read_text())
    bare = replace(small, model=replace(small.model, name_or_path=str(tmp_path)))
    assert plan(bare, ranks=1, hardware=GPU, on_gpu=True).chosen is not None


@pytest.mark.parametrize("placement", PLACEMENTS[1:], ids=lambda placement: placement.name)
def test_the_configs_are_what_is_planned(placement):
    assert parse_placement(placement.name) == placement


def test_choosing_prefers_less_within_two_percent(small):
    rows = plan(small, ranks=2, hardware=GPU, on_gpu=True).rows
    assert rows[choose_row(rows)].placement == "none"
    assert choose_row([replace(row, fits=False) for row in rows]) is None


def test_a_stage_must_be_worth_deepspeeds_own_work(small):
    rows = plan(small, ranks=2, hardware=replace(GPU, launch=1e-3), on_gpu=True).rows

    def after(factor):
        slower = replace(rows[0].time, update=rows[1].time.update + factor * rows[1].time.seconds)
        return choose_row([replace(rows[0], time=slower), *rows[1:]])

    assert rows[after(0.08)].placement == "none"
    assert rows[after(0.15)].placement != "none"


def test_words_of_other_hardware_do_not_stop_a_plan():
    recipe = Recipe(training={"bf16": True, "deepspeed": "zero2", "gradient_checkpointing": True})
    arguments = make_arguments(recipe)
    assert arguments.bf16
    assert arguments.activation_checkpointing
    with pytest.raises(UserError, match="adamw_of_nobody"):
        make_arguments(Recipe(training={"optim": "adamw_of_nobody"}))


def test_planning_joins_no_ranks(monkeypatch):
    from accelerate.state import PartialState

    monkeypatch.setattr(PartialState, "_shared_state", {})
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert make_arguments(Recipe(training={"bf16": True})).device.type == "cpu"
    assert not PartialState._shared_state


def test_the_command(tmp_path, capsys, checkpoints):
    command = [
        "plan", "recipes/lora_cls.py", "--gpus", "8", "--gpu-memory", "24GiB", "--methods", "lora",
        "--scaling", "--output", str(tmp_path / "plan.json"), "--model.name_or_path", str(checkpoints / "bert"),
    ]  # fmt: skip
    with pytest.raises(SystemExit) as ended:
        main(command)
    assert ended.value.code == 0
    message = capsys.readouterr().out
    assert "recommend  lora, no sharding" in message
    assert "lora * +  none" in message
    assert "1024" in message
    assert "Experimental: weak scaling of lora" in message
    told = json.loads((tmp_path / "plan.json").read_text())
    assert told["rows"][told["chosen"]]["placement"] == "none"
    assert told["own"] == told["chosen"]
    # Docstrings are shorter than 128 tokens, and there are 2,520.
    assert 0.1 < told["filled"] < 0.9
    assert told["steps"] == 10
    assert len(told["scaling"]) == 2


def test_the_speed_of_a_cpu_is_no_gpus(tmp_path, capsys, small):
    environment = {"processes": 1, "gpus": []}
    report = Report(
        name="run", method="full", status="complete", recipe=recipe_to_dict(small), environment=environment
    )  # fmt: skip
    report.write(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["plan", "recipes/lora_cls.py", "--rows", "10", "--gpus", "2", "--speed-from", str(tmp_path)])
    assert ended.value.code == 2
    assert "the plan is for GPUs, the run used a CPU; pass --tflops N" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "why"),
    [
        (["--gpu-memory", "much"], "--gpu-memory much: not a size"),
        (["--gpus", "0"], "--gpus 0: must be more than 0"),
        (["--gpu-memory", "1GiB"], "--gpu-memory 1GiB: must be more than the 1.00 GiB reserved"),
        (["--training.deepspeed", "zero9", "--gpus", "2"], "zero9: no such file; use auto, zero1, "),
        (["--methods", "lara"], "unknown method 'lara'"),
        (["--output", "plan.txt"], "expected a .json file"),
        (["--tflops", "10", "--speed-from", "runs/x"], "use only one of them"),
    ],
)
def test_mistakes_are_one_line(command, why, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["plan", "recipes/lora_cls.py", "--rows", "10", *command])
    assert ended.value.code == 2
    assert why in capsys.readouterr().err
