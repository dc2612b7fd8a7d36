import json
from dataclasses import replace

import pytest

from peftkit import Recipe, SequenceClassification, full, lora, qlora
from peftkit.cli import main
from peftkit.distributed import deepspeed_config
from peftkit.errors import UserError
from peftkit.hardware import GPU
from peftkit.plan import arguments_of, choose, plan
from peftkit.zero_memory import PLACEMENTS, placement_of


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
    computing = replace(GPU, launch=0)
    whole, half = (
        plan(small, ranks=8, hardware=computing, on_gpu=True, filled=share).rows[0].time.compute for share in (1, 0.5)
    )
    assert half == pytest.approx(whole / 2)
    zero2 = replace(small, training={**small.training, "deepspeed": "zero2"})
    adapters = plan(zero2, ranks=8, hardware=GPU, on_gpu=True)
    assert adapters.rows[adapters.own].placement == "zero2"
    assert "would gain nothing" in adapters.why


def test_what_does_not_fit_is_sharded_and_then_said_not_to_fit(small):
    wide = replace(small, method=full())
    options = {"ranks": 8, "on_gpu": True, "checkpointing": (False,)}
    needed = {row.placement: row.memory.peak for row in plan(wide, hardware=GPU, **options).rows}
    buckets = replace(GPU, reserved=0)
    tight = plan(wide, hardware=replace(buckets, memory=needed["none"] - 1), **options)
    assert tight.rows[tight.chosen].placement == "zero3"
    assert "without sharding it would be" in tight.why
    none = plan(wide, hardware=replace(buckets, memory=1000), **options)
    assert none.chosen is None
    assert none.why.startswith("nothing fits")
    assert {row.largest_batch for row in none.rows} == {0}


def test_the_largest_batch_is_the_last_that_fits(small):
    from peftkit.memory_trace import trace
    from peftkit.plan import read_config

    wide = replace(small, method=full())
    hardware = replace(GPU, memory=2 * 2**30)
    row = plan(wide, ranks=1, hardware=hardware, on_gpu=True, checkpointing=(False,)).rows[0]

    def peak(rows):
        memory = trace(
            read_config(wide.model), wide.task, wide.method, arguments_of(wide), labels=("0", "1"), dtype="float32",
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
    read = placement_of(deepspeed_config(placement.name))
    assert read == placement


def test_choosing_prefers_less_within_two_percent(small):
    rows = plan(small, ranks=2, hardware=GPU, on_gpu=True).rows
    assert rows[choose(rows)].placement == "none"
    assert choose([replace(row, fits=False) for row in rows]) is None


def test_words_of_other_hardware_do_not_stop_a_plan():
    recipe = Recipe(training={"bf16": True, "deepspeed": "zero2", "gradient_checkpointing": True})
    arguments = arguments_of(recipe)
    assert arguments.bf16
    assert arguments.activation_checkpointing
    with pytest.raises(UserError, match="adamw_of_nobody"):
        arguments_of(Recipe(training={"optim": "adamw_of_nobody"}))


def test_planning_joins_no_ranks(monkeypatch):
    from accelerate.state import PartialState

    monkeypatch.setattr(PartialState, "_shared_state", {})
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert arguments_of(Recipe(training={"bf16": True})).device.type == "cpu"
    assert not PartialState._shared_state


def test_the_command(tmp_path, capsys, checkpoints):
    words = [
        "plan", "recipes/lora_cls.py", "--gpus", "8", "--gpu-memory", "24GiB", "--methods", "lora",
        "--scaling", "--output", str(tmp_path / "plan.json"), "--model.name_or_path", str(checkpoints / "bert"),
    ]  # fmt: skip
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert "choose   lora, no sharding" in said
    assert "1024" in said
    told = json.loads((tmp_path / "plan.json").read_text())
    assert told["rows"][told["chosen"]]["placement"] == "none"
    assert told["own"] == told["chosen"]
    # Docstrings are shorter than 128 tokens, and there are 2,520.
    assert 0.1 < told["filled"] < 0.9
    assert told["steps"] == 10
    assert len(told["scaling"]) == 2


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--gpu-memory", "much"], "--gpu-memory much: not a size"),
        (["--gpus", "0"], "--gpus 0: must be more than 0"),
        (["--gpu-memory", "1GiB"], "--gpu-memory 1GiB: must be more than the 1.00 GiB that libraries"),
        (["--training.deepspeed", "zero9", "--gpus", "2"], "did you mean 'zero3'?; one of auto, zero1, "),
        (["--methods", "lara"], "unknown method 'lara'"),
        (["--output", "plan.txt"], "give a .json file"),
        (["--tflops", "10", "--speed-from", "runs/x"], "say one of them"),
    ],
)
def test_mistakes_are_one_line(words, why, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["plan", "recipes/lora_cls.py", "--rows", "10", *words])
    assert ended.value.code == 2
    assert why in capsys.readouterr().err
