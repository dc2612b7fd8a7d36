import json
import shutil

import pytest
import torch
import yaml
from peft import IA3Config, LoraConfig, PrefixTuningConfig
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, pipeline

from peftkit import Method, Seq2Seq, full, lora, qlora
from peftkit.errors import NotReproducedError, UserError
from peftkit.export.exporter import export
from peftkit.prediction.batch import predict
from peftkit.runs.manifest import MANIFEST, write_manifest
from peftkit.runs.report import read_report

DORA = Method(name="dora", peft=LoraConfig(use_dora=True, target_modules="all-linear"))
PREFIX = Method(name="prefix_tuning", peft=PrefixTuningConfig(num_virtual_tokens=4))


def sign_again(folder):
    """As one who changes a folder and its contract alike: what is then caught is caught by asking the model."""
    contract = json.loads((folder / MANIFEST).read_text())
    parts = {name: value for name, value in contract.items() if name not in ("format", "files")}
    write_manifest(folder, **parts)


def change(folder, alter):
    path = folder / "adapter_model.safetensors"
    weights = load_file(path)
    alter(weights)
    save_file(weights, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("architecture", "method"),
    [("bert", full()), ("bert", DORA), ("bert", Method(name="ia3", peft=IA3Config())), ("roberta", lora())],
    ids=lambda v: v if isinstance(v, str) else v.name,
)
def test_the_export_is_what_was_trained_run(trained_run, tmp_path, architecture, method):
    receipt = export(trained_run(architecture, method), tmp_path / "out")
    assert receipt.exported_difference <= 1e-4
    assert receipt.reload_difference <= 1e-4
    assert receipt.label_agreement == 1.0
    assert receipt.rows == 32
    assert not receipt.forms
    stored = json.loads((tmp_path / "out" / "receipt.json").read_text())
    assert stored["exported_difference"] == receipt.exported_difference
    assert not list((tmp_path / "out").glob("adapter*"))
    labelled = pipeline("text-classification", model=str(tmp_path / "out"))("Return the mean of the array.")
    assert not labelled[0]["label"].startswith("LABEL_")


def test_a_quantized_run_ships_the_merge_that_scores_best(trained_run, tmp_path):
    # Steps large enough that the forms differ by more than rounding.
    receipt = export(trained_run("bert", qlora(), learning_rate=0.05), tmp_path / "out")
    unmerged, original, dequantized = receipt.forms
    assert unmerged.divergence == 0.0
    assert unmerged.label_agreement == 1.0
    # The dequantized weights are those that the adapter was trained beside; the original ones are others.
    assert dequantized.divergence < original.divergence / 100
    assert set(unmerged.scores) == {"accuracy", "f1_macro"}
    best = max(original, dequantized, key=lambda form: (form.scores["accuracy"], -form.divergence))
    assert receipt.shipped == best.form
    assert receipt.exported_difference <= 1e-4
    assert "merged onto the dequantized weights" in (tmp_path / "out" / "README.md").read_text()


def test_a_merge_can_be_asked_for(trained_run, tmp_path, caplog):
    folder = trained_run("bert", qlora())
    original = export(folder, tmp_path / "original", merge="original")
    assert original.shipped == "merged onto the original weights"
    packed = export(folder, tmp_path / "packed", merge="4bit")
    assert "rounding to 4 bits removes much" in caplog.text
    assert [form.form for form in packed.forms][-1] == packed.shipped == "merged into the 4-bit weights"
    assert packed.forms[-1].divergence > packed.forms[2].divergence
    assert packed.forms[-1].megabytes < original.forms[1].megabytes
    config = json.loads((tmp_path / "packed" / "config.json").read_text())
    assert config["quantization_config"]["load_in_4bit"]


def test_without_its_data_a_quantized_run_is_compared_on_the_held_out_rows(trained_run, tmp_path, caplog):
    rows = [{"text": f"Return number {i} of an array.", "label": "ab"[i % 2]} for i in range(200)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder = trained_run("bert", qlora(), path=str(path))
    path.unlink()
    receipt = export(folder, tmp_path / "out")
    assert "without metrics: data.path" in caplog.text
    assert all(form.scores == {} for form in receipt.forms)
    assert receipt.shipped == "merged onto the dequantized weights"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_sixteen_bits(trained_run, tmp_path, dtype):
    receipt = export(trained_run(), tmp_path / "out", dtype=dtype)
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values() if tensor.is_floating_point()} == {getattr(torch, dtype)}
    assert [form.form for form in receipt.forms] == ["as trained, not merged", f"merged, in {dtype}"]
    assert 0 < receipt.exported_difference <= receipt.tolerance
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").dtype == getattr(torch, dtype)


def test_an_adapter_alone(trained_run, tmp_path, caplog):
    folder = trained_run("bert", PREFIX)
    with pytest.raises(UserError, match=r"PREFIX_TUNING has no weights to merge; use --format adapter"):
        export(folder, tmp_path / "out", format="model")
    receipt = export(folder, tmp_path / "out")
    assert receipt.format == "adapter"
    assert "exporting the adapter" in caplog.text
    assert receipt.exported_difference <= 1e-4
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "README.md", "receipt.json", "contract.json"} <= names
    # Rows of the data stay at home.
    assert "held_out.safetensors" not in names
    assert "predictions.jsonl" not in names
    (tmp_path / "rows.jsonl").write_text('{"text": "Return the mean."}\n')
    predict([tmp_path / "out"], tmp_path / "rows.jsonl", tmp_path / "answers.jsonl")
    assert json.loads((tmp_path / "answers.jsonl").read_text())["label"]


def test_generated_text_is_the_same(trained_run, tmp_path):
    folder = trained_run("t5", lora(), Seq2Seq(max_source_length=32, max_target_length=8), "demo-summaries")
    assert read_report(folder).round_trip["text_agreement"] == 1.0
    receipt = export(folder, tmp_path / "out")
    assert receipt.text_agreement == 1.0
    assert receipt.exported_difference <= 1e-4


@pytest.mark.integration
class TestOnnx:
    @pytest.fixture(autouse=True)
    def needs_onnx(self):
        pytest.importorskip("onnxruntime")

    def test_it_answers_as_the_model_does(self, trained_run, tmp_path):
        folder = trained_run("bert", qlora())
        receipt = export(folder, tmp_path / "out", format="onnx", int8=True)
        assert receipt.tolerance is None
        assert receipt.forms[0].form == "as trained, not merged"
        forms = {form.form: form for form in receipt.onnx_forms}
        assert forms["as ONNX, in float32"].divergence < 1e-7
        assert forms["as ONNX, in int8"].megabytes < 0.4 * forms["merged, in float32"].megabytes
        assert 0 < forms["as ONNX, in int8"].divergence < 0.01
        assert set(forms["as ONNX, in int8"].scores) == {"accuracy", "f1_macro"}
        assert not list((tmp_path / "out").glob("*.safetensors"))
        rows = tmp_path / "rows.jsonl"
        rows.write_text('{"text": "Return the mean."}\n{"text": "Parse it, and more."}\n')
        export(folder, tmp_path / "float", format="onnx", merge="dequantized")
        for source in ("run", "float"):
            predict([tmp_path / source], rows, tmp_path / f"{source}.jsonl")
        ours, theirs = (
            [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
            for name in ("run", "float")
        )
        for one, other in zip(ours, theirs, strict=True):
            assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-5)
        weights = tmp_path / "float" / "model.onnx.data"
        weights.write_bytes(weights.read_bytes()[:-1])
        with pytest.raises(UserError, match=r"model\.onnx\.data: wrong size"):
            predict([tmp_path / "float"], rows, tmp_path / "again.jsonl")

    def test_text_is_left_to_other_runtimes(self, trained_run, tmp_path):
        folder = trained_run("t5", lora(), Seq2Seq(max_source_length=32, max_target_length=8), "demo-summaries")
        receipt = export(folder, tmp_path / "out", format="onnx")
        assert receipt.exported_difference <= 1e-4
        (tmp_path / "rows.jsonl").write_text('{"source": "Return the mean."}\n')
        with pytest.raises(UserError, match="an ONNX export cannot generate text"):
            predict([tmp_path / "out"], tmp_path / "rows.jsonl", tmp_path / "answers.jsonl")


class TestGuards:
    """Each thing that can break on the way is refused with one line, and nothing is left."""

    @pytest.fixture(autouse=True)
    def nothing_is_left(self, tmp_path):
        yield
        assert not (tmp_path / "out").exists()
        assert not list(tmp_path.glob(".out*"))

    @pytest.mark.parametrize("key", ["classifier", "lora_B"])
    def test_a_changed_weight(self, trained_run, tmp_path, key):
        folder = trained_run()

        def spoil(weights):
            name = next(name for name in weights if key in name)
            weights[name] = weights[name] + torch.randn_like(weights[name])

        change(folder, spoil)
        with pytest.raises(UserError, match=r"wrong SHA-256; download or copy the folder again"):
            export(folder, tmp_path / "out")
        sign_again(folder)
        with pytest.raises(NotReproducedError, match=r"differs from the model in memory by .* \(tolerance 0\.0001\)"):
            export(folder, tmp_path / "out")

    def test_a_dropped_head(self, trained_run, tmp_path):
        folder = trained_run("t5")
        change(folder, lambda w: [w.pop(name) for name in list(w) if "classification_head" in name])
        with pytest.raises(UserError, match=r"wrong size \(expected .* bytes, got .*\)"):
            export(folder, tmp_path / "out")
        sign_again(folder)
        with pytest.raises(UserError, match="the adapter does not fit"):
            export(folder, tmp_path / "out")

    def test_swapped_labels(self, trained_run, tmp_path):
        folder = trained_run()
        config = json.loads((folder / "config.json").read_text())
        names = config["id2label"]
        names["0"], names["1"] = names["1"], names["0"]
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(UserError, match=r"label mismatch: config\.json has .*, the weights were trained with "):
            export(folder, tmp_path / "out")

    def test_another_base(self, trained_run, checkpoints, tmp_path):
        folder = trained_run()
        other = tmp_path / "other"
        shutil.copytree(checkpoints / "bert", other)
        weights = load_file(other / "model.safetensors")
        weights["embeddings.word_embeddings.weight"] += torch.randn_like(weights["embeddings.word_embeddings.weight"])
        save_file(weights, other / "model.safetensors", {"format": "pt"})
        recipe = (folder / "recipe.yaml").read_text()
        (folder / "recipe.yaml").write_text(recipe.replace(str(checkpoints / "bert"), str(other)))
        with pytest.raises(UserError, match=r"base model mismatch \(expected .*bert, \w+; got .*other, \w+\)"):
            export(folder, tmp_path / "out")
        contract = json.loads((folder / MANIFEST).read_text())
        contract["base"]["sha256"] = None
        (folder / MANIFEST).write_text(json.dumps(contract))
        with pytest.raises(NotReproducedError, match="the reloaded run differs"):
            export(folder, tmp_path / "out")

    def test_a_truncated_file(self, trained_run, tmp_path):
        folder = trained_run()
        path = folder / "adapter_model.safetensors"
        path.write_bytes(path.read_bytes()[:-100])
        with pytest.raises(UserError, match=r"adapter_model\.safetensors: wrong size .*; download or copy"):
            export(folder, tmp_path / "out")

    def test_another_tokenizer(self, trained_run, checkpoints, tmp_path):
        folder = trained_run()
        for name in ("tokenizer.json", "tokenizer_config.json"):
            text = (checkpoints / "gpt2" / name).read_text().replace('"the"', '"thé"')
            (folder / name).write_text(text)
        with pytest.raises(UserError, match=r"tokenizer mismatch \(expected 30,522 tokens, \w+; got 30,522"):
            export(folder, tmp_path / "out")

    def test_a_tolerance_that_nothing_passes(self, trained_run, tmp_path):
        with pytest.raises(NotReproducedError, match="tolerance -1"):
            export(trained_run(), tmp_path / "out", tolerance=-1.0)

    def test_words_that_do_not_fit(self, trained_run, tmp_path):
        folder = trained_run()
        for words, said in (
            ({"merge": "original"}, "--merge applies to quantized runs only"),
            ({"int8": True}, "--int8 applies to --format onnx only"),
            ({"format": "adapter", "dtype": "float16"}, "--dtype applies to merged weights only"),
            ({"format": "onnx", "dtype": "bfloat16"}, "ONNX exports are in float32"),
        ):
            with pytest.raises(UserError, match=said):
                export(folder, tmp_path / "out", **words)

    def test_t5_in_float16(self, trained_run, tmp_path):
        with pytest.raises(UserError, match="t5 overflows in float16"):
            export(trained_run("t5"), tmp_path / "out", dtype="float16")

    def test_what_is_no_run(self, tmp_path):
        with pytest.raises(UserError, match="not a finished run"):
            export(tmp_path, tmp_path / "out")


def test_a_folder_does_not_decide_whether_code_may_run(trained_run, checkpoints, tmp_path):
    """The base brings code, and the recipe in the folder says that it may run; who exports did not."""
    folder, other, ran = trained_run(), tmp_path / "other", tmp_path / "ran"
    shutil.copytree(checkpoints / "bert", other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoConfig": "own.OwnConfig"}}))
    (other / "own.py").write_text(
        f"from transformers import BertConfig\nopen({str(ran)!r}, 'w').close()\nclass OwnConfig(BertConfig): pass\n"
    )
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    recipe["model"] = {"name_or_path": str(other), "trust_remote_code": True}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    export(folder, tmp_path / "out", format="adapter")
    assert not ran.exists()
    # With the option the code runs; transformers then rejects the class.
    with pytest.raises(UserError, match="Unrecognized configuration class"):
        export(folder, tmp_path / "trusted", format="adapter", trust_remote_code=True)
    assert ran.exists()


def test_a_broken_export_is_refused_by_who_loads_it(trained_run, tmp_path):
    out = tmp_path / "out"
    export(trained_run(), out)
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "Return the mean."}\n')
    weights, config = (out / "model.safetensors").read_bytes(), (out / "config.json").read_text()
    (out / "model.safetensors").write_bytes(weights[:5000])
    with pytest.raises(UserError, match=r"model\.safetensors: wrong size .* got 5,000\)"):
        predict([out], rows, tmp_path / "a.jsonl")
    (out / "model.safetensors").write_bytes(weights)
    tensors = load_file(out / "model.safetensors")
    save_file({n: t for n, t in tensors.items() if "classifier" not in n}, out / "model.safetensors", {"format": "pt"})
    sign_again(out)
    with pytest.raises(UserError, match=r"missing weights classifier\.bias, classifier\.weight"):
        predict([out], rows, tmp_path / "a.jsonl")
    (out / "model.safetensors").write_bytes(weights)
    sign_again(out)
    swapped = json.loads(config)
    swapped["id2label"] |= {"0": swapped["id2label"]["1"], "1": swapped["id2label"]["0"]}
    (out / "config.json").write_text(json.dumps(swapped))
    with pytest.raises(UserError, match="label mismatch"):
        predict([out], rows, tmp_path / "a.jsonl")
    assert not (tmp_path / "a.jsonl").exists()


def test_no_home_path_and_no_row_of_the_data_leaves(trained_run, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path.parent))
    folder = trained_run()
    export(folder, tmp_path / "out")
    for path in (path for path in (tmp_path / "out").rglob("*") if path.is_file()):
        assert str(tmp_path.parent).encode() not in path.read_bytes(), path.name


def test_a_split_base_is_merged_file_by_file(trained_run, tmp_path, monkeypatch):
    monkeypatch.setattr("peftkit.export.merging.MAX_SINGLE_FILE_BYTES", 1_000_000)
    monkeypatch.setattr("peftkit.export.merging.MIN_SHARD_BYTES", 400_000)
    monkeypatch.setattr("peftkit.export.merging.MAX_SHARD_BYTES", 500_000)
    receipt = export(trained_run(), tmp_path / "out")
    files = list((tmp_path / "out").glob("model-*-of-*.safetensors"))
    assert len(files) == 3
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert {path.name for path in files} == set(index["weight_map"].values())
    assert receipt.exported_difference <= 1e-4
