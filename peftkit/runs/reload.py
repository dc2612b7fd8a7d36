"""Reload a saved folder in a new process and compare it with the model in memory."""

import atexit
import gc
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

import torch
from safetensors.torch import load_file, save_file
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from peftkit.errors import NotReproducedError, UserError
from peftkit.models.inference import compute_outputs, select_inputs
from peftkit.models.loading import resolve_source
from peftkit.recipe.schema import Recipe
from peftkit.runs.manifest import (
    HELD_OUT,
    MANIFEST,
)
from peftkit.runs.verification import Difference, Tolerance, compare_outputs, find_tolerance, is_half_precision
from peftkit.system.environment import is_out_of_memory_message
from peftkit.tasks import Task

OUTPUT_NAMES = ("logits", "generated", "counted")

# Of a launcher: with them a library would wait for other ranks.
LAUNCHER_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "LOCAL_RANK", "LOCAL_WORLD_SIZE")

# Asked in this way whether there is a GPU, torch does not touch it.
NVML_CHECK = {"PYTORCH_NVML_BASED_CUDA_CHECK": "1"}


def compute_live_outputs(task: Task, model: Any, batch: Any, device: torch.device) -> dict[str, torch.Tensor]:
    """The inputs of a batch and what the model, as it stands in memory, makes of them; every rank takes part."""
    model.eval()
    inputs, counted = select_inputs(task, batch, model.config)
    found = compute_outputs(model, inputs, device, synced_gpus=is_deepspeed_zero3_enabled())
    return {name: tensor.cpu().contiguous() for name, tensor in {**inputs, **found, **counted}.items()}


def read_held_out(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The held-out batch of a run, and the live model's outputs (`logits`, perhaps `generated`). Raises UserError."""
    path = folder / HELD_OUT
    if not path.is_file():
        raise UserError(f"{folder}: no {HELD_OUT} here; give the folder of a finished run")
    found = load_file(path)
    outputs = {name: tensor for name, tensor in found.items() if name in OUTPUT_NAMES}
    return {name: tensor for name, tensor in found.items() if name not in OUTPUT_NAMES}, outputs


def read_dtype(folder: Path) -> str:
    """The dtype of a saved folder's weights, or of the base under its adapter."""
    return json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["dtype"]


def compare_reloaded(folder: Path, recipe: Recipe, task: Task) -> Difference:
    """How far the folder, loaded by a fresh process, is from the live model."""
    batch, live = read_held_out(folder)
    gc.collect()
    if torch.accelerator.is_available():
        torch.accelerator.empty_cache()
    trust = recipe.model.trust_remote_code
    return compare_outputs(task, reload_outputs(folder, recipe, batch, trust_remote_code=trust), live, batch)


def find_reload_tolerance(folder: Path, recipe: Recipe, on_gpu: bool) -> Tolerance:
    """How far that may be."""
    half = is_half_precision(recipe, read_dtype(folder), on_gpu=on_gpu)
    return find_tolerance(read_held_out(folder)[1], half=half, same_device=not on_gpu)


def reload_outputs(
    folder: Path, recipe: Recipe, batch: Mapping[str, torch.Tensor], *, trust_remote_code: bool
) -> dict[str, torch.Tensor]:
    """What a fresh process makes of a saved folder, by its manifest. Raises NotReproducedError if it can't load it."""
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    adapter: dict[str, Any] = {}
    if manifest["adapter"]:
        quantization = manifest["quantization"]
        revision = manifest["base"]["revision"] or recipe.model.revision
        adapter = {"base": resolve_source(recipe.model), "revision": revision, "quantization": quantization}
    return run_reload_worker(
        folder, batch, auto_class=manifest["auto_class"], dtype=manifest["dtype"],
        trust_remote_code=trust_remote_code, **adapter,
    )  # fmt: skip


def run_reload_worker(
    folder: Path, batch: Mapping[str, torch.Tensor], *, auto_class: str, dtype: str = "float32", **adapter: Any
) -> dict[str, torch.Tensor]:
    """What a process with plain transformers and peft makes of `folder`: `logits`, perhaps `generated`.

    `adapter` gives `base`, `revision` and `quantization` where the folder holds one, and `trust_remote_code`. Raises
    NotReproducedError when the folder can't be loaded there.
    """
    with tempfile.TemporaryDirectory() as scratch:
        inputs, output = Path(scratch) / "inputs.safetensors", Path(scratch) / "output.safetensors"
        save_file(dict(batch), inputs)
        question = {
            "folder": str(folder.resolve()), "auto_class": auto_class, "inputs": str(inputs), "output": str(output),
            "dtype": dtype, "trust_remote_code": False, **adapter,
        }  # fmt: skip
        if error := _send_request(question):
            if is_out_of_memory_message(error):
                raise MemoryError(f"the fresh process that reads back what was saved: {error}")
            raise NotReproducedError(f"a fresh process can't load what was saved: {error}")
        return load_file(output)


def _send_request(question: Mapping[str, Any]) -> str | None:
    process, said = _start_worker()
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(json.dumps(question) + "\n")
        process.stdin.flush()
        told = process.stdout.readline()
    except BrokenPipeError:
        told = ""
    if not told:
        _start_worker.cache_clear()
        status = process.wait()
        said.seek(0)
        lines = said.read().decode(errors="replace").strip().splitlines()
        return f"it ended with status {status}" + (f": {lines[-1][:300]}" if lines else "")
    return json.loads(told)["error"]


@lru_cache(maxsize=1)
def _start_worker() -> tuple[subprocess.Popen[str], IO[bytes]]:
    """The process that loads plain libraries once and answers each question in a child, and what it says of errors.

    It ends with this one.
    """
    script = Path(__file__).with_name("reload_worker.py")
    said: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # as long-lived as the process
    # A launcher gives each rank one thread; the others have left.
    launched = "LOCAL_WORLD_SIZE" in os.environ
    unwanted = {*LAUNCHER_VARIABLES, *(["OMP_NUM_THREADS"] if launched else [])}
    process = subprocess.Popen(  # noqa: S603
        # Without -P the files beside the script would hide packages of their names.
        [sys.executable, "-P", "-W", "ignore", str(script)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, text=True,
        env={name: value for name, value in os.environ.items() if name not in unwanted} | NVML_CHECK,
    )  # fmt: skip
    atexit.register(_stop_worker, process, said)
    return process, said


def _stop_worker(process: subprocess.Popen[str], said: IO[bytes]) -> None:
    process.kill()
    process.communicate()
    said.close()
