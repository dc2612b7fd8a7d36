import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForSequenceClassification

import peftkit
from peftkit.cli.main import main
from peftkit.errors import NotReproducedError, UserError
from peftkit.export.exporter import export
from peftkit.export.formats import registry
from peftkit.export.formats.base import ExportFormat, ExportOptions
from peftkit.export.merging import merge_in_memory
from peftkit.export.receipt import ExportSource, Receipt
from peftkit.models.inference import compute_outputs
from peftkit.runs.report import Report
from peftkit.runs.verification import check_difference


def write_state(source: ExportSource, folder: Path, options: ExportOptions) -> Receipt:
    """The merged model as one bare file of tensors and its config, loaded by PyTorch alone."""
    model, reloaded = source.load_as_trained()
    merged = merge_in_memory(model)
    merged.config.save_pretrained(folder)
    save_file({name: tensor.contiguous() for name, tensor in merged.state_dict().items()}, folder / "state.safetensors")
    again = AutoModelForSequenceClassification.from_config(AutoConfig.from_pretrained(folder)).eval()
    again.load_state_dict(load_file(folder / "state.safetensors"))
    found = source.compare_with_live(compute_outputs(again, source.batch))
    tolerance = source.find_tolerance(half=False)
    check_difference("export: the state file", found, tolerance)
    source.write_manifest(folder, adapter=False, dtype="float32")
    return Receipt(
        format="state", dtype="float32", rows=found.rows, tolerance=tolerance.difference,
        exported_difference=found.difference, label_agreement=found.label_agreement, text_agreement=None,
        reload_difference=reloaded.difference, live_difference=found.difference,
    )  # fmt: skip


STATE = ExportFormat(
    name="state", description="a file of tensors for PyTorch alone", write=write_state,
    usage=lambda manifest: 'state = load_file("FOLDER/state.safetensors")', library="pytorch", verifier="PyTorch",
)  # fmt: skip


@pytest.fixture
def formats(monkeypatch):
    monkeypatch.setattr(registry, "_formats", dict(registry._formats))
    peftkit.register_export_format(STATE)


@pytest.mark.usefixtures("formats")
def test_a_registered_format_is_exported_by_function_and_command_line(trained_run, tmp_path, capsys):
    trained_run()
    receipt = export(tmp_path / "run", tmp_path / "out", format="state")
    assert receipt.exported_difference <= 1e-4
    assert json.loads((tmp_path / "out" / "receipt.json").read_text())["format"] == "state"
    card = (tmp_path / "out" / "README.md").read_text()
    assert "library_name: pytorch" in card
    assert 'state = load_file("FOLDER/state.safetensors")' in card
    assert "Verified in PyTorch" in card
    assert "state.safetensors" in json.loads((tmp_path / "out" / "contract.json").read_text())["files"]
    with pytest.raises(SystemExit) as ended:
        main(["export", str(tmp_path / "run"), str(tmp_path / "again"), "--format", "state"])
    assert ended.value.code == 0
    weights, again = (load_file(tmp_path / name / "state.safetensors") for name in ("out", "again"))
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    with pytest.raises(NotReproducedError, match="the reloaded run differs"):
        export(tmp_path / "run", tmp_path / "strict", format="state", tolerance=-1.0)
    assert not (tmp_path / "strict").exists()
    with pytest.raises(SystemExit):
        main(["export", "--help"])
    assert "state: a file of tensors for PyTorch alone" in " ".join(capsys.readouterr().out.split())


@pytest.mark.usefixtures("formats")
def test_a_registered_format_takes_no_option_that_it_does_not_check():
    with pytest.raises(UserError, match="--int8: not an option of this export format"):
        STATE.check(ExportOptions(int8=True), Report(name="a", method="lora", status="complete"))


def test_the_name_of_a_built_in_format_cannot_be_registered():
    with pytest.raises(UserError, match="'onnx' is a built-in format"):
        peftkit.register_export_format(ExportFormat(name="onnx", description="", write=write_state))


def test_an_unknown_format_names_the_known_ones(tmp_path):
    with pytest.raises(UserError, match=r"unknown format 'onnxx'; use one of model, adapter, onnx"):
        export(tmp_path, tmp_path / "out", format="onnxx")


def test_arguments_are_checked_before_torch_is_imported(tmp_path, real_interpreter):
    Report(name="a", method="full", status="complete", recipe={"method": {"name": "full"}}).write(tmp_path)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    code = f"""
import sys
from pathlib import Path
from peftkit.errors import UserError
from peftkit.export.exporter import export
run = Path({str(tmp_path)!r})
for out, options in (
    ("out", dict(format="adapter")), ("out", dict(int8=True)), ("out", dict(format="onnx", dtype="bfloat16")),
    ("out", dict(merge="original")), ("out", dict(merge="4bit", format="onnx")), ("out", dict(format="none")),
    ("taken", dict()),
):
    try:
        export(run, run / out, **options)
    except UserError as error:
        print(error)
print("torch" in sys.modules, "transformers" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *errors, imported = done.stdout.splitlines()
    assert imported == "False False"
    assert [line.split(":")[0] for line in errors] == [
        "--format adapter", "--int8 applies to --format onnx only; remove the option", "--dtype bfloat16",
        "--merge applies to quantized runs only; remove the option",
        "--merge applies to quantized runs only; remove the option", "--format", "taken",
    ]  # fmt: skip
