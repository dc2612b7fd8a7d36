import copy

import pytest
import torch
from bitsandbytes.optim import AdamW8bit
from safetensors.torch import load_file
from transformers import PreTrainedConfig
from transformers.optimization import Adafactor

from peftkit.checkpoints.files import read_optimizer, read_weights, write_optimizer, write_weights
from peftkit.checkpoints.optimizer_state import wrap_optimizer
from peftkit.errors import UserError

OPTIMIZERS = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1),
    "adamw fused": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1, fused=True),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=1e-2, amsgrad=True),
    "sgd": lambda p: torch.optim.SGD(p, lr=1e-2),
    "sgd with momentum": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9, nesterov=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-2, momentum=0.5, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=1e-2),
    "nadam": lambda p: torch.optim.NAdam(p, lr=1e-2),
    "in 8 bits": lambda p: AdamW8bit(p, lr=1e-2),
    "adafactor": lambda p: Adafactor(p, lr=1e-2, relative_step=False, scale_parameter=False, beta1=0.9),
    "adafactor that sets its own rate": lambda p: Adafactor(p),
}


class Model(torch.nn.Module):
    """A matrix, one large enough for 8 bits, a parameter without a gradient until it is used, and a buffer."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.matrix = torch.nn.Linear(6, 5)
        self.large = torch.nn.Parameter(torch.randn(80, 60))
        self.late = torch.nn.Parameter(torch.ones(3))
        self.frozen = torch.nn.Linear(5, 5).requires_grad_(False)
        self.norm = torch.nn.BatchNorm1d(5)
        self.config = PreTrainedConfig()

    def forward(self, x, late):
        loss = self.norm(self.frozen(self.matrix(x))).square().mean() + (self.large * x.mean()).square().mean()
        return loss * (self.late.sum() if late else 1)


def train(model, optimizer, steps, late=False):
    for step in steps:
        torch.manual_seed(step)
        model(torch.randn(4, 6), late).backward()
        optimizer.step()
        optimizer.zero_grad()


def resumed(make, model, optimizer, folder):
    """A fresh model and optimizer, to which the others are written and read."""
    kept = wrap_optimizer(optimizer, model)
    write_weights(folder, model, kept)
    write_optimizer(folder, model, kept)
    other = Model()
    again = make([p for p in other.parameters() if p.requires_grad])
    kept = wrap_optimizer(again, other)
    read_optimizer(folder, other, kept)
    read_weights(folder, other, kept)
    return other, again


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_any_optimizer_goes_on_as_if_it_had_not_stopped(make, tmp_path):
    model = Model()
    optimizer = make([p for p in model.parameters() if p.requires_grad])
    train(model, optimizer, range(3))
    optimizer.param_groups[0]["lr"] = optimizer.param_groups[0]["lr"] and 5e-3
    other, again = resumed(make, model, optimizer, tmp_path)
    for one, two in ((model, optimizer), (other, again)):
        train(one, two, range(3, 6), late=True)
    right, found = model.state_dict(), other.state_dict()
    assert all(torch.equal(right[name], found[name]) for name in right)
    types = [[type(value) for state in one.state.values() for value in state.values()] for one in (optimizer, again)]
    assert types[0] == types[1]


def test_a_reset_optimizer_goes_on_otherwise(tmp_path):
    make = OPTIMIZERS["adamw"]
    model = Model()
    optimizer = make([p for p in model.parameters() if p.requires_grad])
    train(model, optimizer, range(3))
    other = copy.deepcopy(model)
    train(model, optimizer, range(3, 6))
    train(other, make([p for p in other.parameters() if p.requires_grad]), range(3, 6))
    assert (model.matrix.weight - other.matrix.weight).abs().max() > 1e-3


def test_only_what_is_trained_is_written_by_its_plain_name(tmp_path):
    model = Model()
    optimizer = OPTIMIZERS["adamw"]([p for p in model.parameters() if p.requires_grad])
    train(model, optimizer, range(2))
    resumed(OPTIMIZERS["adamw"], model, optimizer, tmp_path)
    state = load_file(tmp_path / "optimizer.safetensors")
    trained = ("large", "matrix.weight", "matrix.bias", "norm.weight", "norm.bias")
    assert state.keys() == {f"{name}/{key}" for name in trained for key in ("exp_avg", "exp_avg_sq", "step")}
    assert state["matrix.weight/exp_avg"].shape == (5, 6)
    saved = load_file(tmp_path / "model.safetensors")
    assert {"matrix.weight", "late", "norm.running_mean"} <= saved.keys()
    assert "frozen.weight" not in saved


def test_another_optimizer_is_refused(tmp_path):
    model = Model()
    optimizer = OPTIMIZERS["adafactor"]([p for p in model.parameters() if p.requires_grad])
    train(model, optimizer, range(2))
    write_optimizer(tmp_path, model, wrap_optimizer(optimizer, model))
    other = Model()
    parameters = [p for p in other.parameters() if p.requires_grad]
    kept = wrap_optimizer(torch.optim.AdamW(parameters, lr=1e-2), other)
    with pytest.raises(
        UserError, match=r"'exp_avg_sq' does not match the checkpoint \(expected shape none, got \[80, 60\]\)"
    ):
        read_optimizer(tmp_path, other, kept)


def test_state_that_no_file_can_hold_is_one_line(tmp_path):
    model = Model()
    optimizer = OPTIMIZERS["adamw"]([p for p in model.parameters() if p.requires_grad])
    optimizer.state[model.late]["projector"] = object()
    with pytest.raises(UserError, match="cannot save state 'projector' of type object"):
        write_optimizer(tmp_path, model, wrap_optimizer(optimizer, model))


def test_an_optimizer_of_other_parameters_is_refused():
    with pytest.raises(UserError, match="use stage 1, 2 or 3"):
        wrap_optimizer(torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=1), Model())
