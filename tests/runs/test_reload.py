import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from peftkit import Seq2Seq, lora
from peftkit.errors import NotReproducedError
from peftkit.runs import reload_worker, writer
from peftkit.runs.reload import read_held_out, reload_outputs, run_reload_worker
from peftkit.runs.report import is_finished, read_report
from peftkit.runs.verification import check_difference, compare_outputs, find_tolerance
from peftkit.training.run import run


def test_a_run_is_read_back_by_a_process_that_knows_no_peftkit(trained_run):
    report = read_report(trained_run())
    assert report.round_trip["difference"] <= 1e-5
    assert report.round_trip["label_agreement"] == 1.0
    assert report.round_trip["rows"] == 32
    script = reload_worker.__file__
    asked = {"folder": "nowhere", "auto_class": "AutoModel", "dtype": "float32", "trust_remote_code": False}
    done = subprocess.run([sys.executable, "-I", script], input=json.dumps(asked), capture_output=True, text=True)
    told = json.loads(done.stdout)
    assert told["peftkit"] is False
    assert told["error"].startswith("OSError")


def test_a_run_that_was_not_saved_as_trained_fails_and_says_so(small_recipe, tmp_path, monkeypatch):
    complete = writer.write_run_files

    def forget(folder, *words, **fields):
        path = folder / "adapter_model.safetensors"
        weights = load_file(path)
        weights |= {name: torch.zeros_like(weight) for name, weight in weights.items() if "classifier" in name}
        save_file(weights, path, {"format": "pt"})
        complete(folder, *words, **fields)

    monkeypatch.setattr(writer, "write_run_files", forget)
    with pytest.raises(NotReproducedError, match=r"the saved run differs from the model in memory by .* in a logit"):
        run(small_recipe())
    report = read_report(tmp_path / "run")
    assert report.status == "not_reproduced"
    assert "the saved run differs" in report.error
    assert not is_finished(tmp_path / "run")
    assert (tmp_path / "run" / "unscored" / "adapter_model.safetensors").exists()


def test_generated_text_is_compared(small_recipe, trained_run):
    folder = trained_run("t5", lora(), Seq2Seq(max_source_length=32, max_target_length=8), "demo-summaries")
    batch, live = read_held_out(folder)
    recipe = small_recipe("t5", lora(), Seq2Seq(), "demo-summaries")
    found = reload_outputs(folder, recipe, batch, trust_remote_code=False)
    assert torch.equal(found["generated"], live["generated"])
    other = {**found, "generated": found["generated"].clamp(0) + 1}
    difference = compare_outputs(recipe.task, other, live, batch)
    assert difference.text_agreement == 0.0
    with pytest.raises(
        NotReproducedError, match="it: generated text differs from the model in memory for 100% of rows"
    ):
        check_difference("it", difference, find_tolerance(live))
    check_difference("it", difference, find_tolerance(live, half=True))


def test_a_folder_that_is_no_model_is_one_line(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(NotReproducedError, match="a new process cannot load the saved folder: ValueError"):
        run_reload_worker(tmp_path, {"input_ids": torch.ones(1, 2, dtype=torch.long)}, auto_class="AutoModel")
