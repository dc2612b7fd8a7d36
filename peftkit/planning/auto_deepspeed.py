"""DeepSpeed settings that the recipe leaves open, resolved before training arguments are made."""

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
    """The recipe with a DeepSpeed config of `ds_configs` where it says `auto`, and with bits that ZeRO-3 can shard.

    Chosen from the plan, for as many ranks as were started and the memory of this host's devices. Raises UserError.
    """
    if recipe.training.get("deepspeed") == AUTO:
        words = {name: value for name, value in recipe.training.items() if name != "deepspeed"}
        if (config := _choose_config(recipe)) is not None:
            words["deepspeed"] = config
        recipe = replace(recipe, training=words)
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
    """ZeRO-3 shards float types alone: packed bits are stored as the type of the weights beside them."""
    quantization, name = recipe.method.quantization, recipe.training.get("deepspeed")
    if quantization is None or name is None or parse_placement(name).stage < 3:
        return recipe
    right = get_weight_dtype(recipe)
    if right == AUTO:
        raise UserError("model.dtype: auto: ZeRO-3 must know the type beside 4-bit weights; name it")
    if quantization.bnb_4bit_quant_storage != "uint8":
        return recipe
    logger.info("ZeRO-3 with 4-bit weights: method.quantization.bnb_4bit_quant_storage is %s", right)
    quantization = replace(quantization, bnb_4bit_quant_storage=right)
    return replace(recipe, method=replace(recipe.method, quantization=quantization))
