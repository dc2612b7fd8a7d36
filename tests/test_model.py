import pytest
from transformers import AutoModelForSequenceClassification

from peftkit import ModelConfig, Quantization, SequenceClassification
from peftkit.errors import UserError
from peftkit.model import head_modules, load_base, load_finished, load_tokenizer, source

TASK = SequenceClassification(max_length=32)


@pytest.mark.parametrize(
    ("architecture", "head"),
    [
        ("bert", ("bert.pooler", "classifier")),
        ("roberta", ("classifier",)),
        ("deberta", ("classifier", "pooler")),
        ("t5", ("classification_head",)),
    ],
)
def test_the_head_is_what_the_checkpoint_did_not_bring(checkpoints, architecture, head):
    loaded = load_base(ModelConfig(name_or_path=str(checkpoints / architecture)), TASK, ("a", "b"))
    assert loaded.head == head
    assert loaded.model.accepts_loss_kwargs is False


@pytest.mark.parametrize("architecture", ["bert", "roberta", "deberta", "t5"])
def test_all_but_the_head_is_in_four_bits(checkpoints, architecture):
    config = ModelConfig(name_or_path=str(checkpoints / architecture))
    loaded = load_base(config, TASK, ("a", "b"), Quantization())
    quantized = {name for name, p in loaded.model.named_parameters() if hasattr(p, "quant_state")}
    assert quantized
    assert not {name for name in quantized if name.startswith(loaded.head)}
    linear = [n for n, m in loaded.model.named_modules() if type(m).__name__ == "Linear"]
    # transformers keeps T5's `wo`, which overflows in 16 bits, in full precision.
    assert all(name.startswith(loaded.head) or name.endswith(".wo") for name in linear)


def test_a_head_of_another_size_counts_as_not_brought(checkpoints, tmp_path):
    five = AutoModelForSequenceClassification.from_pretrained(checkpoints / "bert", num_labels=5)
    five.save_pretrained(tmp_path)
    loaded = load_base(ModelConfig(name_or_path=str(tmp_path)), TASK, ("a", "b"))
    assert loaded.head == ("classifier",)
    assert loaded.model.classifier.out_features == 2


def test_the_head_is_the_outermost_module_that_is_all_new(checkpoints):
    model = load_base(ModelConfig(name_or_path=str(checkpoints / "roberta")), TASK, ("a", "b")).model
    assert head_modules(model, {"classifier.dense.weight", "classifier.dense.bias"}) == ("classifier.dense",)
    # One weight of a module is enough: its module is trained and saved.
    assert head_modules(model, {"classifier.dense.bias"}) == ("classifier.dense",)


def test_a_model_without_its_head_is_not_finished(checkpoints):
    with pytest.raises(UserError, match="lacks the weights"):
        load_finished(checkpoints / "bert", TASK)


@pytest.mark.parametrize("name", ["./nowhere", "no-such/model-anywhere"])
def test_a_model_that_cannot_be_had_is_one_line(name):
    with pytest.raises(UserError, match=f"model.name_or_path: {name}") as raised:
        load_tokenizer(ModelConfig(name_or_path=name))
    assert "\n" not in str(raised.value)


def test_the_demo_is_a_pretrained_bert():
    loaded = load_base(ModelConfig(), TASK, ("a", "b"))
    assert source(ModelConfig()).endswith("model")
    assert loaded.head == ("classifier",)
    assert loaded.model.config.model_type == "bert"
