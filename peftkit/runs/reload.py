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
# Variables of launchers; with them a library in the new process would wait for other ranks.
LAUNCHER_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
# torch then detects a GPU without creating a CUDA context.
NVML_CHECK = {"PYTORCH_NVML_BASED_CUDA_CHECK": "1"}


def compute_live_outputs(task: Task, model: Any, batch: Any, device: torch.device) -> dict[str, torch.Tensor]:
    """Compute the outputs of the model in memory; return inputs and outputs. Every rank participates."""
    model.eval()
    inputs, counted = select_inputs(task, batch, model.config)
    found = compute_outputs(model, inputs, device, synced_gpus=is_deepspeed_zero3_enabled())
    return {name: tensor.cpu().contiguous() for name, tensor in {**inputs, **found, **counted}.items()}


def read_held_out(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Read the held-out inputs of a run and the outputs saved at the end of training. Raises UserError."""
    path = folder / HELD_OUT
    if not path.is_file():
        raise UserError(f"{folder}: contains no {HELD_OUT}; pass the folder of a finished run")
    found = load_file(path)
    outputs = {name: tensor for name, tensor in found.items() if name in OUTPUT_NAMES}
    return {name: tensor for name, tensor in found.items() if name not in OUTPUT_NAMES}, outputs


def compare_reloaded(folder: Path, recipe: Recipe, task: Task) -> Difference:
    """Load the folder in a new process and compare its outputs with those of the trained model."""
    batch, live = read_held_out(folder)
    gc.collect()
    if torch.accelerator.is_available():
        torch.accelerator.empty_cache()
    trust = recipe.model.trust_remote_code
    return compare_outputs(task, reload_outputs(folder, recipe, batch, trust_remote_code=trust), live, batch)


def find_reload_tolerance(folder: Path, recipe: Recipe, on_gpu: bool) -> Tolerance:
    """Return the tolerance for `compare_reloaded`."""
    half = is_half_precision(recipe, _read_manifest(folder)["dtype"], on_gpu=on_gpu)
    return find_tolerance(read_held_out(folder)[1], half=half, same_device=not on_gpu)


def reload_outputs(
    folder: Path, recipe: Recipe, batch: Mapping[str, torch.Tensor], *, trust_remote_code: bool
) -> dict[str, torch.Tensor]:
    """Compute the outputs of a folder in a new process. Raises NotReproducedError if loading fails."""
    manifest = _read_manifest(folder)
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
    """Compute `logits` and, for text, `generated` in a process with only transformers and peft.

    `adapter` has `base`, `revision` and `quantization` if the folder contains an adapter, and `trust_remote_code`.
    Raises NotReproducedError if loading fails.
    """
    with tempfile.TemporaryDirectory() as scratch:
        inputs, output = Path(scratch) / "inputs.safetensors", Path(scratch) / "output.safetensors"
        save_file(dict(batch), inputs)
        request = {
            "folder": str(folder.resolve()), "auto_class": auto_class, "inputs": str(inputs), "output": str(output),
            "dtype": dtype, "trust_remote_code": False, **adapter,
        }  # fmt: skip
        if error := _send_request(request):
            if is_out_of_memory_message(error):
                raise MemoryError(f"verification of the saved folder in a new process: {error}")
            raise NotReproducedError(f"a new process cannot load the saved folder: {error}")
        return load_file(output)


def _read_manifest(folder: Path) -> dict[str, Any]:
    # Without checking hashes: this process wrote the files, or has checked them.
    return json.loads((folder / MANIFEST).read_text(encoding="utf-8"))


def _send_request(request: Mapping[str, Any]) -> str | None:
    """Send a request to the worker process and wait; return the error, if any."""
    process, errors = _start_worker()
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
        reply = process.stdout.readline()
    except BrokenPipeError:
        reply = ""
    if not reply:
        _start_worker.cache_clear()
        status = process.wait()
        errors.seek(0)
        lines = errors.read().decode(errors="replace").strip().splitlines()
        return f"the process ended with status {status}" + (f": {lines[-1][:300]}" if lines else "")
    return json.loads(reply)["error"]


@lru_cache(maxsize=1)
def _start_worker() -> tuple[subprocess.Popen[str], IO[bytes]]:
    """Start the worker process, which ends with this process; return it and its standard error file."""
    script = Path(__file__).with_name("reload_worker.py")
    errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # closed by _stop_worker
    # A launcher limits each rank to one thread; the other ranks have ended, so the limit is removed.
    has_launcher = "LOCAL_WORLD_SIZE" in os.environ
    removed = {*LAUNCHER_VARIABLES, *(["OMP_NUM_THREADS"] if has_launcher else [])}
    process = subprocess.Popen(  # noqa: S603
        # Without -P the files beside the script would shadow packages of the same name.
        [sys.executable, "-P", "-W", "ignore", str(script)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
        env={name: value for name, value in os.environ.items() if name not in removed} | NVML_CHECK,
    )  # fmt: skip
    atexit.register(_stop_worker, process, errors)
    return process, errors


def _stop_worker(process: subprocess.Popen[str], errors: IO[bytes]) -> None:
    process.kill()
    process.communicate()
    errors.close()
