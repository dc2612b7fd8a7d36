"""One process or many, with DeepSpeed or without: what must be settled before training arguments are made."""

import importlib.util
import json
import os
import socket
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

from peftkit.errors import UserError
from peftkit.log import logger
from peftkit.recipe import Recipe

STALE_AFTER = 600
"""Seconds after which a lock on the building of an operator is taken for one that a stopped process left."""


def split_launcher_words(words: Sequence[str]) -> tuple[list[str], bool]:
    """The words without the `--local_rank` that the `deepspeed` launcher adds, and whether it was there."""
    kept, launched, skip = [], False, False
    for word in words:
        if skip:
            skip = False
        elif word.startswith(("--local_rank", "--local-rank")):
            launched, skip = True, "=" not in word
        else:
            kept.append(word)
    return kept, launched


def config_folder() -> Path:
    """The folder `ds_configs`: in the wheel inside the package, in a checkout beside it."""
    package = Path(__file__).resolve().parent
    inside = package / "ds_configs"
    return inside if inside.is_dir() else package.parent / "ds_configs"


def usual_deepspeed_config(recipe: Recipe) -> Path:
    """The ZeRO stage for a run that the `deepspeed` launcher started without naming one, and say why.

    ZeRO-2 shards gradients and optimizer state, which for full fine-tuning are three times the weights and for an
    adapter are a few MB: there stage 1, with the least communication, is as good.
    """
    if recipe.method.peft is None:
        stage, why = "zero2", "full fine-tuning: shards gradients and optimizer state"
    else:
        stage, why = "zero1", "an adapter's optimizer state is small: nothing is gained by sharding more"
    logger.info("deepspeed without --training.deepspeed: chose ds_configs/%s.json (%s)", stage, why)
    return config_folder() / f"{stage}.json"


def deepspeed_config(name: str | dict[str, Any]) -> dict[str, Any]:
    """Read a DeepSpeed config; `ds_configs/NAME` that is not here is the one beside peftkit. Raises UserError."""
    if isinstance(name, dict):
        return name
    places = [Path(name).expanduser()]
    if str(Path(name).parent) in (".", "ds_configs"):
        places.append(config_folder() / Path(name).name)
    for path in places:
        if path.is_file():
            try:
                return json.loads(path.read_text(encoding="utf-8"))
            except ValueError as error:
                raise UserError(f"training.deepspeed: {name}: not JSON ({error})") from None
    raise UserError(f"training.deepspeed: {name}: no such file")


def check_quantized(recipe: Recipe, deepspeed: dict[str, Any] | None) -> None:
    """Raise UserError for a 4-bit base that ZeRO-3 could not shard: its storage must have the weights' own type."""
    quantization = recipe.method.quantization
    if quantization is None or deepspeed is None or deepspeed.get("zero_optimization", {}).get("stage") != 3:
        return
    words = recipe.training
    right = "bfloat16" if words.get("bf16") else "float16" if words.get("fp16") else recipe.model.dtype
    if quantization.bnb_4bit_quant_storage != right:
        raise UserError(
            f"method.quantization.bnb_4bit_quant_storage: ZeRO-3 can't shard {quantization.bnb_4bit_quant_storage} "
            f"beside {right} weights; set it to {right}, or take ZeRO-1 or 2"
        )


def start(*, deepspeed: bool, use_cpu: bool) -> None:
    """Join the other ranks where the Trainer would not do it rightly: on the CPU, and alone without a launcher.

    On a GPU with a launcher the Trainer joins by itself. Raises UserError when deepspeed is not installed.
    """
    if not deepspeed or torch.distributed.is_initialized():
        return
    if importlib.util.find_spec("deepspeed") is None:
        raise UserError("training.deepspeed: deepspeed is not installed; run: pip install deepspeed")
    clear_stale_locks()
    if not use_cpu and "RANK" in os.environ:
        return
    if "RANK" not in os.environ:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        os.environ |= {
            "RANK": "0",
            "LOCAL_RANK": "0",
            "WORLD_SIZE": "1",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
    import deepspeed as library

    # The Trainer asks for the world's size before it would join it; the batch size must already know all ranks.
    library.init_distributed("gloo" if use_cpu else "nccl", timeout=timedelta(minutes=30), verbose=False)


def clear_stale_locks() -> None:
    """Remove the locks that a process left which was stopped while it built DeepSpeed's operators.

    PyTorch waits for such a lock without an end and without a word. A build takes a minute or two.
    """
    from torch.utils.cpp_extension import _get_build_directory

    for name in ("cpu_adam", "deepspeed_shm_comm"):
        lock = Path(_get_build_directory(name, verbose=False)) / "lock"
        try:
            age = time.time() - lock.stat().st_mtime
            if age > STALE_AFTER:
                lock.unlink()
                logger.warning("removed a lock that a stopped build of DeepSpeed's %s left behind: %s", name, lock)
            else:
                logger.warning("another process builds DeepSpeed's %s: this one waits while %s is there", name, lock)
        except FileNotFoundError:
            continue


def processes() -> int:
    """How many ranks the launcher started; 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def meet() -> None:
    """Wait for all ranks: one that left while another still works may end that one's connections under it."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()


def finish() -> None:
    """Leave the other ranks."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
