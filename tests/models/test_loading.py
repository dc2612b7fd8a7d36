from dataclasses import replace

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    TrainingArguments,
)

from peftkit import (
    ModelConfig,
    MultiLabelClassification,
    Quantization,
    Seq2Seq,
    SequenceClassification,
    TokenClassification,
    qlora,
)
from peftkit.errors import UserError
from peftkit.models.adapters import apply_method
from peftkit.models.loading import (
    check_precision,
    find_head_modules,
    find_task_modules,
    load_base,
    load_finished_model,
    load_tokenizer,
    match_checkpoint_labels,
    resolve_source,
)

TASK = SequenceClassification(max_length=32)


def load(folder, task=TASK, quantization=None, dtype="float32"):
    config = ModelConfig(name_or_path=str(folder), dtype=dtype)
    return load_base(config, task, load_tokenizer(config, task), ("a", "b"), quantization)


@pytest.mark.parametrize(
    ("architecture", "head"),
    [
        ("bert", ("bert.pooler", "classifier")),
        ("roberta", ("classifier",)),
        ("deberta", ("classifier", "pooler")),
        ("t5", ("classification_head",)),
        ("bart", ("classification_head",)),
        ("gpt2", ("score",)),
    ],
)
def test_the_head_is_what_the_checkpoint_did_not_bring(checkpoints, architecture, head):
    loaded = load(checkpoints / architecture)
    assert loaded.head == head
    assert loaded.model.accepts_loss_kwargs is False


@pytest.mark.parametrize("architecture", ["bert", "roberta", "deberta", "t5", "bart"])
def test_all_but_the_head_is_in_four_bits(checkpoints, architecture):
    loaded = load(checkpoints / architecture, quantization=Quantization())
    quantized = {name for name, p in loaded.model.named_parameters() if hasattr(p, "quant_state")}
    assert quantized
    assert not {name for name in quantized if name.startswith(loaded.head)}
    linear = [n for n, m in loaded.model.named_modules() if type(m).__name__ == "Linear"]
    # transformers keeps T5's `wo`, which overflows in 16 bits, in full precision.
    assert all(name.startswith(loaded.head) or name.endswith(".wo") for name in linear)


@pytest.mark.parametrize("architecture", ["bert", "t5", "gpt2"])
def test_a_head_of_the_checkpoint_is_not_in_four_bits(checkpoints, tmp_path, architecture):
    model = AutoModelForSequenceClassification.from_pretrained(checkpoints / architecture, num_labels=2)
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(checkpoints / architecture).save_pretrained(tmp_path)
    method = qlora()
    loaded = load(tmp_path, quantization=method.quantization)
    assert loaded.head == ()
    packed = {name for name, parameter in loaded.model.named_parameters() if hasattr(parameter, "quant_state")}
    assert packed
    assert not {name for name in packed if name.startswith(find_task_modules(loaded.model))}
    # peft trains a head that is called `classifier` or `score`, which fails in 4 bits.
    apply_method(method, loaded.model, loaded.head, TASK.model.peft_task_type)


def test_a_head_of_another_size_counts_as_not_brought(checkpoints, tmp_path):
    five = AutoModelForSequenceClassification.from_pretrained(checkpoints / "bert", num_labels=5)
    five.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(checkpoints / "bert").save_pretrained(tmp_path)
    loaded = load(tmp_path)
    assert loaded.head == ("classifier",)
    assert loaded.model.classifier.out_features == 2


def test_the_head_is_the_outermost_module_that_is_all_new(checkpoints):
    model = load(checkpoints / "roberta").model
    assert find_head_modules(model, {"classifier.dense.weight", "classifier.dense.bias"}) == ("classifier.dense",)
    # One weight of a module is enough: its module is trained and saved.
    assert find_head_modules(model, {"classifier.dense.bias"}) == ("classifier.dense",)


def test_a_model_without_its_head_is_not_finished(checkpoints):
    with pytest.raises(UserError, match="missing weights"):
        load_finished_model(checkpoints / "bert", TASK)


@pytest.mark.parametrize("name", ["./nowhere", "no-such/model-anywhere"])
def test_a_model_that_cannot_be_had_is_one_line(name):
    with pytest.raises(UserError, match=f"model.name_or_path: {name}") as raised:
        load_tokenizer(ModelConfig(name_or_path=name), TASK)
    assert "\n" not in str(raised.value)


def test_the_demo_is_a_pretrained_bert():
    loaded = load("demo")
    assert resolve_source(ModelConfig()).endswith("model")
    assert loaded.head == ("classifier",)
    assert loaded.model.config.model_type == "bert"


@pytest.mark.parametrize("architecture", ["gpt2", "bart", "t5"])
def test_logits_do_not_depend_on_the_batch(checkpoints, architecture):
    config = ModelConfig(name_or_path=str(checkpoints / architecture))
    tokenizer = load_tokenizer(config, TASK)
    model = load_base(config, TASK, tokenizer, ("a", "b")).model.eval()
    assert tokenizer.pad_token_id == model.config.pad_token_id is not None
    assert tokenizer.padding_side == "right"
    texts = ["Return the mean.", "Return the mean of an array along the axis that was given, or of all of it."]
    with torch.no_grad():
        together = model(**tokenizer(texts, padding=True, return_tensors="pt")).logits
        alone = model(**tokenizer(texts[:1], return_tensors="pt")).logits
    assert torch.allclose(together[:1], alone, atol=1e-6)


def test_an_encoder_becomes_an_encoder_decoder(checkpoints):
    loaded = load(checkpoints / "bert", Seq2Seq())
    assert loaded.model.config.model_type == "encoder-decoder"
    assert [name for name in loaded.head if name.endswith("crossattention")]
    assert all("crossattention" in name or name.endswith("predictions.transform") for name in loaded.head)
    encoder = loaded.model.encoder.embeddings.word_embeddings.weight
    assert torch.equal(encoder, loaded.model.decoder.bert.embeddings.word_embeddings.weight)
    assert loaded.model.generation_config.decoder_start_token_id == 101


def test_a_decoder_is_no_encoder_decoder(checkpoints):
    with pytest.raises(UserError, match="gpt2 is neither an encoder-decoder nor"):
        load(checkpoints / "gpt2", Seq2Seq())


@pytest.mark.parametrize(
    ("dtype", "compute", "fields", "option"),
    [
        ("float32", "auto", {"fp16": True}, "training.fp16"),
        ("float32", "auto", {"fp16_full_eval": True}, "training.fp16_full_eval"),
        ("float32", "float16", {}, "method.quantization.bnb_4bit_compute_dtype"),
        ("float16", "auto", {}, "model.dtype"),
    ],
)
def test_t5_in_float16_is_refused(checkpoints, dtype, compute, fields, option):
    arguments, quantization = TrainingArguments(use_cpu=True), Quantization(bnb_4bit_compute_dtype=compute)
    for name, value in fields.items():
        # Set afterwards: on a CPU the library refuses them.
        object.__setattr__(arguments, name, value)
    for task in (TASK, Seq2Seq()):
        with pytest.raises(UserError, match=f"{option}: t5 overflows in float16"):
            check_precision(load(checkpoints / "t5", task, dtype=dtype).model, quantization, arguments)
    check_precision(load(checkpoints / "bert").model, quantization, arguments)


def test_a_length_that_holds_no_text_is_refused(checkpoints):
    for length in (-3, 0, 2):
        with pytest.raises(UserError, match=rf"task\.max_length: must be at least 3, got {length}"):
            load_tokenizer(ModelConfig(name_or_path=str(checkpoints / "bert")), replace(TASK, max_length=length))


@pytest.mark.parametrize("task", [SequenceClassification(), MultiLabelClassification(), TokenClassification()])
@pytest.mark.parametrize("architecture", ["bert", "roberta", "deberta"])
def test_labels_follow_the_head_of_the_checkpoint(checkpoints, tmp_path, caplog, task, architecture):
    order = {0: "pos", 1: "neg", 2: "neutral"}
    model = task.model.auto_class.from_pretrained(
        checkpoints / architecture, id2label=order, label2id={name: index for index, name in order.items()}
    )
    model.save_pretrained(tmp_path)
    config = ModelConfig(name_or_path=str(tmp_path))
    caplog.set_level("INFO", logger="peftkit")
    by_name = ("neg", "neutral", "pos")
    assert match_checkpoint_labels(config, task, by_name) == ("pos", "neg", "neutral")
    assert "label order taken from the checkpoint's head: pos, neg, neutral" in caplog.text
    assert match_checkpoint_labels(config, task, ("Neg", "Neutral", "Pos")) == ("Pos", "Neg", "Neutral")
    # Another number of labels gets a new head; without a head there is no order to keep.
    assert match_checkpoint_labels(config, task, ("neg", "pos")) == ("neg", "pos")
    bare = ModelConfig(name_or_path=str(checkpoints / architecture))
    assert match_checkpoint_labels(bare, task, by_name) == by_name
    assert "trained for labels" not in caplog.text
    assert match_checkpoint_labels(config, task, ("a", "b", "c")) == ("a", "b", "c")
    assert "trained for labels pos, neg, neutral; using its rows in this order for a, b, c" in caplog.text
