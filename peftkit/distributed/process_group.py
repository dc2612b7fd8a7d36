"""Process group of a run: join, barrier, gather, consistency checks, lost ranks."""

import importlib.util
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch.distributed import distributed_c10d

from peftkit.distributed.deepspeed import add_ninja_to_path, clear_stale_lock, disable_shared_memory_operator
from peftkit.errors import LostRankError, UserError
from peftkit.system.environment import read_peak_memory


def count_ranks() -> int:
    """Count the ranks that the launcher started; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def has_several_ranks() -> bool:
    """Return whether a launcher started more than one process."""
    return count_ranks() > 1


def has_joined_ranks() -> bool:
    """Return whether this process has joined a process group of more than one rank."""
    return torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1


def join_process_group(*, deepspeed: bool, use_cpu: bool, timeout: timedelta) -> None:
    """Join the process group where the Trainer would not: on a CPU, or with DeepSpeed on one rank.

    `timeout` is the Trainer's `ddp_timeout`: the time that a rank waits for another rank before an error. On a GPU with
    a launcher the Trainer joins. Raises UserError if deepspeed is not installed.
    """
    if torch.distributed.is_initialized() or not (deepspeed or "RANK" in os.environ):
        return
    if deepspeed and importlib.util.find_spec("deepspeed") is None:
        raise UserError("training.deepspeed: deepspeed is not installed; run: pip install deepspeed")
    # DeepSpeed creates process groups without a timeout argument; they use these defaults.
    distributed_c10d.default_pg_timeout = distributed_c10d.default_pg_nccl_timeout = timeout
    if not deepspeed:
        if use_cpu:
            # The Trainer would omit the timeout.
            torch.distributed.init_process_group("gloo", timeout=timeout)
        return
    add_ninja_to_path()
    clear_stale_lock()
    if use_cpu:
        disable_shared_memory_operator()
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

    # The Trainer reads the world size before it joins, and derives the batch size from that value.
    library.init_distributed("gloo" if use_cpu else "nccl", timeout=timeout, verbose=False)


def wait_for_ranks() -> None:
    """Wait for all ranks: a rank that leaves early can break the connections of the other ranks."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()


def leave_process_group() -> None:
    """Leave the process group, if there is one."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def gather_from_ranks(value: Any) -> list[Any]:
    """Return the value of every rank, in rank order, on every rank."""
    if not has_joined_ranks():
        return [value]
    values: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def gather_peak_memory() -> list[dict[str, int]]:
    """Return the peak memory of every rank in bytes, as `read_peak_memory` returns it, in rank order."""
    return gather_from_ranks(read_peak_memory())


@contextmanager
def raise_lost_rank_errors() -> Iterator[None]:
    """Turn library errors about a lost rank into LostRankError, with this rank and a fix."""
    try:
        yield
    except RuntimeError as error:
        if not is_lost_rank_error(error):
            raise
        # Remove the source location and the advice of the library.
        reason = " ".join(re.sub(r"^\[[^\]]*:\d+\]", "", str(error).strip()).split(". ")[0].split())[:200]
        rank, ranks = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
        raise LostRankError(
            f"the connection to the other ranks was lost: {reason} (rank {rank} of {ranks}, host "
            f"{socket.gethostname()}); read the logs of the other ranks, then start the run again with --resume"
        ) from error


def is_lost_rank_error(error: RuntimeError) -> bool:
    """Return whether gloo, NCCL or the rendezvous store raised the error because another rank ended."""
    if isinstance(error, torch.distributed.DistNetworkError | torch.distributed.DistStoreError):
        return True
    known = (
        r"(?:closed|reset) by peer|Broken pipe|Timed out waiting \d+ms|Application timeout caused pair closure|"
        r"Socket Timeout|Network is unreachable|No route to host|"
        r"NCCL.*(?:remote process exited|network error|timeout)|ncclRemoteError"
    )
    return has_several_ranks() and re.search(known, str(error), re.DOTALL) is not None


def check_same_on_ranks(fingerprint: str, deepspeed: str, can_load_best: bool) -> None:
    """Raise UserError if a rank differs from rank 0 in rows, DeepSpeed config or visible checkpoints.

    Hosts may have different files or memory. A rank that does not see the best checkpoint would continue with its last
    weights.
    """
    ranks = gather_from_ranks((fingerprint, deepspeed, can_load_best))
    messages = (
        "data: rank {} read different rows than rank 0; use the same data and packages on every host",
        "training.deepspeed: auto: rank {} chose another config than rank 0; pass the same config on every host",
        "training.load_best_model_at_end: rank {} does not see the run folder of rank 0, which contains the best "
        "checkpoint; use a training.output_dir on a shared file system, or set the option to false",
    )
    problems = []
    for index, message in enumerate(messages):
        if differing := [str(rank) for rank, values in enumerate(ranks) if values[index] != ranks[0][index]]:
            problems.append(message.format(", ".join(differing)))
    if problems:
        raise UserError("; ".join(problems))
