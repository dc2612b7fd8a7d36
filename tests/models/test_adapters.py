import pytest
from peft import LoraConfig, get_peft_model

from peftkit import ModelConfig, Quantization, SequenceClassification, full, lora, qlora
from peftkit.errors import AuditError, UserError
from peftkit.models.adapters import apply_method, check_head, remove_peft_prefix
from peftkit.models.loading import load_base, load_tokenizer

TASK = SequenceClassification(max_length=32)
LABELS = ("a", "b", "c")


def base(checkpoints, architecture, quantization=None):
    config = ModelConfig(name_or_path=str(checkpoints / architecture))
    return load_base(config, TASK, load_tokenizer(config, TASK), LABELS, quantization)


@pytest.mark.parametrize("architecture", ["bert", "roberta", "deberta", "t5"])
@pytest.mark.parametrize("method", [full(), lora(), qlora()], ids=lambda m: m.name)
def test_the_head_is_trained_and_not_quantized_whatever_it_is_called(checkpoints, architecture, method):
    loaded = base(checkpoints, architecture, method.quantization)
    model = apply_method(method, loaded.model, loaded.head, TASK.model.peft_task_type)
    check_head(model, set(loaded.missing_keys))
    trainable = {remove_peft_prefix(name) for name, p in model.named_parameters() if p.requires_grad}
    assert set(loaded.missing_keys) <= trainable


def test_the_head_contract_fails_on_a_head_that_peft_leaves_frozen(checkpoints):
    loaded = base(checkpoints, "t5")
    # peft alone knows heads by two names, and T5's has another.
    model = get_peft_model(loaded.model, LoraConfig(task_type="SEQ_CLS", target_modules=["q", "v"]))
    with pytest.raises(AuditError, match=r"new parameters are frozen .*: classification_head\.dense\.bias"):
        check_head(model, set(loaded.missing_keys))


def test_the_head_contract_fails_on_a_quantized_head(checkpoints):
    loaded = base(checkpoints, "bert", Quantization())
    broken = TASK.model.auto_class.from_pretrained(
        checkpoints / "bert", quantization_config=Quantization().config(("another",)), num_labels=3, dtype="float32"
    )
    with pytest.raises(AuditError, match=r"new parameters are quantized .*: .*classifier\.weight"):
        check_head(broken, set(loaded.missing_keys))


def test_a_config_that_does_not_fit_is_one_line(checkpoints):
    loaded = base(checkpoints, "bert")
    with pytest.raises(
        UserError, match=r"target_modules: no module 'nothing'; use one of LayerNorm, classifier, dense"
    ):
        apply_method(lora(target_modules=["query", "nothing"]), loaded.model, loaded.head, TASK.model.peft_task_type)
    with pytest.raises(UserError, match=r"method\.peft: LoraConfig does not fit BertForSeq.*: "):
        apply_method(lora(target_modules=["dropout"]), loaded.model, loaded.head, TASK.model.peft_task_type)


def test_the_recipes_own_config_is_left_as_it_was(checkpoints):
    loaded, method = base(checkpoints, "bert"), lora()
    apply_method(method, loaded.model, loaded.head, TASK.model.peft_task_type)
    assert method.peft.modules_to_save is None
    assert method.peft.task_type is None


@pytest.mark.parametrize(
    ("wrapped", "plain"),
    [
        ("base_model.model.bert.pooler.dense.weight", "bert.pooler.dense.weight"),
        ("base_model.model.classifier.modules_to_save.default.weight", "classifier.weight"),
        ("base_model.model.classifier.original_module.weight", "classifier.weight"),
        ("base_model.model.x.query.base_layer.weight", "x.query.weight"),
        ("classifier.weight", "classifier.weight"),
    ],
)
def test_plain_names(wrapped, plain):
    assert remove_peft_prefix(wrapped) == plain
