"""Dispatch mode that tracks live tensor bytes and floating point operations."""

import math
import weakref
from collections.abc import Iterable
from typing import Any

import bitsandbytes.functional  # noqa: F401  registers the operators below
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

CPU_UPDATE_COPIES = {
    torch.ops.bitsandbytes.optimizer_update_8bit_blockwise.default: 5,
    torch.ops.bitsandbytes.optimizer_update_32bit.default: 3,
}
"""Number of float32 copies of a weight in the Adam update of bitsandbytes on a CPU."""


class MemoryTracker(TorchDispatchMode):
    """Count live storage bytes, operators and floating point operations.

    `torch.utils.flop_counter.FlopCounterMode` is not used because it would keep tensors alive.
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
        """Run the operator; count its results and temporary memory."""
        found = func(*args, **(kwargs or {}))
        self.operators += 1
        for tensor in tree_leaves(found):
            if isinstance(tensor, torch.Tensor):
                self.count(tensor)
        if func is torch.ops.bitsandbytes.gemm_4bit.default:
            # The operator dequantizes the weight, multiplies, and frees the dequantized weight.
            self.peak = max(self.peak, self.now + math.prod(args[2]) * args[0].itemsize)
            self.flops += 2 * args[0].numel() * args[2][0]
        elif func in CPU_UPDATE_COPIES and not self.on_gpu:
            self.peak = max(self.peak, self.now + CPU_UPDATE_COPIES[func] * 4 * args[2].numel())
        elif func._overloadpacket in flop_registry:
            self.flops += flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=found)
        return found

    def ignore(self, tensors: Iterable[Any]) -> None:
        """Exclude these tensors from counting."""
        for tensor in tensors:
            if isinstance(tensor, torch.Tensor):
                self.known[tensor.untyped_storage()._cdata] = 0

    def count(self, tensor: torch.Tensor) -> None:
        """Count the storage of the tensor, if it is not yet counted."""
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
