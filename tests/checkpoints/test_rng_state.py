import random

import numpy as np
import torch
from safetensors.torch import load, save

from peftkit.checkpoints.rng_state import read_rng_state, set_rng_state


def draw():
    return random.random(), random.gauss(0, 1), np.random.rand(), np.random.standard_normal(), torch.rand(1).item()


def test_every_generator_goes_on_from_where_it_stood():
    random.seed(1)
    np.random.seed(2)
    torch.manual_seed(3)
    # A normal number leaves a second one behind, which belongs to the state.
    draw()
    kept = load(save(read_rng_state()))
    first = [draw() for _ in range(3)]
    assert first != [draw() for _ in range(3)]
    set_rng_state(kept)
    assert first == [draw() for _ in range(3)]
