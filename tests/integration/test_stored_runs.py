"""Folders that version 0.1.0 wrote load, predict, export, resume and compare as they did."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import peftkit
from peftkit.checkpoints.manifest import find_last_complete
from peftkit.cli.main import main
from peftkit.export.exporter import export
from peftkit.recipe.parser import read_recipe
from peftkit.runs.report import is_finished, read_report
from peftkit.training.run import run

STORED = Path(__file__).parent.parent / "stored_runs"
RUNS = {
    "classification_full": "texts",
    "classification_lora": "texts",
    "classification_qlora": "texts",
    "multi_label_lora": "labels",
    "regression_full": "scores",
    "tokens_lora": "words",
    "seq2seq_lora": "pairs",
}
EXPORTS = {
    "classification_lora_adapter": "classification_lora",
    "classification_lora_model": "classification_lora",
    "tokens_lora_model": "tokens_lora",
    "seq2seq_lora_model": "seq2seq_lora",
}


@pytest.fixture
def stored(tmp_path, monkeypatch):
    """A copy, since paths in it start from the home folder, and exports and reports write beside it."""
    folder = tmp_path / "stored"
    shutil.copytree(STORED, folder)
    monkeypatch.setenv("HOME", str(folder))
    return folder


def read_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("name", [*RUNS, *EXPORTS])
def test_a_stored_folder_predicts_what_it_predicted(stored, name):
    source = EXPORTS.get(name, name)
    predictions = read_lines(stored / source / "predictions.jsonl")
    rows = read_lines(stored / f"{RUNS[source]}.jsonl")
    found = peftkit.load(stored / name)([rows[one["row"]] for one in predictions])
    assert len(found) == len(predictions) > 0
    for one, expected in zip(found, predictions, strict=True):
        for field, value in expected.items():
            if field in ("label", "labels", "tags", "text"):
                assert one[field] == value
            if field == "score":
                assert one[field] == pytest.approx(value, abs=1e-5)
            if field == "confidence":
                assert max(one["probabilities"].values()) == pytest.approx(value, abs=1e-5)


@pytest.mark.parametrize("name", RUNS)
def test_a_stored_report_is_read(stored, name):
    assert is_finished(stored / name)
    plain = json.loads((stored / name / "report.json").read_text())
    report = read_report(stored / name)
    assert report.metrics == plain["metrics"]
    assert report.round_trip == plain["round_trip"]
    assert read_recipe(stored / name / "recipe.yaml").name == name


def test_a_stored_run_is_exported(stored, tmp_path):
    receipt = export(stored / "classification_lora", tmp_path / "out")
    assert receipt.exported_difference <= 1e-4
    assert receipt.label_agreement == 1.0
    weights, expected = (
        load_file(folder / "model.safetensors") for folder in (tmp_path / "out", stored / "classification_lora_model")
    )
    assert weights.keys() == expected.keys()
    assert all(torch.allclose(weights[name], expected[name], atol=1e-6) for name in weights)


def test_a_stored_checkpoint_is_resumed(stored, tmp_path):
    run_folder = stored / "classification_lora"
    checkpoint = find_last_complete(run_folder)
    assert checkpoint == run_folder / "checkpoint-3"
    recipe = read_recipe(run_folder / "recipe.yaml")
    recipe = replace(recipe, training={**recipe.training, "output_dir": str(tmp_path / "resumed")})
    report = run(recipe, resume=checkpoint)
    assert report.resumed == [{"from": "checkpoint-3", "step": 3, "processes": 1, "zero_stage": None}]
    weights, expected = (
        load_file(folder / "adapter_model.safetensors") for folder in (tmp_path / "resumed", run_folder)
    )
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


def test_a_stored_comparison_is_reported(stored, capsys):
    plain = json.loads((stored / "comparison" / "findings.json").read_text())
    with pytest.raises(SystemExit) as ended:
        main(["report", str(stored / "comparison"), "--format", "json"])
    assert ended.value.code == 0
    found = json.loads(capsys.readouterr().out)
    assert found["recommended"] == plain["recommended"]
    assert [(row["name"], row["status"], row["scores"]) for row in found["rows"]] == [
        (row["name"], row["status"], row["scores"]) for row in plain["rows"]
    ]
    assert [row["cost"]["planned_peak"] for row in found["rows"]] == [
        row["cost"]["planned_peak"] for row in plain["rows"]
    ]
