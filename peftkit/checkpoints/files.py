"""Checkpoint files in safetensors or JSON: weights, optimizer state, schedule and loss scale.

Every rank calls these functions. `folder` is None on ranks that only contribute shards.
"""

import json
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import safe_open

from peftkit.checkpoints.optimizer_state import OptimizerState, list_trainable, read_groups, set_groups
from peftkit.checkpoints.safetensors_writer import TensorEntry, make_entry, write_tensors
from peftkit.errors import UserError
from peftkit.system.files import redact_home, write_json, write_text

# Files of the trained weights: of an adapter, and of a whole model with the file name that `transformers` loads.
TRAINED, MODEL = "trained.safetensors", "model.safetensors"
OPTIMIZER, OPTIMIZER_GROUPS = "optimizer.safetensors", "optimizer.json"
SCHEDULER, SCALER = "scheduler.json", "scaler.json"


def write_weights(folder: Path | None, model: Any, state: OptimizerState) -> None:
    """Write the trained weights; write an adapter also with peft's names, for loading with peft."""
    adapter: dict[str, torch.Tensor] = {}
    whole = not isinstance(model, PeftModel)

    def weight(name: str, parameter: torch.nn.Parameter) -> torch.Tensor:
        value = state.weight(parameter)
        if not whole and folder is not None:
            adapter[name] = value.to(parameter.dtype).cpu()
        return value

    entries = [
        TensorEntry(
            name=name,
            shape=tuple(getattr(parameter, "ds_shape", parameter.shape)),
            dtype=state.weight_dtype(parameter),
            make=partial(weight, name, parameter),
        )
        for name, parameter in list_trainable(model)
    ]
    entries += [make_entry(name, buffer) for name, buffer in _find_buffers(model)]
    write_tensors(folder and folder / (MODEL if whole else TRAINED), entries)
    if folder is None:
        return
    if whole:
        model.config.save_pretrained(folder)
    elif not model.active_peft_config.is_prompt_learning:
        # Without embeddings; otherwise peft queries the Hub to detect resized embeddings.
        model.save_pretrained(str(folder), state_dict=adapter, save_embedding_layers=False)
        (folder / "README.md").unlink(missing_ok=True)
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        config["base_model_name_or_path"] = redact_home(config["base_model_name_or_path"] or "")
        write_json(folder / "adapter_config.json", config)


def read_weights(folder: Path, model: torch.nn.Module, state: OptimizerState) -> None:
    """Read the weights into the model and the optimizer. Raises UserError for a missing weight."""
    path = folder / (TRAINED if isinstance(model, PeftModel) else MODEL)
    with safe_open(path, framework="pt") as file:
        names = set(file.keys())
        for name, parameter in list_trainable(model):
            if name not in names:
                raise UserError(
                    f"--resume: {redact_home(path)} has no weight {name}; use the recipe that wrote the checkpoint"
                )
            state.set_weight(parameter, file.get_tensor(name).to(parameter.device))
        for name, buffer in _find_buffers(model):
            buffer.data.copy_(file.get_tensor(name))


def _find_buffers(model: torch.nn.Module) -> list[tuple[str, torch.Tensor]]:
    """Find the buffers to save; buffers of a frozen base model do not change."""
    if isinstance(model, PeftModel):
        return []
    saved = model.state_dict().keys()
    return [(name, buffer) for name, buffer in model.named_buffers() if name in saved]


def write_optimizer(folder: Path | None, model: torch.nn.Module, state: OptimizerState) -> None:
    """Write the optimizer's parameter groups, and the state with names `PARAMETER/KEY`."""
    entries = []
    for name, parameter in list_trainable(model):
        for key, value in state.state(parameter).items():
            if isinstance(value, torch.Tensor):
                entries.append(make_entry(f"{name}/{key}", value))
            else:
                shape, make = state.shape(parameter, key), partial(state.tensor, parameter, key)
                entries.append(TensorEntry(name=f"{name}/{key}", shape=shape, dtype=value, make=make))
    write_tensors(folder and folder / OPTIMIZER, entries)
    if folder is not None:
        write_json(folder / OPTIMIZER_GROUPS, read_groups(state))


def read_optimizer(folder: Path, model: torch.nn.Module, state: OptimizerState) -> None:
    """Read the optimizer's state; call before `read_weights`, because this changes the weights."""
    with safe_open(folder / OPTIMIZER, framework="pt") as file:
        keys: dict[str, list[str]] = {}
        for full in file.keys():  # noqa: SIM118
            name, _, key = full.rpartition("/")
            keys.setdefault(name, []).append(key)
        # There is no state before the first step.
        if keys:
            state.create()
            largest: dict[str, torch.Tensor] = {}
            for name, parameter in list_trainable(model):
                saved = {key: file.get_tensor(f"{name}/{key}") for key in keys.get(name, ())}
                state.set_state(parameter, saved)
                for key, value in saved.items():
                    if value.dim() == 0:
                        largest[key] = max(largest.get(key, value), value)
            state.set_scalars(largest)
    set_groups(state, json.loads((folder / OPTIMIZER_GROUPS).read_text(encoding="utf-8")))


def write_schedule(folder: Path, scheduler: Any) -> None:
    """Write the state of the learning rate schedule. Raises UserError for state that is not JSON."""
    try:
        text = json.dumps(getattr(scheduler, "scheduler", scheduler).state_dict(), indent=2)
    except TypeError as error:
        raise UserError(
            f"training.lr_scheduler_type: the state cannot be saved as JSON ({error}); use another schedule"
        ) from None
    write_text(folder / SCHEDULER, text + "\n")


def read_schedule(folder: Path, scheduler: Any) -> None:
    """Read the state of the learning rate schedule."""
    state = json.loads((folder / SCHEDULER).read_text(encoding="utf-8"))
    getattr(scheduler, "scheduler", scheduler).load_state_dict(state)


def write_scaler(folder: Path, scaler: Any) -> None:
    """Write the float16 loss scale of torch's GradScaler or of DeepSpeed, if there is one."""
    if state := _read_scaler_state(scaler):
        write_json(folder / SCALER, state)


def read_scaler(folder: Path, scaler: Any) -> None:
    """Read the loss scale; for the same kind of scaler read the complete state."""
    here = _read_scaler_state(scaler)
    if not here or not (folder / SCALER).is_file():
        return
    saved = json.loads((folder / SCALER).read_text(encoding="utf-8"))
    same = saved["kind"] == here["kind"]
    if here["kind"] == "deepspeed":
        vars(scaler).update(saved["state"] if same else {"cur_scale": saved["scale"]})
    else:
        scaler.load_state_dict(saved["state"] if same else {**here["state"], "scale": saved["scale"]})


def _read_scaler_state(scaler: Any) -> dict[str, Any]:
    if hasattr(scaler, "cur_scale"):
        plain = {name: value for name, value in vars(scaler).items() if isinstance(value, int | float)}
        # A constant scale is an option, not state.
        return {"kind": "deepspeed", "scale": float(scaler.cur_scale), "state": plain} if scaler.dynamic else {}
    state = {} if scaler is None else scaler.state_dict()
    return {"kind": "torch", "scale": state["scale"], "state": state} if state else {}
