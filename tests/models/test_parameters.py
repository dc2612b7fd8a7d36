from peftkit import SequenceClassification
from peftkit.models.loading import load_base, load_tokenizer
from peftkit.models.parameters import count_parameters
from peftkit.recipe.method import Quantization
from peftkit.recipe.schema import ModelConfig


def test_four_bit_weights_count_as_weights(checkpoints):
    config, task = ModelConfig(name_or_path=str(checkpoints / "bert")), SequenceClassification()
    full = load_base(config, task, load_tokenizer(config, task), ("a", "b")).model
    small = load_base(config, task, load_tokenizer(config, task), ("a", "b"), Quantization()).model
    assert count_parameters(small)["total"] == count_parameters(full)["total"]
    assert count_parameters(full)["total"] == sum(p.numel() for p in full.parameters())
