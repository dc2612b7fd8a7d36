"""Combine the adapters of LoRA runs with peft, average the heads, and evaluate the combination."""

import copy
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from peft.utils import ModulesToSaveWrapper

from peftkit.data.splits import Splits, reload_splits
from peftkit.errors import UserError
from peftkit.export.variant_scores import ValidationComparison, VariantScores, format_variants
from peftkit.models.inference import compute_outputs, infer_rows
from peftkit.recipe.method import Method
from peftkit.runs.reload import read_held_out, reload_outputs
from peftkit.runs.report import Report, read_report
from peftkit.runs.saved import SavedRun, load_model, read_run
from peftkit.runs.verification import check_difference, compare_outputs, find_tolerance, is_half_precision
from peftkit.runs.writer import count_weight_bytes, write_predictions, write_run_files
from peftkit.system import environment as measure
from peftkit.system.files import atomic_directory
from peftkit.system.logging import logger
from peftkit.tasks import EncodedSplit, Task

COMBINED = "combined"
# peft cannot combine LoRA adapters with these options.
UNSUPPORTED_OPTIONS = ("use_dora", "alora_invocation_tokens", "target_parameters")


def combine_runs(
    runs: Sequence[Path],
    out: Path,
    *,
    weights: Sequence[float],
    combination_type: str,
    density: float | None,
    trust_remote_code: bool,
    reload_data: bool,
) -> list[VariantScores]:
    """Combine runs; `peftkit.export.combine.combine` checks the arguments."""
    saved = [_read_lora_run(folder, trust_remote_code) for folder in runs]
    for other in saved[1:]:
        _check_compatible(saved[0], other)
    first, report = saved[0], read_report(runs[0])
    try:
        splits = reload_splits(first.recipe.data, first.task, report.data["fingerprint"], allow_remote=reload_data)
    except UserError as error:
        raise UserError(f"{runs[0]}: {error}") from error
    batch, outputs = read_held_out(first.folder)
    counted = {name: tensor for name, tensor in outputs.items() if name == "counted"}
    with atomic_directory(out) as folder:
        model: Any = load_model(first)
        for index, other in enumerate(saved[1:], 1):
            model.load_adapter(str(other.folder), adapter_name=_name_adapter(index))
        comparison = ValidationComparison.start(first, report, model, batch, reload_data=reload_data)
        rows = []
        for index, run in enumerate(runs):
            model.set_adapter(_name_adapter(index))
            rows.append(comparison.score(str(run), model, count_weight_bytes(run), saved[index].task))
        _combine_adapters(model, len(runs), weights, combination_type, density)
        task = _calibrate_task(first, model, splits)
        rows.append(comparison.score(f"{COMBINED} ({combination_type})", model, None, task))
        peft = copy.deepcopy(model.peft_config[COMBINED])
        peft.base_model_name_or_path = None
        recipe = replace(first.recipe, name=out.name, method=Method(
            name=f"{COMBINED} ({combination_type})", peft=peft, quantization=first.recipe.method.quantization
        ))  # fmt: skip
        model.save_pretrained(folder, selected_adapters=[COMBINED])
        for path in list((folder / COMBINED).iterdir()):
            path.rename(folder / path.name)
        (folder / COMBINED).rmdir()
        first.tokenizer.save_pretrained(folder)
        live = compute_outputs(model, batch)
        write_run_files(
            folder, recipe, model, set(), labels=first.labels, held_out={**batch, **live, **counted}, task=task
        )  # fmt: skip
        scores = _score_splits(first, task, model, splits, folder)
        del model
        found = compare_outputs(
            task,
            reload_outputs(folder, recipe, batch, trust_remote_code=trust_remote_code),
            {**live, **counted},
            batch,
        )
        on_gpu = torch.cuda.is_available()
        half = is_half_precision(recipe, first.manifest["dtype"], on_gpu=on_gpu)
        check_difference(
            "combine: the reloaded combination", found, find_tolerance(live, half=half, same_device=not on_gpu)
        )
        combined = replace(
            report, name=recipe.name, method=recipe.method.name, environment=measure.read_environment(), metrics=scores,
            seed=None, round_trip=asdict(found), **_build_cost_fields(report, folder),
        )  # fmt: skip
        combined.write(folder)
    logger.info(
        "validation metrics on the data of %s:\n%s\nsaved combination to %s", runs[0], format_variants(rows), out
    )
    return rows


def _read_lora_run(folder: Path, trust_remote_code: bool) -> SavedRun:
    saved = read_run(folder, trust_remote_code=trust_remote_code)
    config: Any = saved.recipe.method.peft
    if not isinstance(config, LoraConfig):
        raise UserError(f"{folder}: expected a LoRA run, got {saved.recipe.method.kind}; combine only LoRA runs")
    if unsupported := [name for name in UNSUPPORTED_OPTIONS if getattr(config, name, None)]:
        raise UserError(
            f"{folder}: peft cannot combine LoRA adapters with `{unsupported[0]}`; use runs trained without it"
        )
    return saved


def _check_compatible(first: SavedRun, other: SavedRun) -> None:
    for part, names in (
        ("base model", ("base", "sha256")), ("4-bit settings", ("quantization",)), ("labels", ("labels",)),
        ("tokenizer", ("tokenizer",)), ("auto class", ("auto_class",)),
    ):  # fmt: skip
        one, two = first.manifest, other.manifest
        for name in names:
            one, two = one[name], two[name]
        if one != two:
            raise UserError(_describe_mismatch(first, other, part, _shorten(one), _shorten(two)))
    mine, others = first.manifest["task"], other.manifest["task"]
    if mine["class_path"] != others["class_path"]:
        raise UserError(_describe_mismatch(first, other, "task", mine["class_path"], others["class_path"]))
    for field in (*first.task.columns.max_lengths, "source_prefix"):
        lengths = [run.manifest["task"]["init_args"].get(field) for run in (first, other)]
        if lengths[0] != lengths[1]:
            raise UserError(_describe_mismatch(first, other, f"task.{field}", lengths[0], lengths[1]))


def _describe_mismatch(first: SavedRun, other: SavedRun, part: str, expected: Any, found: Any) -> str:
    return f"{other.folder}: {part} mismatch with {first.folder} (expected {expected}, got {found}); combine other runs"


def _shorten(value: Any) -> str:
    text = ", ".join(value) if isinstance(value, list) else str(value)
    return text if len(text) < 100 else f"{text[:100]}..."


def _name_adapter(index: int) -> str:
    return "default" if index == 0 else f"run-{index}"


@torch.no_grad()
def _combine_adapters(
    model: Any, runs: int, weights: Sequence[float], combination_type: str, density: float | None
) -> None:
    names = [_name_adapter(index) for index in range(runs)]
    first = model.peft_config["default"]
    # peft sets alpha = r in the new adapter, which is a scale of 1 only without rsLoRA. The weights include the scales.
    first.use_rslora = False
    # peft rejects models with trained heads, so the heads are removed while peft combines the adapters.
    inner, trained_modules = model.get_base_model(), first.modules_to_save
    heads = {name: module for name, module in inner.named_modules() if isinstance(module, ModulesToSaveWrapper)}
    for name in heads:
        inner.set_submodule(name, torch.nn.Identity())
    first.modules_to_save = None
    try:
        model.base_model.add_weighted_adapter(
            adapters=names, weights=list(weights), adapter_name=COMBINED, combination_type=combination_type,
            density=density,
        )  # fmt: skip
    except (ValueError, TypeError) as error:
        raise UserError(f"combine: {' '.join(str(error).split())}") from error
    model.peft_config[COMBINED].modules_to_save = first.modules_to_save = trained_modules
    for name, head in heads.items():
        inner.set_submodule(name, head)
        head.update(COMBINED)
        parts = [dict(head.modules_to_save[run].named_parameters()) for run in names]
        for own, parameter in head.modules_to_save[COMBINED].named_parameters():
            summed = sum(weight * part[own].data for weight, part in zip(weights, parts, strict=True))
            # Adapters are added, heads are averaged.
            parameter.data = summed / sum(weights)
    model.set_adapter(COMBINED)


def _infer_split(saved: SavedRun, task: Task, model: Any, splits: Splits, name: str) -> EncodedSplit:
    """Encode a split and run the model on it."""
    rows = splits.rows[name]
    encoded = task.encode(rows, saved.tokenizer, saved.labels)
    outputs = infer_rows(model, task, encoded, saved.tokenizer)
    return EncodedSplit(outputs=outputs, encoded=encoded, rows=rows, tokenizer=saved.tokenizer, labels=saved.labels)


def _calibrate_task(saved: SavedRun, model: Any, splits: Splits) -> Task:
    """Calibrate the task, such as thresholds, with the combination on validation rows."""
    task = saved.recipe.task
    return task.calibrate(_infer_split(saved, task, model, splits, "validation"))


def _score_splits(saved: SavedRun, task: Task, model: Any, splits: Splits, folder: Path) -> dict[str, dict[str, Any]]:
    """Compute the metrics of both splits, and write the test predictions to the folder."""
    scores: dict[str, dict[str, Any]] = {}
    for split in ("validation", "test"):
        predictions = task.decode(_infer_split(saved, task, model, splits, split))
        references = task.targets(splits.rows[split], saved.labels)
        scores[split] = dict(task.metrics.compute(predictions, references))
    scores["test"] |= task.metrics.intervals(predictions, references)
    write_predictions(folder, splits.origins["test"][1], predictions, references)
    return scores


def _build_cost_fields(report: Report, folder: Path) -> dict[str, Any]:
    """Build the cost fields of the report, with the cost of combining."""
    age = measure.measure_process_age()
    memory = [measure.read_peak_memory()]
    rates = {"samples_per_second": 0.0, "tokens_per_second": 0.0}
    return {
        "times": {"start_up": 0.0, "data": 0.0, "train": 0.0, "evaluate": age, "total": age, **rates},
        "memory": memory[0], "memory_per_rank": memory, "tokens": 0, "history": [],
        "sizes": {**report.sizes, "trained": count_weight_bytes(folder)},
        "audit": {"verdict": "combined from trained runs, not trained"},
    }  # fmt: skip
