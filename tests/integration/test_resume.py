"""A run that was killed, with any launcher, goes on with other ranks and other stages of ZeRO."""

import json
import os
import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from peftkit import full, lora
from peftkit.checkpoints.manifest import find_last_complete, read_manifest
from peftkit.recipe.serialization import recipe_to_yaml
from peftkit.runs.report import read_report
from peftkit.system.files import write_json, write_text
from peftkit.training.run import run
from tests.checkpoints.test_manifest import OPTIONS, StoppedError, same_weights, stop_at, told, weights
from tests.integration.test_recipes import ROOT

BIN = Path(sys.executable).parent
pytestmark = [pytest.mark.integration, pytest.mark.xdist_group("resume")]

# A leg of a run: killed by SIGKILL at the step that is named, or to the end.
LEG = """
import os, signal, sys
from peftkit.cli.recipe_arguments import parse_run_arguments
from peftkit.errors import run_with_exit_code
from peftkit.system.logging import set_up_logging
from peftkit.recipe.parser import read_recipe
from peftkit.training.run import run

launcher = [argument for argument in sys.argv[1:] if argument.startswith("--local_rank")]
file, step, *arguments = [argument for argument in sys.argv[1:] if argument not in launcher]

def tell(row):
    if row["step"] >= int(step):
        os.kill(os.getpid(), signal.SIGKILL)

set_up_logging()
parsed = parse_run_arguments([*arguments, *launcher], read_recipe(file), "leg")
sys.exit(run_with_exit_code(lambda: run(parsed.recipe, resume=parsed.resume, progress=tell)))
"""
LAUNCHERS = {
    "torchrun": [str(BIN / "torchrun"), "--nproc_per_node", "2", "--standalone"],
    "deepspeed": [str(BIN / "deepspeed"), "--num_accelerators", "2", "--master_port"],
    "python": [],
}
NEVER = 99


@pytest.fixture
def chained(small_recipe, request, tmp_path):
    """A recipe without dropout, what it gives when it is not stopped, and a function that makes a leg of it."""
    model = tmp_path / "model"
    shutil.copytree(request.getfixturevalue("checkpoints") / "bert", model)
    config = json.loads((model / "config.json").read_text())
    write_json(model / "config.json", config | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0})
    write_text(tmp_path / "leg.py", LEG)

    def make(method):
        words = {"logging_steps": 1, "save_steps": 2, "max_steps": 12, "gradient_accumulation_steps": 1}
        recipe = small_recipe(method=method, **OPTIONS | words)
        recipe = replace(recipe, model=replace(recipe.model, name_or_path=str(model)))
        write_text(tmp_path / "recipe.yaml", recipe_to_yaml(recipe))
        whole = run(replace(recipe, training={**recipe.training, "output_dir": str(tmp_path / "whole")}))

        def leg(launcher, kill_at, *arguments):
            start = [sys.executable, *LAUNCHERS[launcher]]
            if launcher == "deepspeed":
                with socket.socket() as free:
                    free.bind(("127.0.0.1", 0))
                    start.append(str(free.getsockname()[1]))
            command = [*start, str(tmp_path / "leg.py"), str(tmp_path / "recipe.yaml")]
            environment = {
                **os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT),
            }  # fmt: skip
            done = subprocess.run(
                ["timeout", "600", *command, str(kill_at), *arguments],
                capture_output=True, text=True, cwd=ROOT, env=environment, check=False,
            )  # fmt: skip
            said = done.stdout[-2000:] + done.stderr[-4000:]
            assert (done.returncode == 0) == (kill_at == NEVER), said
            return done

        return recipe, whole, leg

    return make


def same_losses(report, whole):
    losses = [[row["loss"] for row in one.history if "loss" in row] for one in (report, whole)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert report.tokens == whole.tokens
    assert report.audit["verdict"] == "passed"


def last_step(folder):
    return read_manifest(find_last_complete(folder)).step


def test_a_run_that_was_killed_goes_on_by_the_command_line(chained, tmp_path):
    _, whole, leg = chained(lora())
    leg("python", 7)
    assert last_step(tmp_path / "run") == 6
    command = [sys.executable, "-m", "peftkit", "train", str(tmp_path / "recipe.yaml"), "--resume"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
    report = read_report(tmp_path / "run")
    assert told(report) == told(whole)
    assert same_weights(tmp_path / "run", tmp_path / "whole")


def test_an_adapter_goes_on_with_other_ranks_and_other_stages(chained, tmp_path):
    recipe, whole, leg = chained(lora())
    folder = tmp_path / "run"
    with pytest.raises(StoppedError):
        run(recipe, progress=stop_at(3))
    leg("torchrun", 5, "--resume")
    with pytest.raises(StoppedError):
        run(recipe, progress=stop_at(7), resume=True)
    leg("deepspeed", 9, "--resume", "--training.deepspeed", "ds_configs/zero3.json")
    assert {path.suffix for path in find_last_complete(folder).iterdir()} == {".json", ".safetensors"}
    report = run(recipe, resume=True)
    same_losses(report, whole)
    assert [(one["step"], one["processes"], one["zero_stage"]) for one in report.resumed] == [
        (2, 1, None), (4, 2, None), (6, 1, None), (8, 2, 3),
    ]  # fmt: skip


def test_full_fine_tuning_goes_on_under_zero2_zero3_with_offload_and_back(chained, tmp_path):
    recipe, whole, leg = chained(full())
    folder = tmp_path / "run"
    with pytest.raises(StoppedError):
        run(recipe, progress=stop_at(3))
    leg("deepspeed", 5, "--resume", "--training.deepspeed", "ds_configs/zero2.json")
    leg("deepspeed", 9, "--resume", "--training.deepspeed", "ds_configs/zero3_offload.json")
    about = read_manifest(find_last_complete(folder))
    assert (about.step, about.zero_stage, about.offload) == (8, 3, ["optimizer", "param"])
    report = run(recipe, resume=True)
    same_losses(report, whole)
    saved, right = weights(folder), weights(tmp_path / "whole")
    assert all(torch.allclose(saved[name], right[name], atol=1e-5) for name in right)
