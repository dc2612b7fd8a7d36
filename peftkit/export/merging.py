"""Merge an adapter into the base model layer by layer, without a second copy of the model."""

import ctypes
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.utils import ModulesToSaveWrapper
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedModel
from transformers.core_model_loading import WeightRenaming
from transformers.pytorch_utils import Conv1D

from peftkit.errors import UserError
from peftkit.models.adapters import remove_peft_prefix
from peftkit.recipe.method import Quantization

# A model up to MAX_SINGLE_FILE_BYTES is one file. A larger model is split into 20 files, within these bounds. The
# tensors of one file are in memory in addition to the base model.
MAX_SINGLE_FILE_BYTES = 500_000_000
MIN_SHARD_BYTES, MAX_SHARD_BYTES = 100_000_000, 5_000_000_000
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"

BaseWeight = Callable[[str, torch.Tensor], torch.Tensor]


def write_merged(
    model: PreTrainedModel | PeftModel, folder: Path, dtype: torch.dtype, base_weight: BaseWeight | None = None
) -> None:
    """Merge the adapter in float32 and write weights in `dtype`, config and generation settings.

    `model` cannot be used afterwards. `base_weight` maps the name and value of a base weight to the value for merging.
    A model without an adapter is written unchanged. Memory-mapped base weights are read once and released. Models
    with remote code or converted weights are merged in memory. Raises UserError for an adapter that peft cannot merge.
    """
    inner: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    inner.config.dtype = dtype
    inner.config.architectures = [type(inner).__name__]
    if _has_converted_weights(inner):
        merge_in_memory(model, base_weight).to(dtype).save_pretrained(folder)
        return
    inner.config.save_pretrained(folder)
    if inner.can_generate():
        inner.generation_config.save_pretrained(folder)
    writer = ShardWriter(folder, sum(tensor.numel() for tensor in inner.parameters()) * dtype.itemsize)
    excluded = {*(inner._keys_to_ignore_on_save or ()), *inner.all_tied_weights_keys}
    done: set[str] = set()

    def write(name: str, tensor: torch.Tensor) -> None:
        if name not in excluded:
            writer.add(name, tensor.to(dtype) if tensor.is_floating_point() else tensor)
        done.add(name)

    for name, module in _merge_modules(model, inner, base_weight):
        for own, tensor in module.state_dict(prefix=f"{name}.").items():
            write(own, tensor)
        for parameter in module.parameters():
            parameter.data = torch.empty(0, dtype=parameter.dtype)
    for name, tensor in inner.state_dict().items():
        if name not in done:
            write(name, base_weight(name, tensor) if base_weight is not None else tensor)
    writer.finish()


def merge_in_memory(model: PreTrainedModel | PeftModel, base_weight: BaseWeight | None = None) -> Any:
    """Merge the adapter of a model in memory and return the model."""
    inner: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    for _ in _merge_modules(model, inner, base_weight):
        pass
    return inner


def find_packed_weights(model: nn.Module) -> dict[str, bool]:
    """Find the names (without peft) of 4-bit weights; the value is true for a transposed weight."""
    return {
        remove_peft_prefix(f"{name}.weight"): getattr(module, "source_cls", None) is Conv1D
        for name, module in model.named_modules()
        if type(module).__name__ == "Linear4bit"
    }


def make_dequantizer(quantization: Quantization, packed_names: Mapping[str, bool], dtype: torch.dtype) -> BaseWeight:
    """Return a `base_weight` for `write_merged` that quantizes and dequantizes the 4-bit weights.

    `packed_names` is the result of `find_packed_weights`, `dtype` the dtype of the weights before quantization.
    """
    import bitsandbytes

    device = "cuda" if torch.cuda.is_available() else "cpu"

    def dequantize(name: str, original: torch.Tensor) -> torch.Tensor:
        if name not in packed_names:
            return original
        is_transposed = packed_names[name]
        values = (original.T if is_transposed else original).to(dtype).contiguous().clone()
        packed: Any = bitsandbytes.nn.Params4bit(
            values, requires_grad=False, quant_type=quantization.bnb_4bit_quant_type,
            compress_statistics=quantization.bnb_4bit_use_double_quant,
            quant_storage=getattr(torch, quantization.bnb_4bit_quant_storage),
        )  # fmt: skip
        packed = packed.to(device)
        found = bitsandbytes.functional.dequantize_4bit(packed.data, packed.quant_state).to("cpu", torch.float32)
        return found.T.contiguous() if is_transposed else found

    return dequantize


def _has_converted_weights(model: Any) -> bool:
    """Return whether the checkpoint has code or converted weights; transformers then writes the model."""
    conversions = getattr(model, "_weight_conversions", None) or ()
    return model.is_remote_code() or any(not isinstance(one, WeightRenaming) for one in conversions)


def _merge_modules(
    model: PreTrainedModel | PeftModel, inner: nn.Module, base_weight: BaseWeight | None
) -> Iterator[tuple[str, nn.Module]]:
    """Replace each module wrapped by peft by the merged module, and yield name and merged module."""
    if not isinstance(model, PeftModel):
        return
    wrapped: list[str] = []
    for name, module in inner.named_modules():
        mine = isinstance(module, ModulesToSaveWrapper) or hasattr(module, "base_layer")
        if (mine or hasattr(module, "unload_and_optionally_merge_module")) and not _is_inside(name, wrapped):
            wrapped.append(name)
    try:
        for name in wrapped:
            layer: Any = inner.get_submodule(name)
            if hasattr(layer, "unload_and_optionally_merge_module"):
                plain = layer.unload_and_optionally_merge_module(merge=True, safe_merge=True, adapter_names=None)
            else:
                base = layer.get_base_layer()
                if type(base).__name__ != "Linear4bit":
                    weight = base.weight.data
                    weight = weight if base_weight is None else base_weight(f"{name}.weight", weight)
                    base.weight.data = weight.float()
                layer.merge(safe_merge=True)
                plain = layer.get_base_layer()
            parent, _, child = name.rpartition(".")
            setattr(inner.get_submodule(parent), child, plain)
            yield name, plain
    except (NotImplementedError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"export: peft cannot merge this adapter ({reason}); use --format adapter") from error


def _is_inside(name: str, outer: Sequence[str]) -> bool:
    return any(name.startswith(f"{other}.") for other in outer)


def _release_memory() -> None:
    """Return freed memory to the system, because the C library retains blocks of some megabytes."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


class ShardWriter:
    """Writer that collects tensors and writes a safetensors file when the maximum file size is reached."""

    def __init__(self, folder: Path, total: int) -> None:
        self.folder = folder
        self.max_bytes = (
            total if total <= MAX_SINGLE_FILE_BYTES else min(MAX_SHARD_BYTES, max(MIN_SHARD_BYTES, total // 20))
        )
        self.pending: dict[str, torch.Tensor] = {}
        self.bytes = self.total = 0
        self.files: list[list[str]] = []

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Add a tensor; first write the pending tensors if the file would be too large."""
        size = tensor.numel() * tensor.element_size()
        if self.pending and self.bytes + size > self.max_bytes:
            self._write()
        self.pending[name] = tensor.contiguous()
        self.bytes += size
        self.total += size

    def _write(self) -> None:
        save_file(self.pending, self.folder / f"part-{len(self.files)}", metadata={"format": "pt"})
        self.files.append(list(self.pending))
        (self.folder / f"part-{len(self.files) - 1}").chmod(0o644)
        self.pending, self.bytes = {}, 0
        _release_memory()

    def finish(self) -> None:
        """Write the pending tensors, rename the files, and write an index for several files."""
        self._write()
        if len(self.files) == 1:
            os.replace(self.folder / "part-0", self.folder / WEIGHTS)
            return
        weight_map: dict[str, str] = {}
        for number, names in enumerate(self.files):
            file = f"model-{number + 1:05d}-of-{len(self.files):05d}.safetensors"
            os.replace(self.folder / f"part-{number}", self.folder / file)
            weight_map |= dict.fromkeys(names, file)
        index = {"metadata": {"total_size": self.total}, "weight_map": dict(sorted(weight_map.items()))}
        (self.folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
