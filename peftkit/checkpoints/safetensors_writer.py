"""Write a safetensors file one tensor at a time, with only one tensor in memory."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import torch

DTYPE_CODES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TensorEntry:
    """A tensor to write.

    Attributes:
        name: Name in the file.
        shape: Shape of the whole tensor.
        dtype: Dtype in the file.
        make: Returns the values; called once, in the order of the entries, on every rank.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    make: Callable[[], torch.Tensor]


def make_entry(name: str, tensor: torch.Tensor) -> TensorEntry:
    """Make an entry from a whole tensor."""
    return TensorEntry(name=name, shape=tuple(tensor.shape), dtype=tensor.dtype, make=lambda: tensor)


def write_tensors(path: Path | None, entries: Sequence[TensorEntry], metadata: Mapping[str, str] | None = None) -> None:
    """Make the tensor of every entry and write it to `path`; without `path` only make the tensors.

    The layout is the safetensors format: the length of the header in eight bytes, the header as JSON, and the bytes of
    the tensors.
    """
    header: dict[str, object] = {"__metadata__": dict(metadata or {"format": "pt"})}
    end = 0
    for one in entries:
        start, end = end, end + one.dtype.itemsize * math.prod(one.shape)
        header[one.name] = {"dtype": DTYPE_CODES[one.dtype], "shape": list(one.shape), "data_offsets": [start, end]}
    if path is None:
        for one in entries:
            one.make()
        return
    text = json.dumps(header).encode()
    # Align the tensors to eight bytes.
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for one in entries:
            _write(file, one)


def _write(file: IO[bytes], one: TensorEntry) -> None:
    tensor = one.make().detach().to("cpu", one.dtype)
    if tuple(tensor.shape) != one.shape:
        raise ValueError(f"{one.name}: wrong shape (expected {one.shape}, got {tuple(tensor.shape)})")
    if tensor.numel():
        file.write(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
