"""What is in a checkpoint: weights, optimizer state and scale, by the parameters' plain names, as safetensors or JSON.

Every rank calls these functions alike; `folder` is None on the ranks that only give their part.
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

# The trained weights; those of a whole model under the name by which `transformers` finds them.
TRAINED, MODEL = "trained.safetensors", "model.safetensors"
OPTIMIZER, OPTIMIZER_GROUPS = "optimizer.safetensors", "optimizer.json"
SCHEDULER, SCALER = "scheduler.json", "scaler.json"


def write_weights(folder: Path | None, model: Any, kept: OptimizerState) -> None:
    """The trained weights and, of an adapter, a copy under peft's own names: the checkpoint is an adapter too."""
    adapter: dict[str, torch.Tensor] = {}
    whole = not isinstance(model, PeftModel)

    def weight(name: str, parameter: torch.nn.Parameter) -> torch.Tensor:
        value = kept.weight(parameter)
        if not whole and folder is not None:
            adapter[name] = value.to(parameter.dtype).cpu()
        return value

    entries = [
        TensorEntry(
            name=name,
            shape=tuple(getattr(parameter, "ds_shape", parameter.shape)),
            dtype=kept.weight_dtype(parameter),
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
        # Whether embeddings were resized, peft would ask the hub.
        model.save_pretrained(str(folder), state_dict=adapter, save_embedding_layers=False)
        (folder / "README.md").unlink(missing_ok=True)
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        config["base_model_name_or_path"] = redact_home(config["base_model_name_or_path"] or "")
        write_json(folder / "adapter_config.json", config)


def read_weights(folder: Path, model: torch.nn.Module, kept: OptimizerState) -> None:
    """Put the weights where the model and its optimizer have theirs. Raises UserError when one is not there."""
    path = folder / (TRAINED if isinstance(model, PeftModel) else MODEL)
    with safe_open(path, framework="pt") as file:
        there = set(file.keys())
        for name, parameter in list_trainable(model):
            if name not in there:
                raise UserError(f"--resume: {redact_home(path)} has no {name}, which is trained here")
            kept.set_weight(parameter, file.get_tensor(name).to(parameter.device))
        for name, buffer in _find_buffers(model):
            buffer.data.copy_(file.get_tensor(name))


def _find_buffers(model: torch.nn.Module) -> list[tuple[str, torch.Tensor]]:
    """What a whole model saves beside its parameters; what a frozen base has stays as the base brought it."""
    if isinstance(model, PeftModel):
        return []
    saved = model.state_dict().keys()
    return [(name, buffer) for name, buffer in model.named_buffers() if name in saved]


def write_optimizer(folder: Path | None, model: torch.nn.Module, kept: OptimizerState) -> None:
    """The optimizer's state, `PARAMETER/KEY` each, and its groups."""
    entries = []
    for name, parameter in list_trainable(model):
        for key, value in kept.state(parameter).items():
            if isinstance(value, torch.Tensor):
                entries.append(make_entry(f"{name}/{key}", value))
            else:
                shape, make = kept.shape(parameter, key), partial(kept.tensor, parameter, key)
                entries.append(TensorEntry(name=f"{name}/{key}", shape=shape, dtype=value, make=make))
    write_tensors(folder and folder / OPTIMIZER, entries)
    if folder is not None:
        write_json(folder / OPTIMIZER_GROUPS, read_groups(kept))


def read_optimizer(folder: Path, model: torch.nn.Module, kept: OptimizerState) -> None:
    """Before the weights, which the optimizer spoils while it makes its state."""
    with safe_open(folder / OPTIMIZER, framework="pt") as file:
        keys: dict[str, list[str]] = {}
        for full in file.keys():  # noqa: SIM118
            name, _, key = full.rpartition("/")
            keys.setdefault(name, []).append(key)
        # Where no step has been made, no state is there, and none is missing.
        if keys:
            kept.create()
            largest: dict[str, torch.Tensor] = {}
            for name, parameter in list_trainable(model):
                saved = {key: file.get_tensor(f"{name}/{key}") for key in keys.get(name, ())}
                kept.set_state(parameter, saved)
                for key, value in saved.items():
                    if value.dim() == 0:
                        largest[key] = max(largest.get(key, value), value)
            kept.set_scalars(largest)
    set_groups(kept, json.loads((folder / OPTIMIZER_GROUPS).read_text(encoding="utf-8")))


def write_schedule(folder: Path, scheduler: Any) -> None:
    """Where the learning rate's schedule stands. Raises UserError for one that is no plain data."""
    try:
        text = json.dumps(getattr(scheduler, "scheduler", scheduler).state_dict(), indent=2)
    except TypeError as error:
        raise UserError(f"training.lr_scheduler_type: no checkpoint can hold its state ({error})") from None
    write_text(folder / SCHEDULER, text + "\n")


def read_schedule(folder: Path, scheduler: Any) -> None:
    """Set a schedule to where it stood."""
    state = json.loads((folder / SCHEDULER).read_text(encoding="utf-8"))
    getattr(scheduler, "scheduler", scheduler).load_state_dict(state)


def write_scaler(folder: Path, scaler: Any) -> None:
    """The scale of float16's losses, by whoever keeps it: torch's GradScaler or DeepSpeed; nothing without one."""
    if state := _read_scaler_state(scaler):
        write_json(folder / SCALER, state)


def read_scaler(folder: Path, scaler: Any) -> None:
    """Set the scale; all else too, where the same kind kept it."""
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
        # One that never moves is a setting.
        return {"kind": "deepspeed", "scale": float(scaler.cur_scale), "state": plain} if scaler.dynamic else {}
    state = {} if scaler is None else scaler.state_dict()
    return {"kind": "torch", "scale": state["scale"], "state": state} if state else {}
