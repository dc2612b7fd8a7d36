import pytest
from peft import IA3Config, PrefixTuningConfig

from peftkit import Method, Quantization, SequenceClassification, full, lora
from peftkit.errors import UserError
from peftkit.recipe.method import find_method, get_default_learning_rate

TASK = SequenceClassification(max_length=32)
LABELS = ("a", "b", "c")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("full", lambda m: m.peft is None and m.quantization is None),
        ("lora", lambda m: m.peft.r == 5 and not m.peft.use_dora),
        ("qlora", lambda m: m.peft.r == 5 and m.quantization == Quantization()),
        ("dora", lambda m: m.peft.r == 5 and m.peft.use_dora),
        ("rslora", lambda m: m.peft.r == 5 and m.peft.use_rslora),
        ("ia3", lambda m: isinstance(m.peft, IA3Config)),
    ],
)
def test_a_method_by_its_name_shares_the_recipes_lora(name, expected):
    assert expected(find_method(name, lora(r=5)))


@pytest.mark.parametrize(("name", "message"), [("loraa", "use 'lora'"), ("prefix_tunin", "'prefix_tuning'")])
def test_an_unknown_method_names_the_nearest(name, message):
    with pytest.raises(UserError, match=message):
        find_method(name, lora())


def test_a_method_without_adapter_cannot_be_quantized():
    with pytest.raises(UserError, match=r"method\.quantization"):
        Method(name="x", quantization=Quantization())


def test_adapters_start_from_a_higher_learning_rate():
    assert get_default_learning_rate(full()) < get_default_learning_rate(lora())
    assert get_default_learning_rate(Method(name="p", peft=PrefixTuningConfig(num_virtual_tokens=4))) == 1e-3
