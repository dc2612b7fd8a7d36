import json

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file
from torch import nn

from peftkit import ModelConfig, Quantization, SequenceClassification, qlora
from peftkit.export.merging import ShardWriter, find_packed_weights, make_dequantizer, write_merged
from peftkit.models.adapters import apply_method, prepare_quantized_model
from peftkit.models.loading import load_base, load_tokenizer

TASK = SequenceClassification(max_length=32)


def base_of(folder, quantization=None):
    config = ModelConfig(name_or_path=str(folder))
    torch.manual_seed(0)
    return load_base(config, TASK, load_tokenizer(config, TASK), ("a", "b"), quantization)


@pytest.mark.parametrize("architecture", ["bert", "t5", "gpt2"])
def test_dequantized_weights_are_those_that_a_4_bit_model_computes_with(checkpoints, architecture):
    import bitsandbytes

    quantization = Quantization()
    packed = base_of(checkpoints / architecture, quantization).model
    packed = prepare_quantized_model(packed)
    plain = dict(base_of(checkpoints / architecture).model.named_parameters())
    names = find_packed_weights(packed)
    assert len(names) >= 8
    weight_of = make_dequantizer(quantization, names, torch.float32)
    for name, parameter in packed.named_parameters():
        if name in names:
            state = parameter.quant_state
            expected = bitsandbytes.functional.dequantize_4bit(parameter.data, state).to(torch.float32)
            # A transposed layer of GPT-2's is packed the other way round.
            expected = expected.T if names[name] else expected
            assert torch.equal(weight_of(name, plain[name]), expected), name
            assert not torch.equal(expected, plain[name])
        elif name in plain:
            assert weight_of(name, plain[name]) is plain[name]


def test_what_no_adapter_is_on_is_dequantized_too(checkpoints, tmp_path):
    method = qlora(target_modules=["query"])
    packed = base_of(checkpoints / "bert", Quantization())
    names = find_packed_weights(apply_method(method, packed.model, packed.head, "SEQ_CLS"))
    assert any("dense" in name for name in names)
    base = base_of(checkpoints / "bert")
    before = base.model.bert.encoder.layer[0].output.dense.weight.clone()
    config = LoraConfig(target_modules=["query"], init_lora_weights=False)
    model = apply_method(type(method)(peft=config), base.model, base.head, "SEQ_CLS")
    weight_of = make_dequantizer(Quantization(), names, torch.float32)
    write_merged(model, tmp_path, torch.float32, weight_of)
    written = load_file(tmp_path / "model.safetensors")
    name = "bert.encoder.layer.0.output.dense.weight"
    assert torch.equal(written[name], weight_of(name, before))


def test_merging_in_16_bits_rounds_once(checkpoints, tmp_path):
    """The sum of base and adapter is taken in float32, and only what is written is rounded."""
    base = base_of(checkpoints / "bert")
    layer = base.model.bert.encoder.layer[0].attention.self.query
    before = layer.weight.clone()
    config = LoraConfig(target_modules=["query"], init_lora_weights=False)
    model = apply_method(qlora().__class__(peft=config), base.model, base.head, "SEQ_CLS")
    adapted = model.base_model.model.bert.encoder.layer[0].attention.self.query
    delta = adapted.get_delta_weight("default").detach()
    write_merged(model, tmp_path, torch.bfloat16)
    written = load_file(tmp_path / "model.safetensors")["bert.encoder.layer.0.attention.self.query.weight"]
    assert torch.equal(written, (before + delta).to(torch.bfloat16))


def test_tied_weights_are_written_once(checkpoints, tmp_path):
    from transformers import AutoConfig, AutoModelForSeq2SeqLM

    config = AutoConfig.from_pretrained(checkpoints / "t5")
    model = AutoModelForSeq2SeqLM.from_config(config).eval()
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        expected = model(input_ids=ids, decoder_input_ids=ids).logits
    model.save_pretrained(tmp_path / "theirs")
    write_merged(model, tmp_path, torch.float32)
    ours, theirs = (set(load_file(path / "model.safetensors")) for path in (tmp_path, tmp_path / "theirs"))
    assert ours == theirs
    again, info = AutoModelForSeq2SeqLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    with torch.no_grad():
        assert torch.equal(again(input_ids=ids, decoder_input_ids=ids).logits, expected)


def test_files_hold_no_more_than_they_may(tmp_path, monkeypatch):
    monkeypatch.setattr("peftkit.export.merging.MAX_SINGLE_FILE_BYTES", 100)
    monkeypatch.setattr("peftkit.export.merging.MIN_SHARD_BYTES", 100)
    monkeypatch.setattr("peftkit.export.merging.MAX_SHARD_BYTES", 1000)
    tensors = {f"layer.{place}": torch.full((10, 10), float(place)) for place in range(7)}
    writer = ShardWriter(tmp_path, 20_000)
    for name, tensor in tensors.items():
        writer.add(name, tensor)
    writer.finish()
    files = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert files == [f"model-{place:05d}-of-00004.safetensors" for place in range(1, 5)]
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 7 * 400
    for name, file in index["weight_map"].items():
        assert torch.equal(load_file(tmp_path / file)[name], tensors[name])
    assert not list(tmp_path.glob("part-*"))


def test_a_plain_model_is_written_as_it_is(checkpoints, tmp_path):
    model = base_of(checkpoints / "bert").model
    expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    write_merged(model, tmp_path, torch.float32)
    written = load_file(tmp_path / "model.safetensors")
    assert set(written) == set(expected)
    assert all(torch.equal(written[name], expected[name]) for name in written)
    assert isinstance(model, nn.Module)
