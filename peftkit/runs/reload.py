"""A run's own round trip: what its model answers while it is in memory, and what is read back from the folder."""

import gc
from pathlib import Path
from typing import Any

import torch
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from peftkit.models.inference import held_out, outputs_of
from peftkit.recipe.schema import Recipe
from peftkit.runs import folder as run_folder
from peftkit.runs.verification import Allowance, Difference, allowance, compared, is_half
from peftkit.tasks import Task


def live_outputs(task: Task, model: Any, batch: Any, device: torch.device) -> dict[str, torch.Tensor]:
    """The inputs of a batch and what the model, as it stands in memory, makes of them; every rank takes part."""
    model.eval()
    inputs, counted = held_out(task, batch, model.config)
    found = outputs_of(model, inputs, device, synced_gpus=is_deepspeed_zero3_enabled())
    return {name: tensor.cpu().contiguous() for name, tensor in {**inputs, **found, **counted}.items()}


def read_back(folder: Path, recipe: Recipe, task: Task) -> Difference:
    """How far the folder, loaded by a fresh process, is from the live model."""
    batch, live = run_folder.read_held_out(folder)
    gc.collect()
    if torch.accelerator.is_available():
        torch.accelerator.empty_cache()
    trust = recipe.model.trust_remote_code
    return compared(task, run_folder.fresh_outputs_of(folder, recipe, batch, trust_remote_code=trust), live, batch)


def allowed(folder: Path, recipe: Recipe, on_gpu: bool) -> Allowance:
    """How far that may be."""
    half = is_half(recipe, run_folder.dtype_of(folder), on_gpu=on_gpu)
    return allowance(run_folder.read_held_out(folder)[1], half=half, same_device=not on_gpu)
