import copy
import logging
import subprocess
import sys

import pytest
import torch
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    CanineConfig,
    LongformerConfig,
)

from peftkit.errors import UserError
from peftkit.models.onnx import OnnxModel, write_onnx

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
# One worker exports the model of the fixture.
pytestmark = pytest.mark.xdist_group("onnx")

# One row of two tokens, the least that a tokenizer gives: nothing of it may become a constant.
SMALLEST = [""]
# Rows of different lengths, so that all but one are padded, in batches of two shapes.
OTHERS = (
    ["Sort the rows.", "Return the mean of the array along the given axis, ignoring every missing value.", "Close it."],
    ["Read one line.", "Draw."],
)
TEXTS = [text for texts in OTHERS for text in texts]
NAMES = ("read", "write", "sort", "draw")
CASES = {
    "deberta": (AutoModelForSequenceClassification, {"num_hidden_layers": 1}),
    # These two read the last end of sentence and the last token that is no padding.
    "t5": (AutoModelForSequenceClassification, {"num_layers": 1, "num_decoder_layers": 1}),
    "gpt2": (AutoModelForSequenceClassification, {"n_layer": 1}),
    "roberta": (AutoModelForTokenClassification, {"num_hidden_layers": 1}),
    "bart": (AutoModelForSeq2SeqLM, {"encoder_layers": 1, "decoder_layers": 1}),
}
# As the README has it.
EXAMPLE = """
import json, sys
import numpy, onnxruntime, tokenizers

folder, *texts = sys.argv[1:]
tokenizer = tokenizers.Tokenizer.from_file(f"{folder}/tokenizer.json")
tokenizer.enable_truncation(128)
tokenizer.enable_padding()
session = onnxruntime.InferenceSession(f"{folder}/model.onnx")
names = json.load(open(f"{folder}/config.json"))["id2label"]

rows = tokenizer.encode_batch(texts)
read = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
inputs = {one.name: numpy.array([getattr(row, read[one.name]) for row in rows]) for one in session.get_inputs()}
for text, logits in zip(texts, session.run(["logits"], inputs)[0]):
    print(names[str(logits.argmax())], text, sep="\\t")
"""


def small_model(folder, auto_model=AutoModelForSequenceClassification, **options):
    torch.manual_seed(0)
    labels = {} if auto_model is AutoModelForSeq2SeqLM else {"id2label": dict(enumerate(NAMES))}
    model = auto_model.from_pretrained(folder, **labels, **options).eval()
    if model.config.model_type != "t5":
        # New weights are so small that attention would be nearly even, and padding nearly without effect.
        for weight in (weight for weight in model.parameters() if weight.dim() > 1):
            weight.data *= 8
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model.config.pad_token_id = tokenizer.pad_token_id
    return model, tokenizer


def batch_of(model, tokenizer, texts):
    segments = model.config.model_type == "bert"
    batch = dict(tokenizer(texts, padding=True, return_token_type_ids=segments, return_tensors="pt"))
    if type(model).__name__.endswith("ConditionalGeneration"):
        batch["decoder_input_ids"] = batch["input_ids"][:, : max(2, batch["input_ids"].shape[1] // 2)]
    return batch


@torch.no_grad()
def difference(model, exported, batch):
    logits = exported(**batch).logits
    expected = model(**batch).logits
    assert logits.dtype == torch.float32
    assert logits.shape == expected.shape
    return float((logits - expected).abs().max())


@pytest.fixture(scope="module")
def classifier(checkpoints, tmp_path_factory):
    """A small BERT, its tokenizer, and the folder of its ONNX file."""
    folder = tmp_path_factory.mktemp("onnx")
    model, tokenizer = small_model(checkpoints / "bert", num_hidden_layers=1)
    tokenizer.save_pretrained(folder)
    with torch.no_grad():
        # No label is to be the answer to all of them.
        model.classifier.bias -= model(**batch_of(model, tokenizer, TEXTS)).logits.mean(0)
    write_onnx(model, batch_of(model, tokenizer, SMALLEST), folder)
    return model, tokenizer, folder


@pytest.mark.parametrize("architecture", CASES)
def test_it_answers_as_the_model_does_at_other_shapes(checkpoints, tmp_path, architecture):
    auto_model, options = CASES[architecture]
    model, tokenizer = small_model(checkpoints / architecture, auto_model, **options)
    write_onnx(model, batch_of(model, tokenizer, SMALLEST), tmp_path)
    outputs = onnx.load(tmp_path / "model.onnx", load_external_data=False).graph.output
    assert [output.name for output in outputs] == ["logits"]
    exported = OnnxModel(tmp_path)
    for texts in OTHERS:
        assert difference(model, exported, batch_of(model, tokenizer, texts)) <= 1e-4


def test_a_folder_is_asked_as_a_model_is(classifier):
    model, tokenizer, folder = classifier
    exported = OnnxModel(folder)
    for texts in OTHERS:
        batch = batch_of(model, tokenizer, texts)
        assert difference(model, exported, batch) <= 1e-4
        assert torch.equal(exported(**batch, unknown=batch["input_ids"]).logits, exported(**batch).logits)


def test_the_folder_names_the_model_and_no_place_of_this_machine(classifier):
    model, _, folder = classifier
    exported = OnnxModel(folder)
    assert exported.config.architectures == ["BertForSequenceClassification"]
    assert exported.config.id2label == dict(enumerate(NAMES))
    assert exported.device == torch.device("cpu")
    assert b"site-packages" not in (folder / "model.onnx").read_bytes()
    assert (folder / "model.onnx.data").stat().st_size > 4 * model.num_parameters() * 0.9


def test_int8_is_small_and_close_and_the_model_stays_as_it_was(checkpoints, classifier, tmp_path, capfd, monkeypatch):
    model, tokenizer = small_model(checkpoints / "bert", num_hidden_layers=1)
    model.classifier.bias.data.copy_(classifier[0].classifier.bias)
    model.train()
    model.dropout.eval()
    attributes, config = set(vars(model)), copy.deepcopy(model.config.to_dict())
    training = [module.training for module in model.modules()]
    weights = copy.deepcopy(model.state_dict())
    # The quantizer of onnxruntime adds a handler to a root logger without handlers.
    with monkeypatch.context() as patch:
        patch.setattr(logging.root, "handlers", [])
        write_onnx(model, batch_of(model, tokenizer, SMALLEST), tmp_path, int8=True)
        assert logging.root.handlers == []
    assert logging.root.manager.disable == logging.NOTSET
    assert capfd.readouterr() == ("", "")
    assert set(vars(model)) == attributes
    assert model.config.to_dict() == config
    assert [module.training for module in model.modules()] == training
    assert all(torch.equal(weight, weights[name]) for name, weight in model.state_dict().items())
    assert b"Dropout" not in (tmp_path / "model.onnx").read_bytes()
    folder = classifier[2]
    sizes = [sum(path.stat().st_size for path in place.glob("model.onnx*")) for place in (tmp_path, folder)]
    assert sizes[0] < sizes[1] / 2
    model.eval()
    for texts in OTHERS:
        batch = batch_of(model, tokenizer, texts)
        scale = OnnxModel(folder)(**batch).logits.abs().max()
        assert 1e-4 < difference(model, OnnxModel(tmp_path), batch) < 0.2 * scale


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (LongformerConfig(attention_window=8), "Could not guard"),
        (CanineConfig(), r"the input would have a fixed size \(input_ids of any x 8\)"),
    ],
    ids=["longformer", "canine"],
)
def test_what_the_library_cannot_do_is_one_line(tmp_path, capfd, config, reason):
    config.update(
        {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 99}
    )
    model = AutoModelForSequenceClassification.from_config(config).eval()
    own = set(vars(model))
    ids = torch.full((2, 8), 5)
    with pytest.raises(UserError, match=reason) as caught:
        write_onnx(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, tmp_path)
    assert str(caught.value).startswith(f"export: cannot export {type(model).__name__} to ONNX: ")
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")
    assert set(vars(model)) == own
    assert model.training is False
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_package_that_is_not_there(classifier, tmp_path, monkeypatch, package):
    model, tokenizer, _ = classifier
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        UserError, match=r"^export: ONNX packages are not installed; run pip install 'peftkit\[onnx\]'$"
    ):
        write_onnx(model, batch_of(model, tokenizer, SMALLEST), tmp_path)


def test_the_example_answers_without_torch(classifier):
    model, tokenizer, folder = classifier
    with torch.no_grad():
        expected = [NAMES[label] for label in model(**batch_of(model, tokenizer, TEXTS)).logits.argmax(-1)]
    assert len(set(expected)) > 1
    proof = "assert not {'torch', 'transformers'} & set(sys.modules)"
    done = subprocess.run(
        [sys.executable, "-I", "-c", EXAMPLE + proof, folder, *TEXTS], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == [f"{label}\t{text}" for label, text in zip(expected, TEXTS, strict=True)]
