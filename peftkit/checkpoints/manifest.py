"""Checkpoint manifest `checkpoint.json`: find a checkpoint, check the recipe, set batch sizes."""

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from peftkit.errors import UserError
from peftkit.models.loading import resolve_source
from peftkit.recipe.schema import Recipe
from peftkit.recipe.serialization import recipe_to_dict, redact_home_in_value, to_class_dict, to_plain
from peftkit.runs.manifest import identify_base
from peftkit.system.files import redact_home
from peftkit.system.logging import logger

FORMAT = 1
FILE_NAME = "checkpoint.json"
REPLACED = ".replaced"
# Training options that affect the trained weights; resuming requires equal values.
IDENTITY_OPTIONS = (
    "learning_rate", "optim", "optim_args", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm",
    "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "num_train_epochs", "max_steps", "seed", "data_seed",
    "train_sampling_strategy", "label_smoothing_factor", "neftune_noise_alpha",
)  # fmt: skip
SAVE_HINT = "to write checkpoints pass --training.save_strategy steps --training.save_steps N"


@dataclass(frozen=True, kw_only=True)
class CheckpointManifest:
    """Content of `checkpoint.json`.

    Attributes:
        format: Version of the files; a newer version is rejected.
        step: Number of completed optimizer steps.
        processes: Number of ranks that trained.
        zero_stage: DeepSpeed's ZeRO stage; None without DeepSpeed.
        offload: State that DeepSpeed offloaded to the host: `optimizer`, `param`.
        per_rank_batch: Rows per step on one rank.
        resumable: Whether the checkpoint contains optimizer state.
        seconds: Duration of training and evaluation up to the step.
        recipe: Values that affect the result: model, data, task, method, and `IDENTITY_OPTIONS`.
        resumed: Previous checkpoints that the run was resumed from, as in `Report.resumed`.
        files: Size of each file in bytes.
    """

    format: int = FORMAT
    step: int
    processes: int
    zero_stage: int | None
    offload: list[str]
    per_rank_batch: int
    resumable: bool
    seconds: float
    recipe: Mapping[str, Any]
    resumed: list[dict[str, Any]] = field(default_factory=list)
    files: Mapping[str, int] = field(default_factory=dict)

    @property
    def global_batch(self) -> int:
        """Rows per step on all ranks."""
        return self.per_rank_batch * self.processes

    def describe(self, name: str) -> dict[str, Any]:
        """Describe the checkpoint for the report of a resumed run."""
        return {"from": name, "step": self.step, "processes": self.processes, "zero_stage": self.zero_stage}


def read_manifest(folder: Path) -> CheckpointManifest:
    """Read the manifest and check that the files are complete. Raises UserError."""
    path = folder / FILE_NAME
    if not path.is_file():
        raise UserError(f"--resume: {folder} is not a peftkit checkpoint; pass a folder checkpoint-N of a run")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] > FORMAT:
            raise UserError(
                f"{path}: unsupported format (expected at most {FORMAT}, got {content['format']}); update peftkit"
            )
        manifest = CheckpointManifest(**content)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: cannot be read ({error!r}); resume from another checkpoint") from None
    for name, size in manifest.files.items():
        if not (folder / name).is_file() or (folder / name).stat().st_size != size:
            raise UserError(f"{folder / name}: file is missing or truncated; resume from another checkpoint")
    return manifest


def list_checkpoints(folder: Path) -> list[Path]:
    """List the folders `checkpoint-N`, the last step first."""
    found = [path for path in folder.glob("checkpoint-*") if path.is_dir() and re.fullmatch(r"\d+", path.name[11:])]
    return sorted(found, key=lambda path: -int(path.name[11:]))


def find_last_complete(folder: Path) -> Path | None:
    """Find the last resumable checkpoint; skip incomplete checkpoints with a warning."""
    for path in list_checkpoints(folder):
        try:
            manifest = read_manifest(path)
        except UserError as error:
            logger.warning("skipping %s (%s)", path.name, error)
            continue
        if manifest.resumable:
            return path
    return None


def find_checkpoint(folder: Path, resume: bool | str | Path) -> Path | None:
    """Find the checkpoint to resume from: `resume`, or the last complete checkpoint if `resume` is True.

    Returns None for a new run. Raises UserError if no checkpoint is found, or for a new run in a folder with
    checkpoints.
    """
    if resume is False:
        if checkpoints := list_checkpoints(folder):
            raise UserError(
                f"{redact_home(folder)}: contains {checkpoints[0].name} of an interrupted run; use --resume or delete "
                "the checkpoints"
            )
        return None
    if resume is not True:
        path = Path(resume).expanduser()
        if not read_manifest(path).resumable:
            raise UserError(
                f"--resume: {resume} has no optimizer state (training.save_only_model); use another checkpoint"
            )
        return path
    if (found := find_last_complete(folder)) is None:
        raise UserError(f"--resume: no complete checkpoint in {redact_home(folder)}; {SAVE_HINT}")
    return found


def set_batch_sizes(recipe: Recipe, manifest: CheckpointManifest, processes: int) -> Recipe:
    """Set batch sizes for the checkpoint's global batch on `processes` ranks. Raises UserError.

    The batch size per device stays if possible, else it is reduced to the next divisor of the rows per rank.
    """
    training = recipe.training
    default: Any = TrainingArguments.__dataclass_fields__["per_device_train_batch_size"].default
    batch = training.get("per_device_train_batch_size") or default
    accumulation = training.get("gradient_accumulation_steps") or 1
    same = batch * accumulation == manifest.per_rank_batch and processes == manifest.processes
    if not same and training.get("train_sampling_strategy", "random") != "random":
        raise UserError(
            f"--resume: training.train_sampling_strategy {training['train_sampling_strategy']} needs the checkpoint's "
            f"batches (expected {manifest.per_rank_batch} rows on each of {manifest.processes} ranks, got "
            f"{batch * accumulation} on {processes}); use the same number of ranks and batch size"
        )
    if batch * accumulation * processes == manifest.global_batch:
        return recipe
    if manifest.global_batch % processes:
        raise UserError(
            f"--resume: global batch size {manifest.global_batch} is not divisible by {processes} ranks; "
            f"use a divisor of {manifest.global_batch}"
        )
    per_rank = manifest.global_batch // processes
    device_batch = max(size for size in range(1, min(batch, per_rank) + 1) if per_rank % size == 0)
    logger.info(
        "--resume: global batch size %d: %d per device x %d accumulation steps x %d ranks",
        manifest.global_batch, device_batch, per_rank // device_batch, processes,
    )  # fmt: skip
    sizes = {"per_device_train_batch_size": device_batch, "gradient_accumulation_steps": per_rank // device_batch}
    return replace(recipe, training={**training, **sizes})


def identify_run(recipe: Recipe, fingerprint: str, arguments: TrainingArguments) -> dict[str, Any]:
    """Collect the values that affect the trained weights: model, data, task, method, options."""
    weights = identify_base(resolve_source(recipe.model), recipe.model.revision)
    method = recipe_to_dict(recipe)["method"]
    if recipe.method.quantization is not None:
        # The storage dtype of 4-bit weights depends on the ZeRO stage, but the values do not.
        method["quantization"] = {k: v for k, v in method["quantization"].items() if k != "bnb_4bit_quant_storage"}
    return json.loads(json.dumps(redact_home_in_value({
        "model": {
            "weights": weights["sha256"] or weights["revision"] or recipe.model.name_or_path,
            "dtype": recipe.model.dtype,
        },
        "data": {"fingerprint": fingerprint},
        "task": to_class_dict(recipe.task),
        "method": {name: value for name, value in method.items() if name != "name"},
        "training": {name: to_plain(getattr(arguments, name)) for name in IDENTITY_OPTIONS},
    }), default=str))  # fmt: skip


def check_identity(name: str, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Raise UserError with the first option that differs between a checkpoint and the recipe."""
    saved, now = _flatten(there), _flatten(here)
    for path in sorted(saved.keys() | now.keys()):
        if saved.get(path) != now.get(path):
            sides = [json.dumps(side.get(path), ensure_ascii=False)[:80] for side in (saved, now)]
            raise UserError(
                f"--resume: {path} differs from {name} (expected {sides[0]}, got {sides[1]}); use the same recipe "
                "or another training.output_dir"
            )


def _flatten(plain: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in plain.items():
        found |= _flatten(value, f"{above}{name}.") if isinstance(value, Mapping) else {above + name: value}
    return found


def remove_unfinished(folder: Path) -> None:
    """Remove the files of a process that was killed while it wrote a checkpoint."""
    for path in folder.glob(f".checkpoint-*{REPLACED}"):
        # The process was killed between the two renames: the replaced checkpoint is complete.
        if not (whole := folder / path.name.removeprefix(".").removesuffix(REPLACED)).exists():
            path.rename(whole)
    for path in folder.glob(".checkpoint-*"):
        shutil.rmtree(path, ignore_errors=True)


def remove_checkpoints(folder: Path) -> None:
    """Remove every checkpoint in a folder."""
    for path in list_checkpoints(folder):
        shutil.rmtree(path, ignore_errors=True)
    remove_unfinished(folder)
