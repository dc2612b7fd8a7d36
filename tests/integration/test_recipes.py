"""Recipes as processes, by every launcher; those of text classification, by python and deepspeed, in `test_zero`."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from peftkit.planning.run_estimate import estimate_run
from peftkit.runs.report import read_report

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
LAUNCHERS = {
    "python": [],
    "torchrun": [str(BIN / "torchrun"), "--nproc_per_node", "2", "--standalone"],
    "deepspeed": [str(BIN / "deepspeed"), "--num_accelerators", "2"],
}
FEW = ["--training.max_steps", "4", "--data.max_train_samples", "96", "--data.max_eval_samples", "40"]
FEW += ["--training.per_device_train_batch_size", "4", "--training.disable_tqdm", "true"]
SHORT = {"seq2seq": ["--task.max_source_length", "32", "--task.max_target_length", "8"]}

# Two ranks fill two cores: not beside another such test.
pytestmark = [pytest.mark.integration, pytest.mark.xdist_group("ranks")]


def launch(launcher, recipe, words, folder):
    start = [sys.executable, *LAUNCHERS[launcher]]
    if launcher == "deepspeed":
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            start += ["--master_port", str(free.getsockname()[1])]
    command = [*start, str(recipe), "--training.output_dir", str(folder), *FEW, *words]
    command += SHORT.get(recipe.stem.split("_")[1], ["--task.max_length", "32"])
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        ["timeout", "600", *command], capture_output=True, text=True, cwd=ROOT, env=environment, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return read_report(folder), done


@pytest.fixture
def small_model(checkpoints):
    return ["--model.name_or_path", str(checkpoints / "bert")]


@pytest.mark.parametrize(("launcher", "name"), [("python", "lora_ner"), ("torchrun", "lora_seq2seq")])
def test_a_recipe_runs(launcher, name, small_model, tmp_path):
    options = small_model if name == "lora_ner" else []
    report, done = launch(launcher, ROOT / "recipes" / f"{name}.py", options, tmp_path / "run")
    assert report.status == "complete"
    assert report.audit["verdict"] == "passed"
    assert report.environment["processes"] == (1 if launcher == "python" else 2)
    assert done.stderr.count("peftkit: saved run to") == 1


def test_deepspeed_without_a_config_chooses_one_and_says_so(small_model, tmp_path, real_interpreter):
    report, done = launch("deepspeed", ROOT / "recipes" / "full_cls.py", small_model, tmp_path / "run")
    assert (done.stdout + done.stderr).count("using ds_configs/zero2.json") == 1
    assert report.recipe["training"]["deepspeed"] == "ds_configs/zero2.json"
    assert not list(Path("/dev/shm").glob(f"deepspeed_*_{done.args[done.args.index('--master_port') + 1]}_*"))
    assert "built successfully" not in done.stdout
    assert report.audit["verdict"] == "passed"


def test_ds_auto_shards_no_adapter_that_fits(small_model, tmp_path):
    options = ["--ds", "auto", *small_model]
    report, done = launch("deepspeed", ROOT / "recipes" / "qlora_cls.py", options, tmp_path / "run")
    assert (done.stdout + done.stderr).count("deepspeed auto, 2 ranks: qlora, no sharding") == 1
    assert "ZeRO-1 and ZeRO-2 would save at most" in done.stdout + done.stderr
    assert "deepspeed" not in report.recipe["training"]
    assert report.environment["processes"] == 2
    assert estimate_run(tmp_path / "run")["placement"] == "none"
