"""One process or many, with DeepSpeed or without: what must be settled before training arguments are made."""

import difflib
import importlib.util
import json
import os
import re
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import torch
from torch.distributed import distributed_c10d

from peftkit.errors import LostRankError, UserError
from peftkit.recipe.schema import Recipe
from peftkit.system.logging import logger

STALE_AFTER = 120
"""Seconds after which a lock on an operator that no process here holds open is no other host's build either."""


def spelled_out(words: Sequence[str]) -> list[str]:
    """The words with `--ds NAME` as what it is short for, `--training.deepspeed NAME`."""
    found = []
    for word in words:
        name, equals, value = word.partition("=")
        found.append(f"--training.deepspeed{equals}{value}" if name == "--ds" else word)
    return found


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
    package = Path(__file__).resolve().parent.parent
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
    """Read a DeepSpeed config; `ds_configs/NAME` or `NAME` that is not here is the one beside peftkit.

    Raises UserError.
    """
    if isinstance(name, dict):
        return name
    places = [Path(name).expanduser()]
    if str(Path(name).parent) in (".", "ds_configs"):
        places.append(config_folder() / Path(name).with_suffix(".json").name)
    for path in places:
        if path.is_file():
            try:
                return json.loads(path.read_text(encoding="utf-8"))
            except ValueError as error:
                raise UserError(f"training.deepspeed: {name}: not JSON ({error})") from None
    known = sorted(path.stem for path in config_folder().glob("*.json"))
    near = difflib.get_close_matches(Path(name).stem, [*known, "auto"], n=1)
    hint = f"; did you mean '{near[0]}'?" if near else ""
    raise UserError(
        f"training.deepspeed (--ds): {name}: no such file; take auto, {', '.join(known)}, or a config's path{hint}"
    )


def weights_type(recipe: Recipe) -> str:
    """The dtype in which DeepSpeed holds the weights."""
    words = recipe.training
    return "bfloat16" if words.get("bf16") else "float16" if words.get("fp16") else recipe.model.dtype


def check_quantized(recipe: Recipe, deepspeed: dict[str, Any] | None) -> None:
    """Raise UserError for a 4-bit base that ZeRO-3 could not shard: its storage must have the weights' own type."""
    quantization = recipe.method.quantization
    if quantization is None or deepspeed is None or deepspeed.get("zero_optimization", {}).get("stage") != 3:
        return
    right = weights_type(recipe)
    if quantization.bnb_4bit_quant_storage != right:
        raise UserError(
            f"method.quantization.bnb_4bit_quant_storage: ZeRO-3 can't shard {quantization.bnb_4bit_quant_storage} "
            f"beside {right} weights; set it to {right}, or take ZeRO-1 or 2"
        )


def start(*, deepspeed: bool, use_cpu: bool, timeout: timedelta) -> None:
    """Join the other ranks where the Trainer would not do it rightly: on the CPU, and alone with DeepSpeed.

    `timeout`, the Trainer's `ddp_timeout`, is how long a rank waits for another before it takes it for lost. On a GPU
    with a launcher the Trainer joins by itself. Raises UserError when deepspeed is not installed.
    """
    if torch.distributed.is_initialized() or not (deepspeed or "RANK" in os.environ):
        return
    if deepspeed and importlib.util.find_spec("deepspeed") is None:
        raise UserError("training.deepspeed: deepspeed is not installed; run: pip install deepspeed")
    # DeepSpeed makes groups of its own and names no time for them: they take these.
    distributed_c10d.default_pg_timeout = distributed_c10d.default_pg_nccl_timeout = timeout
    if not deepspeed:
        if use_cpu:
            # The Trainer would leave out the timeout.
            torch.distributed.init_process_group("gloo", timeout=timeout)
        return
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
    library.init_distributed("gloo" if use_cpu else "nccl", timeout=timeout, verbose=False)
    if use_cpu:
        _unname_shared_memory()


def _unname_shared_memory() -> None:
    """Take the names from DeepSpeed's buffers in the host's shared memory, 66 MiB a rank, which it never removes.

    Once every rank has opened them they last as long as the ranks, however those end.
    """
    torch.distributed.barrier()
    mine = f"deepspeed_allreduce_buffer_{os.getuid()}_{os.environ['MASTER_ADDR']}_{os.environ['MASTER_PORT']}_*"
    for path in Path("/dev/shm").glob(mine):  # noqa: S108  this is where they are
        path.unlink(missing_ok=True)


@contextmanager
def lost_rank_errors() -> Iterator[None]:
    """Raise LostRankError, saying which rank this is and what to do, for the libraries' errors when another is gone."""
    try:
        yield
    except RuntimeError as error:
        if not is_lost_rank_error(error):
            raise
        # Where in its source a library saw it, and its advice, tell a user nothing.
        reason = " ".join(re.sub(r"^\[[^\]]*:\d+\]", "", str(error).strip()).split(". ")[0].split())[:200]
        rank, ranks = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
        raise LostRankError(
            f"the connection to the other ranks was lost: {reason} (rank {rank} of {ranks}, host "
            f"{socket.gethostname()}); see what they said, then start the run again: with --resume it goes on from its "
            "last checkpoint"
        ) from error


def is_lost_rank_error(error: RuntimeError) -> bool:
    """Whether this is how gloo, NCCL or the store of the ranks' addresses tells that another rank is gone."""
    if isinstance(error, torch.distributed.DistNetworkError | torch.distributed.DistStoreError):
        return True
    known = (
        r"(?:closed|reset) by peer|Broken pipe|Timed out waiting \d+ms|Application timeout caused pair closure|"
        r"Socket Timeout|Network is unreachable|No route to host|"
        r"NCCL.*(?:remote process exited|network error|timeout)|ncclRemoteError"
    )
    return has_several_ranks() and re.search(known, str(error), re.DOTALL) is not None


def has_several_ranks() -> bool:
    """Whether a launcher started more than this process."""
    return processes() > 1


def check_same(fingerprint: str, sharding: str, can_load_best: bool) -> None:
    """Raise UserError, on every rank, when one differs from rank 0: in its rows, its sharding, or what it can load.

    Hosts need not share their files, nor have the same memory; but a rank that does not see the best checkpoint would
    go on with its last weights.
    """
    if not (torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1):
        return
    every: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(every, (fingerprint, sharding, can_load_best))
    advice = (
        "data: rank {} read other rows than rank 0; give every host the same data and packages",
        "training.deepspeed: auto: rank {} would shard otherwise than rank 0; name one config",
        "training.load_best_model_at_end: rank {} does not see rank 0's folder of the run, where the best checkpoint "
        "will be; give the hosts a training.output_dir that they share, or set it to false",
    )
    wrong = []
    for place, told in enumerate(advice):
        if odd := [str(rank) for rank, other in enumerate(every) if other[place] != every[0][place]]:
            wrong.append(told.format(", ".join(odd)))
    if wrong:
        raise UserError("; ".join(wrong))


def clear_stale_locks() -> None:
    """Remove the locks that a process left which was stopped while it built DeepSpeed's operators.

    PyTorch waits for such a lock without an end and without a word. Who builds keeps it open.
    """
    from torch.utils.cpp_extension import _get_build_directory

    for name in ("cpu_adam", "deepspeed_shm_comm"):
        lock = Path(_get_build_directory(name, verbose=False)) / "lock"
        try:
            age = time.time() - lock.stat().st_mtime
            if age > STALE_AFTER and not _held_open(lock):
                lock.unlink()
                logger.warning("removed a lock that a stopped build of DeepSpeed's %s left behind: %s", name, lock)
            else:
                logger.warning("another process builds DeepSpeed's %s: this one waits while %s is there", name, lock)
        except FileNotFoundError:
            continue


def _held_open(path: Path) -> bool:
    """Whether a process that this user may look into has the file open."""
    for process in psutil.process_iter():
        try:
            if any(Path(opened.path) == path for opened in process.open_files()):
                return True
        except (psutil.Error, OSError):
            continue
    return False


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
