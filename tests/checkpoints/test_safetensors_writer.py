import pytest
import torch
from safetensors.torch import load_file

from peftkit.checkpoints.safetensors_writer import DTYPE_CODES, TensorEntry, make_entry, write_tensors


def test_safetensors_reads_what_was_streamed(tmp_path):
    torch.manual_seed(0)
    tensors = {str(dtype): torch.randn(3, 5).to(dtype) for dtype in DTYPE_CODES}
    tensors |= {"scalar": torch.tensor(7.5), "empty": torch.zeros(0), "turned": torch.randn(4, 3).T}
    write_tensors(tmp_path / "a.safetensors", [make_entry(name, tensor) for name, tensor in tensors.items()])
    found = load_file(tmp_path / "a.safetensors")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


def test_each_tensor_is_asked_for_once_and_only_when_its_turn_comes(tmp_path):
    asked = []

    def make(name):
        asked.append(name)
        return torch.ones(2)

    entries = [
        TensorEntry(name=name, shape=(2,), dtype=torch.float32, make=lambda name=name: make(name))
        for name in ("a", "b")
    ]
    write_tensors(None, entries)
    assert asked == ["a", "b"]
    write_tensors(tmp_path / "b.safetensors", entries)
    assert asked == ["a", "b", "a", "b"]


def test_a_tensor_of_another_shape_than_announced_fails(tmp_path):
    with pytest.raises(ValueError, match=r"a: wrong shape \(expected \(2,\), got \(3,\)\)"):
        write_tensors(
            tmp_path / "c", [TensorEntry(name="a", shape=(2,), dtype=torch.float32, make=lambda: torch.ones(3))]
        )
