"""DeepSpeed operators in C++ that a run compiles on first use."""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peftkit.system.files import redact_home
from peftkit.system.logging import logger

CPU_ADAM, FUSED_ADAM = "cpu_adam", "fused_adam"


def find_operator(config: Mapping[str, Any]) -> str | None:
    """Find the operator that a run with this DeepSpeed config compiles; None for a run that compiles none."""
    is_offloaded = config.get("zero_optimization", {}).get("offload_optimizer", {}).get("device", "none") != "none"
    has_own_optimizer = str(config.get("optimizer", {}).get("type", "")).lower() in ("adam", "adamw")
    if is_offloaded:
        return CPU_ADAM if has_own_optimizer or config.get("zero_force_ds_cpu_optimizer", True) else None
    return FUSED_ADAM if has_own_optimizer else None


def announce_builds(config: Mapping[str, Any]) -> None:
    """Log the DeepSpeed operator that will be compiled, before the minutes without output in which it is."""
    name = find_operator(config)
    if name is None or importlib.util.find_spec("deepspeed") is None or (library := _find_library(name)).exists():
        return
    from deepspeed.git_version_info import installed_ops

    if not installed_ops.get(name):
        logger.info(
            "compiling DeepSpeed's %s, once for this machine; this takes about 90 seconds (folder: %s)",
            name, redact_home(library.parent),
        )  # fmt: skip


def _find_library(name: str) -> Path:
    """Return the path of an operator's compiled library, which exists once the operator is compiled."""
    from torch.utils.cpp_extension import _get_build_directory

    return Path(_get_build_directory(name, verbose=False)) / f"{name}.so"
