import os
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import pytest

from peftkit import Quantization, Recipe, full, lora, qlora
from peftkit.distributed.deepspeed import (
    check_quantized_storage,
    choose_default_config,
    clear_stale_lock,
    read_deepspeed_config,
)
from peftkit.distributed.process_group import raise_lost_rank_errors
from peftkit.errors import LostRankError, UserError

FOUR_SENTENCES = Path(__file__).resolve().parents[2] / "recipes" / "four_sentences.yaml"


@pytest.mark.parametrize("name", ["zero1", "zero2", "zero2_offload", "zero3", "zero3_offload"])
def test_the_configs_leave_batch_rate_and_dtype_to_the_recipe(name):
    config = read_deepspeed_config(f"ds_configs/{name}.json")
    assert config["zero_optimization"]["stage"] == int(name[4])
    for field in ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_clipping"):
        assert config[field] == "auto"
    assert config["bf16"]["enabled"] == "auto"
    assert "optimizer" not in config
    assert ("offload_optimizer" in config["zero_optimization"]) == name.endswith("offload")
    assert ("offload_param" in config["zero_optimization"]) == (name == "zero3_offload")


def test_a_config_that_is_not_there_is_one_line():
    with pytest.raises(UserError, match="no such file"):
        read_deepspeed_config("ds_configs/zero9.json")


def test_a_config_named_elsewhere_is_not_replaced_by_ours():
    with pytest.raises(UserError, match="no such file"):
        read_deepspeed_config("/nowhere/mine/zero3.json")


def test_zero3_needs_four_bits_stored_as_the_weights_are():
    config = read_deepspeed_config("zero3.json")
    with pytest.raises(UserError, match="set it to float32"):
        check_quantized_storage(Recipe(method=qlora()), config)
    with pytest.raises(UserError, match="set it to bfloat16"):
        check_quantized_storage(Recipe(method=qlora(), training={"bf16": True}), config)
    check_quantized_storage(Recipe(method=qlora(quantization=Quantization(bnb_4bit_quant_storage="float32"))), config)
    check_quantized_storage(Recipe(method=qlora()), read_deepspeed_config("zero2.json"))
    check_quantized_storage(Recipe(method=lora()), config)


def test_an_adapter_is_not_sharded_further_than_it_gains():
    assert choose_default_config(Recipe(method=full())) == "ds_configs/zero2.json"
    assert choose_default_config(Recipe(method=lora())) == "ds_configs/zero1.json"


@pytest.mark.parametrize(("age", "held", "left"), [(121, False, False), (121, True, True), (1, False, True)])
def test_a_lock_of_a_stopped_build_stops_no_run(age, held, left, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    clear_stale_lock()
    lock = tmp_path / "cpu_adam" / "lock"
    lock.touch()
    os.utime(lock, (time.time() - age,) * 2)
    with lock.open() if held else nullcontext():
        clear_stale_lock()
    assert lock.exists() == left


GLOO = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:538] "


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (GLOO + "Connection closed by peer [10.77.0.2]:3292", "Connection closed by peer [10.77.0.2]:3292"),
        (GLOO + "Read error [::1]:9: reset by peer. Check the logs", "Read error [::1]:9: reset by peer"),
        ("[gloo/unbound_buffer.cc:78] Timed out waiting 10000ms for recv operation to complete",
         "Timed out waiting 10000ms for recv operation to complete"),
        ("Application timeout caused pair closure", "Application timeout caused pair closure"),
    ],
)  # fmt: skip
def test_a_rank_that_is_lost_is_told_in_one_line(message, reason, monkeypatch):
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(LostRankError) as found, raise_lost_rank_errors():
        raise RuntimeError(message)
    told = str(found.value)
    assert told.startswith(f"the connection to the other ranks was lost: {reason} (rank 3 of 4, host ")
    assert "--resume" in told
    assert "\n" not in told


@pytest.mark.parametrize(("message", "ranks"), [("mat1 and mat2 do not fit", "4"), ("Connection reset by peer", "1")])
def test_no_other_error_is_taken_for_a_lost_rank(message, ranks, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", ranks)
    with pytest.raises(RuntimeError, match=message), raise_lost_rank_errors():
        raise RuntimeError(message)


@pytest.mark.integration
@pytest.mark.xdist_group("ranks")
def test_ranks_with_different_files_stop(tmp_path):
    """Each rank has a separate folder, like hosts without a shared file system."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(FOUR_SENTENCES.read_text())
    for rank, lines in enumerate([4, 3]):
        (tmp_path / str(rank)).mkdir()
        rows = FOUR_SENTENCES.with_suffix(".jsonl").read_text().splitlines()[:lines]
        (tmp_path / str(rank) / "rows.jsonl").write_text("\n".join(rows))
    script = tmp_path / "own_folder.py"
    script.write_text(
        "import os, sys\nfrom peftkit import main\nfrom peftkit.recipe.parser import read_recipe\n"
        f"os.chdir('{tmp_path}/' + os.environ['RANK'])\n"
        f"main(read_recipe('{recipe}'), ['--data.path', 'rows.jsonl', '--model.name_or_path', 'demo',\n"
        "'--training.load_best_model_at_end', 'true', '--training.eval_strategy', 'epoch',\n"
        "'--training.save_strategy', 'epoch'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)],
        capture_output=True, text=True, check=False, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode != 0
    assert done.stderr.count("peftkit: data: rank 1 read different rows than rank 0") == 1
    assert done.stderr.count("training.load_best_model_at_end: rank 1 does not see the run folder of rank 0") == 1
    assert "exitcode  : 2" in done.stderr
