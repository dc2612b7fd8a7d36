"""Resolve the DeepSpeed config `auto` and the storage dtype of 4-bit weights."""

import os
from dataclasses import replace

import psutil
import torch

from peftkit.distributed.deepspeed import get_weight_dtype
from peftkit.distributed.process_group import count_ranks
from peftkit.errors import UserError
from peftkit.planning.hardware import CPU, GPU
from peftkit.planning.planner import make_arguments, plan
from peftkit.planning.selection import find_smallest
from peftkit.planning.zero import parse_placement
from peftkit.recipe.schema import Recipe
from peftkit.system.logging import logger

AUTO = "auto"


def resolve_deepspeed(recipe: Recipe) -> Recipe:
    """Replace the DeepSpeed config `auto` by one of `ds_configs`, and set the 4-bit storage for ZeRO-3.

    The choice is from the plan for the started ranks and the memory of this host's devices. Raises UserError.
    """
    if recipe.training.get("deepspeed") == AUTO:
        training = {name: value for name, value in recipe.training.items() if name != "deepspeed"}
        if (config := _choose_config(recipe)) is not None:
            training["deepspeed"] = config
        recipe = replace(recipe, training=training)
    return _make_shardable(recipe)


def _choose_config(recipe: Recipe) -> str | None:
    ranks = count_ranks()
    here = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or ranks)
    on_gpu = torch.cuda.is_available() and not recipe.training.get("use_cpu")
    if on_gpu:
        hardware = replace(GPU, memory=torch.cuda.get_device_properties(0).total_memory)
    else:
        hardware = replace(CPU, memory=psutil.virtual_memory().total // here)
    hardware = replace(hardware, devices_per_host=here)
    found = plan(
        recipe, ranks=ranks, hardware=hardware, on_gpu=on_gpu,
        checkpointing=(bool(make_arguments(recipe).activation_checkpointing),),
    )  # fmt: skip
    row = found.rows[find_smallest(found.rows, hardware) if found.chosen is None else found.chosen]
    logger.info("deepspeed auto, %d rank%s: %s", ranks, "s" * (ranks > 1), found.why)
    return None if row.placement == "none" else f"ds_configs/{row.placement}.json"


def _make_shardable(recipe: Recipe) -> Recipe:
    """Set the 4-bit storage to the dtype of the other weights, because ZeRO-3 shards only float types."""
    quantization, name = recipe.method.quantization, recipe.training.get("deepspeed")
    if quantization is None or name is None or parse_placement(name).stage < 3:
        return recipe
    dtype = get_weight_dtype(recipe)
    if dtype == AUTO:
        raise UserError("model.dtype: ZeRO-3 with 4-bit weights needs a dtype, got auto; set float32 or bfloat16")
    if quantization.bnb_4bit_quant_storage != "uint8":
        return recipe
    logger.info("ZeRO-3 with 4-bit weights: setting method.quantization.bnb_4bit_quant_storage to %s", dtype)
    quantization = replace(quantization, bnb_4bit_quant_storage=dtype)
    return replace(recipe, method=replace(recipe.method, quantization=quantization))
