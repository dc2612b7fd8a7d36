"""Weights and optimizer state by the parameter's name, whole and the same whoever keeps them: one rank, or ZeRO's."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from peftkit.errors import UserError

# Entries of a parameter group that say how a step is computed, not what it is: they belong to the device.
DEVICE_OPTIONS = ("params", "fused", "foreach", "capturable", "differentiable")


def _to_scalar(key: str, value: Any) -> torch.Tensor:
    if isinstance(value, torch.Tensor):
        return value.detach().cpu()
    if isinstance(value, bool | int):
        return torch.tensor(value)
    if isinstance(value, float):
        return torch.tensor(value, dtype=torch.float64)
    raise UserError(f"training.optim: its state has '{key}', a {type(value).__name__}: no checkpoint can hold it")


def _fill(present: Any, value: torch.Tensor) -> Any:
    """A scalar of the state as its optimizer keeps it: a number, or a tensor where it lies."""
    if isinstance(present, torch.Tensor):
        present.data.copy_(value)
        return present
    return value.item() if present is None else type(present)(value.item())


class LocalState:
    """The state of an optimizer whose parameters are the model's own: every rank has all of it.

    Every rank asks the same, in the same order, here as of `ZeroState`.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, parameters: Mapping[str, torch.nn.Parameter]) -> None:
        self.optimizer = optimizer
        self.parameters = parameters
        self.groups = optimizer.param_groups

    def weight(self, parameter: torch.nn.Parameter) -> torch.Tensor:
        """The whole weight: the parameter itself."""
        return parameter.detach()

    def weight_dtype(self, parameter: torch.nn.Parameter) -> torch.dtype:
        """What `weight` gives: the parameter's own."""
        return parameter.dtype

    def set_weight(self, parameter: torch.nn.Parameter, value: torch.Tensor) -> None:
        """Put a whole weight into the parameter, which stays where it is."""
        parameter.data.copy_(value)

    def state(self, parameter: torch.nn.Parameter) -> dict[str, torch.dtype | torch.Tensor]:
        """What is kept of a parameter: a scalar as it is, a tensor as its dtype. Empty before its first gradient.

        Raises UserError for what no checkpoint can hold.
        """
        return {
            key: value.dtype if isinstance(value, torch.Tensor) and value.dim() else _to_scalar(key, value)
            for key, value in self.optimizer.state.get(parameter, {}).items()
            if value is not None
        }

    def tensor(self, parameter: torch.nn.Parameter, key: str) -> torch.Tensor:
        """A tensor of the state, whole."""
        return self.optimizer.state[parameter][key]

    def shape(self, parameter: torch.nn.Parameter, key: str) -> tuple[int, ...]:
        """As the optimizer keeps it: Adafactor's rows and columns are not the parameter's shape."""
        return tuple(self.tensor(parameter, key).shape)

    def create(self) -> None:
        """Let the optimizer make its state, as it does at its first step; the weights are spoiled by it."""
        for parameter in self.parameters.values():
            parameter.grad = torch.zeros_like(parameter)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def set_state(self, parameter: torch.nn.Parameter, saved: Mapping[str, torch.Tensor]) -> None:
        """Fill the state with what was saved; nothing, for a parameter that has had no gradient yet.

        Raises UserError where it is of another form.
        """
        state = self.optimizer.state[parameter]
        if not saved:
            del self.optimizer.state[parameter]
            return
        _check_shapes(saved, {key: value.shape for key, value in state.items() if _is_tensor(value)})
        for key, value in saved.items():
            if value.dim() == 0:
                state[key] = _fill(state.get(key), value)
            else:
                state[key].data.copy_(value)

    def set_scalars(self, saved: Mapping[str, torch.Tensor]) -> None:
        """They are each parameter's own, and set with its state."""


class ZeroState:
    """DeepSpeed's ZeRO 1, 2 or 3: flat float32 pieces of all parameters, spread over the ranks."""

    def __init__(self, zero: Any) -> None:
        self.zero = zero
        self.inner = zero.optimizer
        self.groups = self.inner.param_groups
        self.partitioned = hasattr(zero, "fp32_partitioned_groups_flat")
        if getattr(zero, "swap_optimizer", False):
            raise UserError("training.deepspeed: checkpoints with offload to NVMe are not supported; offload to cpu")

    @property
    def flats(self) -> list[torch.Tensor]:
        """This rank's pieces."""
        return self.zero.fp32_partitioned_groups_flat if self.partitioned else self.zero.single_partition_of_fp32_groups

    def weight(self, parameter: torch.nn.Parameter) -> torch.Tensor:
        """The float32 copy that the optimizer steps."""
        from deepspeed.utils import safe_get_full_fp32_param

        return safe_get_full_fp32_param(parameter)

    def weight_dtype(self, parameter: torch.nn.Parameter) -> torch.dtype:
        """Whatever the model computes in."""
        return torch.float32

    def set_weight(self, parameter: Any, value: torch.Tensor) -> None:
        """Into this rank's piece of the float32 copy, and into the model's own parameter."""
        import deepspeed
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_local_fp32_param

        if not self.partitioned:
            safe_set_full_fp32_param(parameter, value)
            parameter.data.copy_(value)
            return
        safe_set_local_fp32_param(parameter, self._piece(parameter, value))
        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
            if torch.distributed.get_rank() == 0:
                parameter.data.copy_(value)

    def _piece(self, parameter: Any, value: torch.Tensor) -> torch.Tensor:
        """This rank's piece of a whole tensor, with zeros after its end; DeepSpeed's own setter can't go past it."""
        size = parameter.ds_tensor.numel()
        start = size * parameter._z3_optimizer._get_param_partition_rank(parameter)
        piece = value.new_zeros(size)
        inside = value.flatten()[start : start + size]
        piece[: inside.numel()] = inside
        return piece

    def state(self, parameter: torch.nn.Parameter) -> dict[str, torch.dtype | torch.Tensor]:
        """The same keys for every parameter. Raises UserError for what can't be told apart by parameter."""
        found: dict[str, torch.dtype | torch.Tensor] = {}
        for flat in self.flats:
            for key, value in self.inner.state.get(flat, {}).items():
                if not isinstance(value, torch.Tensor) or value.dim() == 0:
                    if value is not None:
                        found[key] = max(found.get(key, _to_scalar(key, value)), _to_scalar(key, value))  # type: ignore[type-var]
                elif value.shape != flat.shape or not value.is_floating_point():
                    raise UserError(
                        f"training.optim: under ZeRO its '{key}' can't be told apart by parameter: no checkpoint can "
                        "hold it; take adamw_torch"
                    )
                else:
                    found[key] = torch.float32
        return found

    def tensor(self, parameter: torch.nn.Parameter, key: str) -> torch.Tensor:
        """Gathered from all ranks."""
        from deepspeed.utils import safe_get_full_optimizer_state

        return safe_get_full_optimizer_state(parameter, key)

    def shape(self, parameter: Any, key: str) -> tuple[int, ...]:
        """The parameter's own."""
        return tuple(parameter.ds_shape if self.partitioned else parameter.shape)

    def create(self) -> None:
        """A step of this rank's pieces with gradients of zero."""
        fresh = [flat for flat in self.flats if flat.grad is None]
        for flat in fresh:
            flat.grad = torch.zeros_like(flat)
        if self.partitioned:
            for index in range(len(self.flats)):
                self.zero._optimizer_step(index)
        else:
            self.inner.step()
            self.zero._lazy_init_hp_params_optimizer_state()
        for flat in fresh:
            flat.grad = None

    def set_state(self, parameter: Any, saved: Mapping[str, torch.Tensor]) -> None:
        """A parameter of which nothing was saved has zeros; of scalars the largest over the parameters stays."""
        from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

        shape = self.shape(parameter, "")
        here = {key for flat in self.flats for key, value in self.inner.state[flat].items() if _is_tensor(value)}
        _check_shapes(saved, dict.fromkeys(here, shape))
        for key, value in saved.items():
            if value.dim() == 0:
                continue
            if self.partitioned:
                safe_set_local_optimizer_state(parameter, self._piece(parameter, value), key)
            else:
                safe_set_full_optimizer_state(parameter, value, key)

    def set_scalars(self, saved: Mapping[str, torch.Tensor]) -> None:
        """Set each scalar, such as the number of steps, for all parameters."""
        for flat in self.flats:
            state = self.inner.state[flat]
            for key, value in saved.items():
                state[key] = _fill(state.get(key), value)


OptimizerState = LocalState | ZeroState


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dim() > 0


def _check_shapes(saved: Mapping[str, torch.Tensor], here: Mapping[str, Sequence[int]]) -> None:
    """Raise UserError unless a parameter's saved tensors are those, by key and shape, that the optimizer made."""
    there = {key: list(value.shape) for key, value in saved.items() if value.dim()}
    made = {key: list(shape) for key, shape in here.items()}
    if saved and there != made:
        key = min(key for key in there.keys() | made.keys() if there.get(key) != made.get(key))
        raise UserError(
            f"--resume: the optimizer's '{key}' has shape {there.get(key, 'none')} in the checkpoint and "
            f"{made.get(key, 'none')} here; go on with the optimizer that wrote it, with DeepSpeed or without as then"
        )


def wrap_optimizer(optimizer: Any, model: torch.nn.Module) -> OptimizerState:
    """Who keeps the state of the Trainer's optimizer. Raises UserError for one that can't be asked."""
    while hasattr(optimizer, "optimizer") and not _is_zero(optimizer):
        optimizer = optimizer.optimizer
    if _is_zero(optimizer):
        return ZeroState(optimizer)
    parameters = dict(list_trainable(model))
    known = {id(parameter) for parameter in parameters.values()}
    if not {id(parameter) for group in optimizer.param_groups for parameter in group["params"]} <= known:
        raise UserError("training.deepspeed: no checkpoint can be made without ZeRO in 16 bits; take stage 1, 2 or 3")
    return LocalState(optimizer, parameters)


def _is_zero(optimizer: Any) -> bool:
    return hasattr(optimizer, "fp32_partitioned_groups_flat") or hasattr(optimizer, "single_partition_of_fp32_groups")


def read_groups(kept: OptimizerState) -> list[dict[str, Any]]:
    """What the optimizer keeps of its groups, such as the learning rate: numbers, words and lists of them."""
    return [
        {key: value for key, value in group.items() if key not in DEVICE_OPTIONS and _is_plain(value)}
        for group in kept.groups
    ]


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_plain(one) for one in value)
    return value is None or isinstance(value, bool | int | float | str)


def set_groups(kept: OptimizerState, saved: list[dict[str, Any]]) -> None:
    """Set what both sides know. Raises UserError for another number of groups."""
    if len(saved) != len(kept.groups):
        raise UserError(
            f"--resume: the optimizer has {len(saved)} groups in the checkpoint and {len(kept.groups)} here"
        )
    for group, values in zip(kept.groups, saved, strict=True):
        for key, value in values.items():
            if key in group and _is_plain(group[key]):
                group[key] = tuple(value) if isinstance(group[key], tuple) else value


def list_trainable(model: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """The parameters that are trained, by name."""
    return ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)
