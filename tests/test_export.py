import json
import shutil

import pytest
import torch
from peft import IA3Config, LoraConfig, PrefixTuningConfig
from safetensors.torch import load_file, save_file
from transformers import pipeline

from peftkit import Method, full, lora, qlora
from peftkit.errors import AuditError, UserError
from peftkit.export import export
from peftkit.run import run


@pytest.fixture
def trained(small_recipe, tmp_path):
    def make(architecture="bert", method=None):
        run(small_recipe(architecture, method))
        return tmp_path / "run"

    return make


@pytest.mark.parametrize(
    ("architecture", "method"),
    [
        ("bert", full()),
        ("bert", lora()),
        ("bert", qlora()),
        ("bert", Method(name="dora", peft=LoraConfig(use_dora=True, target_modules="all-linear"))),
        ("bert", Method(name="ia3", peft=IA3Config())),
        ("roberta", lora()),
        ("roberta", qlora()),
        ("deberta", lora()),
        ("t5", full()),
        ("t5", lora()),
        ("t5", qlora()),
    ],
    ids=lambda v: v if isinstance(v, str) else v.name,
)
def test_the_export_is_what_was_trained(trained, tmp_path, architecture, method):
    receipt = export(trained(architecture, method), tmp_path / "out")
    assert receipt.exported_difference <= 1e-4
    assert receipt.reload_difference <= 1e-4
    assert receipt.rows == 32
    stored = json.loads((tmp_path / "out" / "receipt.json").read_text())
    assert stored["exported_difference"] == receipt.exported_difference
    assert not list((tmp_path / "out").glob("adapter*"))
    labelled = pipeline("text-classification", model=str(tmp_path / "out"))("Return the mean of the array.")
    assert not labelled[0]["label"].startswith("LABEL_")


def spoil_adapter(folder, key):
    path = folder / "adapter_model.safetensors"
    weights = load_file(path)
    name = next(name for name in weights if key in name)
    weights[name] = weights[name] + torch.randn_like(weights[name])
    save_file(weights, path, metadata={"format": "pt"})


@pytest.mark.parametrize("key", ["classifier", "lora_B"])
def test_a_changed_weight_fails_the_export_and_leaves_nothing(trained, tmp_path, key):
    folder = trained()
    spoil_adapter(folder, key)
    with pytest.raises(AuditError, match=r"differs .* in a logit \(tolerance 0\.0001\); not exported"):
        export(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out*"))


def test_a_dropped_head_fails_the_export(trained, tmp_path):
    folder = trained("t5")
    path = folder / "adapter_model.safetensors"
    save_file({k: v for k, v in load_file(path).items() if "classification_head" not in k}, path, {"format": "pt"})
    with pytest.raises(UserError, match="does not fit"):
        export(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_another_base_fails_the_export(trained, checkpoints, tmp_path):
    folder = trained()
    recipe = (folder / "recipe.yaml").read_text()
    other = tmp_path / "other"
    shutil.copytree(checkpoints / "bert", other)
    weights = load_file(other / "model.safetensors")
    weights["embeddings.word_embeddings.weight"] += torch.randn_like(weights["embeddings.word_embeddings.weight"])
    save_file(weights, other / "model.safetensors", {"format": "pt"})
    (folder / "recipe.yaml").write_text(recipe.replace(str(checkpoints / "bert"), str(other)))
    with pytest.raises(AuditError, match="the run read back differs"):
        export(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_method_that_cannot_be_merged_says_so(trained, tmp_path):
    folder = trained("bert", Method(name="prefix_tuning", peft=PrefixTuningConfig(num_virtual_tokens=4)))
    with pytest.raises(UserError, match="PREFIX_TUNING adds no weights that could be merged"):
        export(folder, tmp_path / "out")


def test_a_tolerance_that_nothing_passes(trained, tmp_path):
    with pytest.raises(AuditError, match="tolerance -1"):
        export(trained(), tmp_path / "out", tolerance=-1.0)


def test_what_is_no_run_is_one_line(tmp_path):
    with pytest.raises(UserError, match="give the folder of a finished run"):
        export(tmp_path, tmp_path / "out")
