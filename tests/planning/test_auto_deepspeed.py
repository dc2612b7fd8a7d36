from dataclasses import replace

import psutil
import pytest

from peftkit import Quantization, full, lora, qlora
from peftkit.planning.auto_deepspeed import resolve_deepspeed


@pytest.mark.parametrize("method", [full(), lora()], ids=lambda method: method.name)
def test_what_fits_is_not_sharded(method, small_recipe, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    recipe = small_recipe(method=method, deepspeed="auto", use_cpu=True, per_device_train_batch_size=32)
    recipe = replace(recipe, model=replace(recipe.model, name_or_path="demo"))
    assert "deepspeed" not in resolve_deepspeed(recipe).training


def test_a_cpu_offloads_nothing_though_nothing_fits(small_recipe, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    real = psutil.virtual_memory()
    monkeypatch.setattr(psutil, "virtual_memory", lambda: real._replace(total=0))
    recipe = resolve_deepspeed(small_recipe(method=full(), deepspeed="auto", use_cpu=True))
    # On a CPU offloading frees nothing.
    assert "offload" not in recipe.training.get("deepspeed", "")


def test_bits_are_stored_as_zero3_can_shard_them(small_recipe):
    recipe = small_recipe(method=qlora(), deepspeed="zero3")
    assert resolve_deepspeed(recipe).method.quantization.bnb_4bit_quant_storage == "float32"
    half = replace(recipe, training={**recipe.training, "bf16": True})
    assert resolve_deepspeed(half).method.quantization.bnb_4bit_quant_storage == "bfloat16"
    kept = small_recipe(method=qlora(quantization=Quantization(bnb_4bit_quant_storage="float16")), deepspeed="zero3")
    assert resolve_deepspeed(kept).method.quantization.bnb_4bit_quant_storage == "float16"
    second = small_recipe(method=qlora(), deepspeed="zero2")
    assert resolve_deepspeed(second) == second
