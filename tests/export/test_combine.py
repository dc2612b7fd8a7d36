import subprocess
import sys

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file

from peftkit import Method, full, lora, qlora
from peftkit.errors import UserError
from peftkit.export.combine import combine
from peftkit.export.exporter import export
from peftkit.prediction.predictor import load
from peftkit.runs.report import Report, read_report

RSLORA = Method(name="rslora", peft=LoraConfig(use_rslora=True, target_modules="all-linear"))
DORA = Method(name="dora", peft=LoraConfig(use_dora=True, target_modules="all-linear"))
TEXTS = ["Return the mean of an array.", "Parse the header of a request.", "Draw a line."]


@pytest.fixture
def runs(trained_run):
    def make(*methods):
        return [
            trained_run("bert", method, name=f"run-{place}", seed=place + 3) for place, method in enumerate(methods)
        ]

    return make


def merged_weight(folder):
    return load_file(folder / "model.safetensors")["bert.encoder.layer.0.attention.self.query.weight"]


@pytest.mark.integration
def test_the_combination_is_the_weighted_sum_of_what_was_trained(runs, tmp_path, checkpoints):
    weights = [0.25, 0.5, 0.5]
    folders = runs(lora(), lora(r=4), RSLORA)
    rows = combine(folders, tmp_path / "both", weights=weights)
    assert [row.form for row in rows] == [*map(str, folders), "combined (cat)"]
    assert all(0 <= row.scores["accuracy"] <= 1 for row in rows)
    for folder in (*folders, tmp_path / "both"):
        export(folder, folder.with_name(f"{folder.name}-out"))
    merged = [merged_weight(folder.with_name(f"{folder.name}-out")) for folder in folders]
    base = load_file(checkpoints / "bert" / "model.safetensors")["encoder.layer.0.attention.self.query.weight"]
    expected = base + sum(weight * (one - base) for weight, one in zip(weights, merged, strict=True))
    assert torch.allclose(merged_weight(tmp_path / "both-out"), expected, atol=1e-6)
    *heads, combined = (
        load_file(folder / "adapter_model.safetensors")["base_model.model.classifier.weight"]
        for folder in (*folders, tmp_path / "both")
    )
    # The head is the weighted mean: with unequal weights of the sum 1.25, each weight is divided by the sum.
    expected = sum(weight * head for weight, head in zip(weights, heads, strict=True)) / sum(weights)
    assert torch.allclose(combined, expected, atol=1e-6)
    report = read_report(tmp_path / "both")
    assert report.round_trip["difference"] <= 1e-4
    assert report.metrics["validation"]["accuracy"] == rows[-1].scores["accuracy"]
    assert len(load(tmp_path / "both")(TEXTS)) == 3


def test_quantized_runs_combine_and_export(runs, tmp_path):
    combine(runs(qlora(), qlora()), tmp_path / "both", combination_type="svd")
    assert export(tmp_path / "both", tmp_path / "out").exported_difference <= 1e-4


@pytest.mark.integration
def test_what_does_not_fit_is_refused_naming_both(runs, trained_run, two_labels, tmp_path):
    one, other = runs(lora(), full())
    with pytest.raises(UserError, match=r"run-1: expected a LoRA run, got full; combine only LoRA runs"):
        combine([one, other], tmp_path / "both")
    packed = trained_run("bert", qlora(), name="packed")
    with pytest.raises(UserError, match=r"packed: 4-bit settings mismatch with .*run-0"):
        combine([one, packed], tmp_path / "both")
    roberta = trained_run("roberta", lora(), name="roberta")
    with pytest.raises(
        UserError, match=r"roberta: base model mismatch with .*run-0 \(expected [0-9a-f]{64}, got [0-9a-f]{64}\)"
    ):
        combine([one, roberta], tmp_path / "both")
    labels = trained_run("bert", lora(), path=str(two_labels), name="labels")
    with pytest.raises(UserError, match=r"labels: labels mismatch with .*run-0 \(expected .*, got a, b\)"):
        combine([one, labels], tmp_path / "both")
    dora = trained_run("bert", DORA, name="dora")
    with pytest.raises(UserError, match=r"dora: peft cannot combine LoRA adapters with `use_dora`"):
        combine([one, dora], tmp_path / "both")
    assert not (tmp_path / "both").exists()


def test_wrong_words(runs, tmp_path):
    folders = runs(lora(), lora(r=4))
    with pytest.raises(UserError, match="expected two or more runs"):
        combine(folders[:1], tmp_path / "both")
    with pytest.raises(UserError, match="--weights: expected 2 numbers, one per run, got 3"):
        combine(folders, tmp_path / "both", weights=[1, 1, 1])
    with pytest.raises(UserError, match="--combination_type ties: missing --density"):
        combine(folders, tmp_path / "both", combination_type="ties")
    with pytest.raises(UserError, match="--weights: the sum must not be 0"):
        combine(folders, tmp_path / "both", weights=[1, -1])
    with pytest.raises(UserError, match="combine: Invalid combination_type"):
        combine(folders, tmp_path / "both", combination_type="sum")
    with pytest.raises(UserError, match="combine: All adapters must have the same r value"):
        combine(folders, tmp_path / "both", combination_type="linear")
    assert not (tmp_path / "both").exists()


def test_arguments_are_checked_before_torch_is_imported(tmp_path, real_interpreter):
    for name in ("one", "two"):
        Report(name=name, method="lora", status="complete").write(tmp_path / name)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    code = f"""
import sys
from pathlib import Path
from peftkit.errors import UserError
from peftkit.export.combine import combine
root = Path({str(tmp_path)!r})
for names, out, options in (
    (("one",), "out", dict()), (("one", "two"), "out", dict(weights=[1, -1])), (("one", "none"), "out", dict()),
    (("one", "two"), "taken", dict()),
):
    try:
        combine([root / name for name in names], root / out, **options)
    except UserError as error:
        print(error)
print("torch" in sys.modules, "transformers" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    few, weights, unfinished, existing, imported = done.stdout.splitlines()
    assert imported == "False False"
    assert few.startswith("combine: expected two or more runs")
    assert weights.startswith("--weights: the sum must not be 0")
    assert "none: not a finished run" in unfinished
    assert existing.startswith("taken: already exists")
