"""Random number generator state as tensors."""

import random
from collections.abc import Mapping

import numpy as np
import torch


def read_rng_state() -> dict[str, torch.Tensor]:
    """Read the state of the generators of Python, NumPy, PyTorch and this rank's GPU."""
    version, values, gauss = random.getstate()
    # NumPy's return type is a union of a legacy and a newer form.
    kind, keys, position, has_gauss, cached = np.random.get_state()
    assert kind == "MT19937"
    found = {
        "python": torch.tensor([version, *values]),
        "python_gauss": torch.tensor([] if gauss is None else [gauss], dtype=torch.float64),
        "numpy": torch.tensor([*(int(key) for key in keys), int(position), int(has_gauss)]),
        "numpy_gauss": torch.tensor([cached], dtype=torch.float64),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        found["cuda"] = torch.cuda.get_rng_state()
    return found


def set_rng_state(state: Mapping[str, torch.Tensor]) -> None:
    """Set every generator in `state` that exists in this process; `state` comes from `read_rng_state`."""
    version, *values = state["python"].tolist()
    gauss = state["python_gauss"].tolist()
    random.setstate((version, tuple(values), gauss[0] if gauss else None))
    *keys, position, has_gauss = state["numpy"].tolist()
    cached = state["numpy_gauss"].item()
    np.random.set_state(("MT19937", np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
