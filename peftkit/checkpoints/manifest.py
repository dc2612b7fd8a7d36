"""A checkpoint on disk: which is the last whole one, whether it is of this recipe, and with which batch it goes on."""

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
from peftkit.recipe.parser import recipe_to_dict
from peftkit.recipe.schema import Recipe
from peftkit.recipe.serialization import as_class, as_homeless, as_plain
from peftkit.runs.manifest import identify_base
from peftkit.system.files import redact_home
from peftkit.system.logging import logger

FORMAT = 1
FILE_NAME = "checkpoint.json"
REPLACED = ".replaced"
# What decides the weights that come out; another value is another run.
IDENTITY_OPTIONS = (
    "learning_rate", "optim", "optim_args", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm",
    "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "num_train_epochs", "max_steps", "seed", "data_seed",
    "train_sampling_strategy", "label_smoothing_factor", "neftune_noise_alpha",
)  # fmt: skip
SAVE_HINT = "checkpoints are written with --training.save_strategy steps --training.save_steps N"


@dataclass(frozen=True, kw_only=True)
class CheckpointManifest:
    """What a checkpoint says of itself, in `checkpoint.json`.

    Attributes:
        format: Of the files; a newer one is refused.
        step: Optimizer steps done.
        processes: Ranks that trained.
        zero_stage: DeepSpeed's ZeRO stage; None without DeepSpeed.
        offload: What DeepSpeed kept on the host: `optimizer`, `param`.
        per_rank_batch: Rows of a step on one rank.
        resumable: Whether the optimizer's state is there.
        seconds: Of training with its evaluations, up to the step.
        recipe: What decides the result: model, data, task, method, and the words of `IDENTITY_OPTIONS`.
        resumed: The checkpoints that this run went on from before, as `Report.resumed` has them.
        files: Bytes of each file.
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
        """Rows of a step on all ranks."""
        return self.per_rank_batch * self.processes

    def told(self, name: str) -> dict[str, Any]:
        """Its line in the report of a run that goes on from it."""
        return {"from": name, "step": self.step, "processes": self.processes, "zero_stage": self.zero_stage}


def read_manifest(folder: Path) -> CheckpointManifest:
    """What a checkpoint says of itself, its files found whole. Raises UserError."""
    path = folder / FILE_NAME
    if not path.is_file():
        raise UserError(f"--resume: {folder} is no checkpoint of peftkit; name a folder checkpoint-N of a run")
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
        if plain["format"] > FORMAT:
            raise UserError(f"{path}: of a newer peftkit (format {plain['format']}, this one reads {FORMAT})")
        about = CheckpointManifest(**plain)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: can't be read ({error!r}); go on from another checkpoint") from None
    for name, size in about.files.items():
        if not (folder / name).is_file() or (folder / name).stat().st_size != size:
            raise UserError(f"{folder / name}: is missing or cut short; go on from another checkpoint")
    return about


def list_checkpoints(folder: Path) -> list[Path]:
    """The folders `checkpoint-N` here, the last step first."""
    found = [path for path in folder.glob("checkpoint-*") if path.is_dir() and re.fullmatch(r"\d+", path.name[11:])]
    return sorted(found, key=lambda path: -int(path.name[11:]))


def find_last_complete(folder: Path) -> Path | None:
    """The last checkpoint here that a run can go on from; one that is not whole is told of and passed over."""
    for path in list_checkpoints(folder):
        try:
            about = read_manifest(path)
        except UserError as error:
            logger.warning("%s: passed over (%s)", path.name, error)
            continue
        if about.resumable:
            return path
    return None


def find_checkpoint(folder: Path, resume: bool | str | Path) -> Path | None:
    """The checkpoint that a run in `folder` goes on from: the one that `resume` names, or with True the last whole one.

    None for a new run. Raises UserError where there is none, and for a new run among the checkpoints of another.
    """
    if resume is False:
        if there := list_checkpoints(folder):
            raise UserError(
                f"{redact_home(folder)}: holds {there[0].name} of a run that was stopped; go on from it with "
                "--resume, or remove its checkpoints"
            )
        return None
    if resume is not True:
        path = Path(resume).expanduser()
        if not read_manifest(path).resumable:
            raise UserError(f"--resume: {resume} was saved without its optimizer (training.save_only_model)")
        return path
    if (found := find_last_complete(folder)) is None:
        raise UserError(f"--resume: no whole checkpoint in {redact_home(folder)}; {SAVE_HINT}")
    return found


def keep_global_batch(recipe: Recipe, about: CheckpointManifest, processes: int) -> Recipe:
    """The recipe with batches by which `processes` ranks make the checkpoint's global batch. Raises UserError.

    The batch of a device stays what it is if it can, and else becomes the next smaller one that fits.
    """
    words = recipe.training
    default: Any = TrainingArguments.__dataclass_fields__["per_device_train_batch_size"].default
    batch = words.get("per_device_train_batch_size") or default
    accumulation = words.get("gradient_accumulation_steps") or 1
    same = batch * accumulation == about.per_rank_batch and processes == about.processes
    if not same and words.get("train_sampling_strategy", "random") != "random":
        raise UserError(
            f"--resume: training.train_sampling_strategy {words['train_sampling_strategy']} would draw other rows with "
            f"{batch} x {accumulation} on {processes} ranks than with {about.per_rank_batch} a rank on "
            f"{about.processes}; go on with as many ranks and the same batch"
        )
    if batch * accumulation * processes == about.global_batch:
        return recipe
    if about.global_batch % processes:
        raise UserError(
            f"--resume: the checkpoint's global batch of {about.global_batch} rows can't be kept on {processes} ranks; "
            "take a number of ranks that divides it"
        )
    per_rank = about.global_batch // processes
    fitting = max(size for size in range(1, min(batch, per_rank) + 1) if per_rank % size == 0)
    logger.info(
        "--resume: keeps the global batch of %d rows: %d a device, %d accumulated, %d ranks",
        about.global_batch, fitting, per_rank // fitting, processes,
    )  # fmt: skip
    kept = {"per_device_train_batch_size": fitting, "gradient_accumulation_steps": per_rank // fitting}
    return replace(recipe, training={**words, **kept})


def identify_run(recipe: Recipe, fingerprint: str, arguments: TrainingArguments) -> dict[str, Any]:
    """What makes a run this run, as plain data: model, data, task, method and what decides the learning."""
    weights = identify_base(resolve_source(recipe.model), recipe.model.revision)
    method = recipe_to_dict(recipe)["method"]
    if recipe.method.quantization is not None:
        # How 4-bit weights are packed depends on the ZeRO stage, not their values.
        method["quantization"] = {k: v for k, v in method["quantization"].items() if k != "bnb_4bit_quant_storage"}
    return json.loads(json.dumps(as_homeless({
        "model": {
            "weights": weights["sha256"] or weights["revision"] or recipe.model.name_or_path,
            "dtype": recipe.model.dtype,
        },
        "data": {"fingerprint": fingerprint},
        "task": as_class(recipe.task),
        "method": {name: value for name, value in method.items() if name != "name"},
        "training": {name: as_plain(getattr(arguments, name)) for name in IDENTITY_OPTIONS},
    }), default=str))  # fmt: skip


def check_identity(name: str, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Raise UserError naming the first option that differs between a checkpoint and this recipe."""
    saved, now = _flatten(there), _flatten(here)
    for path in sorted(saved.keys() | now.keys()):
        if saved.get(path) != now.get(path):
            sides = [json.dumps(side.get(path), ensure_ascii=False)[:80] for side in (saved, now)]
            raise UserError(
                f"--resume: {path} is {sides[0]} in {name} and {sides[1]} here; give the recipe that it was trained "
                "by, or begin in another training.output_dir"
            )


def _flatten(plain: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in plain.items():
        found |= _flatten(value, f"{above}{name}.") if isinstance(value, Mapping) else {above + name: value}
    return found


def remove_unfinished(folder: Path) -> None:
    """Remove what a process that was killed while it wrote a checkpoint left behind."""
    for path in folder.glob(f".checkpoint-*{REPLACED}"):
        # Killed between the two renames: the one that was to be replaced is whole.
        if not (whole := folder / path.name.removeprefix(".").removesuffix(REPLACED)).exists():
            path.rename(whole)
    for path in folder.glob(".checkpoint-*"):
        shutil.rmtree(path, ignore_errors=True)


def remove_checkpoints(folder: Path) -> None:
    """Remove every checkpoint here."""
    for path in list_checkpoints(folder):
        shutil.rmtree(path, ignore_errors=True)
    remove_unfinished(folder)
