import pytest
import torch
from transformers import (
    AutoConfig,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    EncoderDecoderConfig,
    MPNetConfig,
    MPNetForSequenceClassification,
)

from peftkit import (
    ModelConfig,
    Seq2Seq,
    SequenceClassification,
)
from peftkit.models.loading import (
    load_base,
    load_tokenizer,
)
from peftkit.models.positions import find_position_limit, read_position_limit

TASK = SequenceClassification(max_length=32)


def load(folder, task=TASK, quantization=None, dtype="float32"):
    config = ModelConfig(name_or_path=str(folder), dtype=dtype)
    return load_base(config, task, load_tokenizer(config, task), ("a", "b"), quantization)


@pytest.mark.parametrize(
    ("architecture", "task", "limit"),
    [
        ("bert", TASK, 512),
        ("roberta", TASK, 513),
        ("bart", Seq2Seq(), 512),
        ("gpt2", TASK, 512),
        ("t5", Seq2Seq(), None),
        ("bert", Seq2Seq(), 512),
    ],
)
def test_positions_end_where_the_model_ends(checkpoints, architecture, task, limit):
    loaded = load(checkpoints / architecture, task)
    assert find_position_limit(loaded.model) == limit
    if architecture in ("bert", "roberta") and task is TASK:
        most = torch.full((1, limit), 5)
        with torch.no_grad():
            loaded.model(input_ids=most, attention_mask=torch.ones_like(most))
            with pytest.raises((IndexError, RuntimeError)):
                loaded.model(input_ids=torch.full((1, limit + 1), 5), attention_mask=torch.ones(1, limit + 1))


def test_positions_are_told_by_their_table_and_not_by_the_config():
    few = {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "vocab_size": 50,
    }
    mpnet = MPNetForSequenceClassification(MPNetConfig(**few, max_position_embeddings=66))
    assert find_position_limit(mpnet) == 64
    mpnet(input_ids=torch.full((1, 64), 5))
    with pytest.raises((IndexError, RuntimeError)):
        mpnet(input_ids=torch.full((1, 65), 5))
    deberta = DebertaV2ForSequenceClassification(
        DebertaV2Config(**few, max_position_embeddings=16, position_biased_input=False, relative_attention=True)
    )
    assert find_position_limit(deberta) is None
    deberta(input_ids=torch.full((1, 40), 5))


def test_relative_positions_have_no_end(checkpoints):
    model = load(checkpoints / "t5").model
    model.config.n_positions = 512
    assert find_position_limit(model) is None


def test_positions_are_known_before_weights(checkpoints, tmp_path):
    bert = AutoConfig.from_pretrained(checkpoints / "bert")
    EncoderDecoderConfig.from_encoder_decoder_configs(bert, bert).save_pretrained(tmp_path)
    assert read_position_limit(ModelConfig(name_or_path=str(tmp_path))) == 512
    for architecture, limit in (("bert", 512), ("roberta", 513), ("t5", None), ("gpt2", 512)):
        assert read_position_limit(ModelConfig(name_or_path=str(checkpoints / architecture))) == limit
