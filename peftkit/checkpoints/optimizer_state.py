"""Weights and optimizer state by parameter name, unsharded, in the same form with and without ZeRO."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from peftkit.errors import UserError

# Entries of a parameter group that select the implementation of a step, without effect on the result.
DEVICE_OPTIONS = ("params", "fused", "foreach", "capturable", "differentiable")


def _to_scalar(key: str, value: Any) -> torch.Tensor:
    if isinstance(value, torch.Tensor):
        return value.detach().cpu()
    if isinstance(value, bool | int):
        return torch.tensor(value)
    if isinstance(value, float):
        return torch.tensor(value, dtype=torch.float64)
    raise UserError(f"training.optim: cannot save state '{key}' of type {type(value).__name__}; use adamw_torch")


def _set_scalar(present: Any, value: torch.Tensor) -> Any:
    """Set a scalar of the state in the existing form: a number, or a tensor on the same device."""
    if isinstance(present, torch.Tensor):
        present.data.copy_(value)
        return present
    return value.item() if present is None else type(present)(value.item())


class LocalState:
    """Optimizer state without ZeRO: every rank has the complete state.

    As for `ZeroState`, every rank calls the same methods in the same order.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, parameters: Mapping[str, torch.nn.Parameter]) -> None:
        self.optimizer = optimizer
        self.parameters = parameters
        self.groups = optimizer.param_groups

    def weight(self, parameter: torch.nn.Parameter) -> torch.Tensor:
        """Return the whole weight: the parameter itself."""
        return parameter.detach()

    def weight_dtype(self, parameter: torch.nn.Parameter) -> torch.dtype:
        """Return the dtype of `weight`: the parameter's."""
        return parameter.dtype

    def set_weight(self, parameter: torch.nn.Parameter, value: torch.Tensor) -> None:
        """Copy a whole weight into the parameter."""
        parameter.data.copy_(value)

    def state(self, parameter: torch.nn.Parameter) -> dict[str, torch.dtype | torch.Tensor]:
        """Return a parameter's state: scalars as tensors, tensors as dtypes; empty before the first gradient.

        Raises UserError for state that cannot be saved.
        """
        return {
            key: value.dtype if isinstance(value, torch.Tensor) and value.dim() else _to_scalar(key, value)
            for key, value in self.optimizer.state.get(parameter, {}).items()
            if value is not None
        }

    def tensor(self, parameter: torch.nn.Parameter, key: str) -> torch.Tensor:
        """Return a whole tensor of the state."""
        return self.optimizer.state[parameter][key]

    def shape(self, parameter: torch.nn.Parameter, key: str) -> tuple[int, ...]:
        """Return the shape of a state tensor, which may differ from the parameter (Adafactor)."""
        return tuple(self.tensor(parameter, key).shape)

    def create(self) -> None:
        """Create the state with an optimizer step, which changes the weights."""
        for parameter in self.parameters.values():
            parameter.grad = torch.zeros_like(parameter)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def set_state(self, parameter: torch.nn.Parameter, saved: Mapping[str, torch.Tensor]) -> None:
        """Set the state to the saved state, which is empty for a parameter without a gradient.

        Raises UserError if the shapes differ.
        """
        state = self.optimizer.state[parameter]
        if not saved:
            del self.optimizer.state[parameter]
            return
        _check_shapes(saved, {key: value.shape for key, value in state.items() if _is_tensor(value)})
        for key, value in saved.items():
            if value.dim() == 0:
                state[key] = _set_scalar(state.get(key), value)
            else:
                state[key].data.copy_(value)

    def set_scalars(self, saved: Mapping[str, torch.Tensor]) -> None:
        """Do nothing: `set_state` sets the scalars of each parameter."""


class ZeroState:
    """Optimizer state of DeepSpeed ZeRO-1, 2 or 3: flat float32 partitions over the ranks."""

    def __init__(self, zero: Any) -> None:
        self.zero = zero
        self.inner = zero.optimizer
        self.groups = self.inner.param_groups
        self.partitioned = hasattr(zero, "fp32_partitioned_groups_flat")
        if getattr(zero, "swap_optimizer", False):
            raise UserError("training.deepspeed: checkpoints with NVMe offload are not supported; offload to cpu")

    @property
    def flats(self) -> list[torch.Tensor]:
        """The partitions of this rank."""
        return self.zero.fp32_partitioned_groups_flat if self.partitioned else self.zero.single_partition_of_fp32_groups

    def weight(self, parameter: torch.nn.Parameter) -> torch.Tensor:
        """Return the optimizer's float32 copy of a weight."""
        from deepspeed.utils import safe_get_full_fp32_param

        return safe_get_full_fp32_param(parameter)

    def weight_dtype(self, parameter: torch.nn.Parameter) -> torch.dtype:
        """Return float32, independent of the dtype of the model."""
        return torch.float32

    def set_weight(self, parameter: Any, value: torch.Tensor) -> None:
        """Copy a whole weight into this rank's float32 partition and into the model's parameter."""
        import deepspeed
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_local_fp32_param

        if not self.partitioned:
            safe_set_full_fp32_param(parameter, value)
            parameter.data.copy_(value)
            return
        safe_set_local_fp32_param(parameter, self._slice_partition(parameter, value))
        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
            if torch.distributed.get_rank() == 0:
                parameter.data.copy_(value)

    def _slice_partition(self, parameter: Any, value: torch.Tensor) -> torch.Tensor:
        """Return this rank's partition of a whole tensor, padded with zeros as DeepSpeed's setter requires."""
        size = parameter.ds_tensor.numel()
        start = size * parameter._z3_optimizer._get_param_partition_rank(parameter)
        partition = value.new_zeros(size)
        inside = value.flatten()[start : start + size]
        partition[: inside.numel()] = inside
        return partition

    def state(self, parameter: torch.nn.Parameter) -> dict[str, torch.dtype | torch.Tensor]:
        """Return the keys of the state, equal for all parameters. Raises UserError for state of another shape."""
        found: dict[str, torch.dtype | torch.Tensor] = {}
        for flat in self.flats:
            for key, value in self.inner.state.get(flat, {}).items():
                if not isinstance(value, torch.Tensor) or value.dim() == 0:
                    if value is not None:
                        found[key] = max(found.get(key, _to_scalar(key, value)), _to_scalar(key, value))  # type: ignore[type-var]
                elif value.shape != flat.shape or not value.is_floating_point():
                    raise UserError(
                        f"training.optim: cannot save state '{key}' by parameter with ZeRO; use adamw_torch"
                    )
                else:
                    found[key] = torch.float32
        return found

    def tensor(self, parameter: torch.nn.Parameter, key: str) -> torch.Tensor:
        """Gather a tensor of the state from all ranks."""
        from deepspeed.utils import safe_get_full_optimizer_state

        return safe_get_full_optimizer_state(parameter, key)

    def shape(self, parameter: Any, key: str) -> tuple[int, ...]:
        """Return the parameter's shape."""
        return tuple(parameter.ds_shape if self.partitioned else parameter.shape)

    def create(self) -> None:
        """Create the state with an optimizer step on this rank's partitions with zero gradients."""
        without_gradient = [flat for flat in self.flats if flat.grad is None]
        for flat in without_gradient:
            flat.grad = torch.zeros_like(flat)
        if self.partitioned:
            for index in range(len(self.flats)):
                self.zero._optimizer_step(index)
        else:
            self.inner.step()
            self.zero._lazy_init_hp_params_optimizer_state()
        for flat in without_gradient:
            flat.grad = None

    def set_state(self, parameter: Any, saved: Mapping[str, torch.Tensor]) -> None:
        """Set a parameter's state tensors; a parameter without saved state has zeros."""
        from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

        shape = self.shape(parameter, "")
        here = {key for flat in self.flats for key, value in self.inner.state[flat].items() if _is_tensor(value)}
        _check_shapes(saved, dict.fromkeys(here, shape))
        for key, value in saved.items():
            if value.dim() == 0:
                continue
            if self.partitioned:
                safe_set_local_optimizer_state(parameter, self._slice_partition(parameter, value), key)
            else:
                safe_set_full_optimizer_state(parameter, value, key)

    def set_scalars(self, saved: Mapping[str, torch.Tensor]) -> None:
        """Set each scalar, such as the number of steps, for all parameters."""
        for flat in self.flats:
            state = self.inner.state[flat]
            for key, value in saved.items():
                state[key] = _set_scalar(state.get(key), value)


OptimizerState = LocalState | ZeroState


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dim() > 0


def _check_shapes(saved: Mapping[str, torch.Tensor], here: Mapping[str, Sequence[int]]) -> None:
    """Raise UserError unless the saved tensors of a parameter have the optimizer's keys and shapes."""
    stored = {key: list(value.shape) for key, value in saved.items() if value.dim()}
    present = {key: list(shape) for key, shape in here.items()}
    if saved and stored != present:
        key = min(key for key in stored.keys() | present.keys() if stored.get(key) != present.get(key))
        raise UserError(
            f"--resume: optimizer state '{key}' does not match the checkpoint (expected shape "
            f"{stored.get(key, 'none')}, got {present.get(key, 'none')}); use the same optimizer and DeepSpeed config"
        )


def wrap_optimizer(optimizer: Any, model: torch.nn.Module) -> OptimizerState:
    """Wrap the Trainer's optimizer for access to the state. Raises UserError for an unsupported optimizer."""
    while hasattr(optimizer, "optimizer") and not _is_zero(optimizer):
        optimizer = optimizer.optimizer
    if _is_zero(optimizer):
        return ZeroState(optimizer)
    parameters = dict(list_trainable(model))
    known = {id(parameter) for parameter in parameters.values()}
    if not {id(parameter) for group in optimizer.param_groups for parameter in group["params"]} <= known:
        raise UserError("training.deepspeed: cannot save 16-bit training without ZeRO; use stage 1, 2 or 3")
    return LocalState(optimizer, parameters)


def _is_zero(optimizer: Any) -> bool:
    return hasattr(optimizer, "fp32_partitioned_groups_flat") or hasattr(optimizer, "single_partition_of_fp32_groups")


def read_groups(state: OptimizerState) -> list[dict[str, Any]]:
    """Read plain values of the parameter groups, such as the learning rate: numbers, strings and lists."""
    return [
        {key: value for key, value in group.items() if key not in DEVICE_OPTIONS and _is_plain(value)}
        for group in state.groups
    ]


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_plain(one) for one in value)
    return value is None or isinstance(value, bool | int | float | str)


def set_groups(state: OptimizerState, saved: list[dict[str, Any]]) -> None:
    """Set the saved values that the optimizer also has. Raises UserError for another number of groups."""
    if len(saved) != len(state.groups):
        raise UserError(
            f"--resume: the number of parameter groups differs (expected {len(saved)}, got {len(state.groups)}); "
            "use the same optimizer"
        )
    for group, values in zip(state.groups, saved, strict=True):
        for key, value in values.items():
            if key in group and _is_plain(group[key]):
                group[key] = tuple(value) if isinstance(group[key], tuple) else value


def list_trainable(model: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """List the trainable parameters by name."""
    return ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)
