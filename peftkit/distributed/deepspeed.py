"""DeepSpeed: configs, weight dtype, and compiled operators."""

import importlib.util
import json
import os
import time
from pathlib import Path
from typing import Any

import psutil

from peftkit.errors import UserError
from peftkit.recipe.schema import Recipe
from peftkit.system.logging import logger
from peftkit.system.shipped_files import DEEPSPEED_CONFIGS, find_shipped_folder

STALE_AFTER = 120
"""Age in seconds after which a build lock is stale, unless a process on this host has the lock file open."""


def choose_default_config(recipe: Recipe) -> str:
    """Choose a ZeRO config for a run of the `deepspeed` launcher without one, and log the reason.

    ZeRO-2 shards gradients and optimizer state. In full fine-tuning these take three times the memory of the weights,
    for an adapter a few MB. ZeRO-1 needs the least communication.
    """
    if recipe.method.peft is None:
        stage, why = "zero2", "full fine-tuning: shard gradients and optimizer state"
    else:
        stage, why = "zero1", "adapter: the optimizer state is small, more sharding saves no memory"
    logger.info("training.deepspeed not set: using ds_configs/%s.json (%s)", stage, why)
    return f"ds_configs/{stage}.json"


def is_deepspeed_launcher() -> bool:
    """Return whether the `deepspeed` launcher started this process; only this launcher sets CROSS_SIZE."""
    return "CROSS_SIZE" in os.environ


def read_deepspeed_config(name: str | dict[str, Any]) -> dict[str, Any]:
    """Read a DeepSpeed config: a dictionary, a path, or the name of a config included in peftkit.

    A file `NAME` or `ds_configs/NAME` in the current folder comes first. Raises UserError.
    """
    if isinstance(name, dict):
        return name
    places = [Path(name).expanduser()]
    if str(Path(name).parent) in (".", DEEPSPEED_CONFIGS):
        places.append(find_shipped_folder(DEEPSPEED_CONFIGS) / Path(name).with_suffix(".json").name)
    for path in places:
        if path.is_file():
            try:
                return json.loads(path.read_text(encoding="utf-8"))
            except ValueError as error:
                raise UserError(f"training.deepspeed: {name}: invalid JSON ({error})") from None
    known = ", ".join(sorted(path.stem for path in find_shipped_folder(DEEPSPEED_CONFIGS).glob("*.json")))
    raise UserError(f"training.deepspeed (--ds): {name}: no such file; use auto, {known}, or the path of a config")


def get_weight_dtype(recipe: Recipe) -> str:
    """Return the dtype of the weights under DeepSpeed."""
    training = recipe.training
    return "bfloat16" if training.get("bf16") else "float16" if training.get("fp16") else recipe.model.dtype


def check_quantized_storage(recipe: Recipe, deepspeed: dict[str, Any] | None) -> None:
    """Raise UserError if the storage dtype of a 4-bit base model prevents ZeRO-3 sharding.

    The storage dtype must equal the dtype of the other weights.
    """
    quantization = recipe.method.quantization
    if quantization is None or deepspeed is None or deepspeed.get("zero_optimization", {}).get("stage") != 3:
        return
    dtype = get_weight_dtype(recipe)
    if quantization.bnb_4bit_quant_storage != dtype:
        raise UserError(
            f"method.quantization.bnb_4bit_quant_storage: ZeRO-3 cannot shard {quantization.bnb_4bit_quant_storage} "
            f"with {dtype} weights; set it to {dtype}, or use ZeRO-1 or ZeRO-2"
        )


def adapt_config_to_cpu(config: dict[str, Any]) -> dict[str, Any]:
    """Let a config with offload use PyTorch's optimizer on a CPU; DeepSpeed's would compile for a minute.

    A value of `zero_force_ds_cpu_optimizer` in the config stays.
    """
    return {"zero_force_ds_cpu_optimizer": False} | config


def disable_shared_memory_operator() -> None:
    """Let DeepSpeed reduce with Gloo on a CPU.

    DeepSpeed's own operator is not faster, compiles for a minute, and leaves 66 MiB per rank in shared memory.
    """
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def add_ninja_to_path() -> None:
    """Let PyTorch find the `ninja` of this environment, also if the environment is not activated."""
    if importlib.util.find_spec("ninja") is None:
        return
    import ninja

    folders = os.environ.get("PATH", os.defpath).split(os.pathsep)
    if ninja.BIN_DIR not in folders:
        os.environ["PATH"] = os.pathsep.join([ninja.BIN_DIR, *folders])


def clear_stale_lock() -> None:
    """Remove the lock of an interrupted build of DeepSpeed's CPU optimizer.

    PyTorch waits for such a lock forever, without a log message. A running build has its lock file open.
    """
    from torch.utils.cpp_extension import _get_build_directory

    lock = Path(_get_build_directory("cpu_adam", verbose=False)) / "lock"
    try:
        age = time.time() - lock.stat().st_mtime
        if age > STALE_AFTER and not _is_open(lock):
            lock.unlink()
            logger.warning("removed a stale build lock of DeepSpeed's cpu_adam: %s", lock)
        else:
            logger.warning("waiting for another process that builds DeepSpeed's cpu_adam (lock: %s)", lock)
    except FileNotFoundError:
        return


def _is_open(path: Path) -> bool:
    """Return whether a process of this user has the file open."""
    for process in psutil.process_iter():
        try:
            if any(Path(opened.path) == path for opened in process.open_files()):
                return True
        except (psutil.Error, OSError):
            continue
    return False
