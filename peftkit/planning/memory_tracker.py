"""Dispatch mode that tracks live tensor bytes and operations, operator by operator."""

import math
import weakref
from collections.abc import Iterable
from typing import Any

import bitsandbytes.functional  # noqa: F401  its operators are named below
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

CPU_UPDATE_COPIES = {
    torch.ops.bitsandbytes.optimizer_update_8bit_blockwise.default: 5,
    torch.ops.bitsandbytes.optimizer_update_32bit.default: 3,
}
"""Float32 copies of a weight that bitsandbytes' Adam makes on a CPU: states in 8 bits, gradient, root, quotient."""


class MemoryTracker(TorchDispatchMode):
    """Counts the bytes of every storage from the operator that made it until it is freed, operators and operations.

    `torch.utils.flop_counter.FlopCounterMode` itself would keep tensors alive.
    """

    def __init__(self, on_gpu: bool) -> None:
        super().__init__()
        self.on_gpu = on_gpu
        self.now = 0
        self.peak = 0
        self.flops = 0
        self.operators = 0
        self.known: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operator and count what it returned, and what it needs in between."""
        found = func(*args, **(kwargs or {}))
        self.operators += 1
        for tensor in tree_leaves(found):
            if isinstance(tensor, torch.Tensor):
                self.count(tensor)
        if func is torch.ops.bitsandbytes.gemm_4bit.default:
            # It expands the weight, multiplies, and drops it.
            self.peak = max(self.peak, self.now + math.prod(args[2]) * args[0].itemsize)
            self.flops += 2 * args[0].numel() * args[2][0]
        elif func in CPU_UPDATE_COPIES and not self.on_gpu:
            self.peak = max(self.peak, self.now + CPU_UPDATE_COPIES[func] * 4 * args[2].numel())
        elif func._overloadpacket in flop_registry:
            self.flops += flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=found)
        return found

    def ignore(self, tensors: Iterable[Any]) -> None:
        """Count these tensors as nothing."""
        for tensor in tensors:
            if isinstance(tensor, torch.Tensor):
                self.known[tensor.untyped_storage()._cdata] = 0

    def count(self, tensor: torch.Tensor) -> None:
        """Count the tensor's storage, unless it is counted already."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.known:
            return
        self.known[key] = storage.nbytes()
        self.now += self.known[key]
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, key)

    def _free(self, key: int) -> None:
        self.now -= self.known.pop(key, 0)
