"""Machine and process: memory, process age, package versions, out-of-memory errors."""

import errno
import os
import platform
import re
import resource
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import torch

PACKAGES = (
    "peftkit",
    "torch",
    "transformers",
    "peft",
    "bitsandbytes",
    "deepspeed",
    "datasets",
    "evaluate",
    "accelerate",
)


def read_process_peak_bytes() -> int:
    """Read the peak resident memory of this process so far, in bytes.

    On Linux the value is `VmHWM`, which starts at zero in each program. `ru_maxrss` is inherited from the parent
    process: a small run started by a large program would look large.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def read_process_bytes() -> int:
    """Read the current resident memory of this process, in bytes."""
    return psutil.Process().memory_info().rss


def count_optimizer_bytes(optimizer: Any) -> int:
    """Count the bytes of optimizer state that this rank holds, through any wrapper of the optimizer."""
    while (inner := getattr(optimizer, "optimizer", None)) is not None:
        optimizer = inner
    held = [tensor for state in optimizer.state.values() for tensor in state.values()]
    return sum({id(one): one.numel() * one.itemsize for one in held if isinstance(one, torch.Tensor)}.values())


def read_peak_memory() -> dict[str, int]:
    """Read the peak memory in bytes: `process_peak` and, on a GPU, `allocated_peak` and `reserved_peak`."""
    peaks = {"process_peak": read_process_peak_bytes()}
    if torch.cuda.is_available():
        peaks["allocated_peak"] = torch.cuda.max_memory_allocated()
        peaks["reserved_peak"] = torch.cuda.max_memory_reserved()
    return peaks


def measure_process_age() -> float:
    """Measure the seconds since this process started, including the import of packages."""
    stat = Path("/proc/self/stat")
    if stat.exists():
        # psutil adds the boot time, which Linux reports in whole seconds.
        ticks = int(stat.read_text().rpartition(")")[2].split()[19])
        return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    return time.time() - psutil.Process().create_time()


def _read_cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def read_environment() -> dict[str, Any]:
    """Read package versions, processor, cores, memory in bytes, GPUs, processes and hosts."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "packages": versions,
        "cpu": _read_cpu_name(),
        "cores": cores,
        "threads": torch.get_num_threads(),
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
        # Set by torchrun or by deepspeed.
        "hosts": int(os.environ.get("GROUP_WORLD_SIZE") or os.environ.get("CROSS_SIZE") or "1"),
    }


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether the error or its cause means that the machine or a GPU ran out of memory."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    if isinstance(error, RuntimeError) and is_out_of_memory_message(str(error)):
        return True
    return error.__cause__ is not None and is_out_of_memory(error.__cause__)


def is_out_of_memory_message(text: str) -> bool:
    """Return whether the text contains a library's out-of-memory message."""
    known = (
        r"can't allocate memory|[Cc]annot allocate memory|CUDA.{0,40}out of memory|std::bad_alloc|\bMemoryError\b|"
        "No executable batch size"
    )
    return re.search(known, text) is not None
