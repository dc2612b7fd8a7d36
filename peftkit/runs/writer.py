"""Write a run folder: self-contained, no pickle files, no home path, report.json last."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from peftkit.errors import AuditError, UserError, ignore_sigterm
from peftkit.models.adapters import remove_peft_prefix
from peftkit.models.loading import resolve_source
from peftkit.models.positions import find_position_limit
from peftkit.recipe.schema import Recipe
from peftkit.recipe.serialization import recipe_to_yaml, to_full_class_dict
from peftkit.runs.manifest import (
    HELD_OUT,
    RECIPE,
    identify_base,
    identify_tokenizer,
    write_manifest,
)
from peftkit.runs.report import FILE_NAME, is_finished
from peftkit.system.files import redact_home, write_json, write_text
from peftkit.system.logging import is_rank_zero, logger
from peftkit.tasks import Task, collect_settings

PREDICTIONS = "predictions.jsonl"

UNSCORED = "unscored"

# A pickle file of the Trainer.
TRAINING_ARGUMENTS = "training_args.bin"

_TEMPORARY_NAME = ".filling"


def choose_run_folder(recipe: Recipe) -> Path:
    """Choose the folder of the run: `training.output_dir`, else `runs/NAME` or `runs/NAME-N`.

    Raises UserError if `training.output_dir` contains a finished run.
    """
    named = recipe.training.get("output_dir")
    if named is not None:
        folder = Path(named).expanduser()
        if is_finished(folder):
            raise UserError(f"training.output_dir: {named} contains a finished run; use another folder or remove it")
        return folder
    folder, number = Path("runs") / recipe.name, 1
    while is_finished(folder):
        number += 1
        folder = Path("runs") / f"{recipe.name}-{number}"
    if number > 1:
        logger.info("runs/%s contains a finished run, writing to %s", recipe.name, folder)
    return folder


def set_max_length(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, task: Task) -> None:
    """Set the tokenizer's maximum length to the task's. Raises UserError if the model has fewer positions."""
    field = task.columns.length_field
    length, limit = getattr(task, field), find_position_limit(model)
    if limit is not None and length > limit:
        raise UserError(f"task.{field}: the model has {limit} positions, got {length}; use at most {limit}")
    tokenizer.model_max_length = length


@contextmanager
def stage_run_folder(folder: Path) -> Iterator[Path]:
    """Create a temporary folder; at the end rank 0 moves the files to `folder`, report.json last.

    After a failure, such as too little memory for evaluation, weights that are already saved stay in `unscored`.
    """
    temporary = folder / _TEMPORARY_NAME
    if is_rank_zero():
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    try:
        yield temporary
        if is_rank_zero():
            if is_finished(folder):
                raise UserError(f"{folder}: another run finished in this folder; this run is not saved")
            (folder / FILE_NAME).unlink(missing_ok=True)
            for path in sorted(temporary.iterdir(), key=lambda path: path.name == FILE_NAME):
                os.replace(path, folder / path.name)
    except BaseException:
        ignore_sigterm()
        if is_rank_zero() and any(temporary.glob("*model*.safetensors")):
            (temporary / TRAINING_ARGUMENTS).unlink(missing_ok=True)
            shutil.rmtree(folder / UNSCORED, ignore_errors=True)
            os.replace(temporary, folder / UNSCORED)
            logger.warning("saved the trained weights without metrics to %s", folder / UNSCORED)
        elif not is_rank_zero():
            # Rank 0 may be killed; a folder with files stays.
            with suppress(OSError):
                temporary.rmdir()
        raise
    finally:
        if is_rank_zero():
            shutil.rmtree(temporary, ignore_errors=True)


def write_run_files(
    folder: Path,
    recipe: Recipe,
    model: PreTrainedModel | PeftModel,
    missing_keys: set[str],
    *,
    labels: Sequence[str],
    held_out: Mapping[str, torch.Tensor],
    task: Task,
) -> None:
    """Write the files that the Trainer does not write: config, recipe, held-out outputs, manifest.

    The model's config contains the calibrated settings of `task`. Raises AuditError if the saved weights lack a
    parameter of the new head.
    """
    (folder / TRAINING_ARGUMENTS).unlink(missing_ok=True)
    base_name = redact_home(recipe.model.name_or_path)
    if isinstance(model, PeftModel):
        (folder / "README.md").unlink(missing_ok=True)
        base: Any = model.get_base_model()
        base.config.save_pretrained(folder)
        if base.can_generate():
            base.generation_config.save_pretrained(folder)
        adapter = folder / "adapter_config.json"
        write_json(adapter, {**json.loads(adapter.read_text()), "base_model_name_or_path": base_name})
    config = folder / "config.json"
    content = json.loads(config.read_text())
    # An export loads the base model in full precision; the recipe contains the quantization.
    content.pop("quantization_config", None)
    if "_name_or_path" in content:
        content["_name_or_path"] = base_name
    write_json(config, {**content, **collect_settings(task)})
    check_saved_head(folder, missing_keys)
    save_file(dict(held_out), folder / HELD_OUT)
    write_text(folder / RECIPE, recipe_to_yaml(recipe))
    adapted, trust = isinstance(model, PeftModel), recipe.model.trust_remote_code
    quantization = getattr(model.config, "quantization_config", None)
    write_manifest(
        folder,
        auto_class=task.model.auto_class.__name__,
        adapter=adapted,
        base={"name_or_path": base_name, **identify_base(resolve_source(recipe.model), recipe.model.revision)},
        dtype=str(model.dtype).removeprefix("torch.") if recipe.model.dtype == "auto" else recipe.model.dtype,
        quantization=None if quantization is None else quantization.to_diff_dict(),
        labels=list(labels),
        tokenizer=identify_tokenizer(AutoTokenizer.from_pretrained(folder, trust_remote_code=trust)),
        task=to_full_class_dict(task),
    )


def check_saved_head(folder: Path, missing_keys: set[str]) -> None:
    """Raise AuditError for parameters of the new head that the saved weights lack."""
    saved = set()
    for path in folder.glob("*model*.safetensors"):
        with safe_open(path, framework="pt") as file:
            saved |= {remove_peft_prefix(name) for name in file.keys()}  # noqa: SIM118
    if lost := sorted(missing_keys - saved):
        raise AuditError(f"head: new parameters are not saved: {', '.join(lost)}")


def count_weight_bytes(folder: Path) -> int:
    """Count the bytes of the trained weights on disk: the adapter with its head, or the whole model."""
    return sum(path.stat().st_size for path in folder.glob("*model*.safetensors"))


def write_predictions(
    folder: Path, numbers: Sequence[int], predictions: Sequence[Mapping[str, Any]], references: Sequence[Any]
) -> None:
    """Write one line per test row: row number in the data, reference and prediction."""
    lines = [
        json.dumps({"row": row, "reference": reference, **prediction}, ensure_ascii=False)
        for row, reference, prediction in zip(numbers, references, predictions, strict=True)
    ]
    write_text(folder / PREDICTIONS, "\n".join(lines) + "\n")
