"""Export format: a Transformers model with the adapter merged into the weights."""

import shutil
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from peftkit.errors import UserError
from peftkit.export.formats.base import ExportOptions
from peftkit.export.merging import find_packed_weights, make_dequantizer, merge_in_memory, write_merged
from peftkit.export.receipt import ExportSource, Receipt
from peftkit.export.variant_scores import ValidationComparison, VariantScores
from peftkit.metrics.base import Metric
from peftkit.models.adapters import is_mergeable
from peftkit.models.inference import compute_outputs
from peftkit.models.loading import OVERFLOW_IN_FLOAT16, load_finished_model
from peftkit.runs.saved import SavedRun, load_model
from peftkit.runs.verification import check_difference, compare_outputs
from peftkit.runs.writer import count_weight_bytes
from peftkit.system.logging import logger
from peftkit.tasks import collect_settings

MERGES = {
    "original": "merged onto the original weights",
    "dequantized": "merged onto the dequantized weights",
    "4bit": "merged into the 4-bit weights",
}


def write_merged_model(source: ExportSource, folder: Path, options: ExportOptions) -> Receipt:
    """Write the best merge and verify it in a new process with the outputs of the unmerged weights."""
    saved, quantized = source.saved, source.saved.recipe.method.quantization is not None
    model, reloaded = source.load_as_trained()
    merges = _list_merges(source, model, options)
    dtype = merges[0].dtype
    rows: list[VariantScores] = []
    comparison = None
    if quantized or dtype != saved.manifest["dtype"]:
        comparison = ValidationComparison.start(
            saved, source.report, model, source.batch, reload_data=source.reload_data
        )
        rows.append(comparison.score("as trained, not merged", model, None))
    # Only one model in memory: the next merge maps the files of the base model again.
    del model
    expected = {}
    for one in merges:
        expected[one.name] = one.write(source, folder / one.name)
        if comparison is not None:
            rows.append(_score_folder(comparison, one.description, folder / one.name))
    merge = (
        merges[0]
        if len(merges) == 1
        else _select_merge(merges, rows[1:], options.merge, saved.task.metrics.main_metrics[0])
    )
    for path in list((folder / merge.name).iterdir()):
        path.rename(folder / path.name)
    for one in merges:
        shutil.rmtree(folder / one.name)
    half = dtype != "float32" or merge.name == "4bit"
    is_as_trained = merge.name == "dequantized" and not half
    tolerance = source.training_tolerance if is_as_trained else source.find_tolerance(half=half)
    source.write_manifest(folder, adapter=False, dtype="auto")
    found = source.reload(folder)
    exported = compare_outputs(saved.task, found, expected[merge.name], source.batch)
    check_difference("export: the merged model", exported, tolerance)
    live = source.compare_with_live(found)
    return Receipt(
        format="model", dtype="4bit" if merge.name == "4bit" else dtype, rows=exported.rows,
        tolerance=tolerance.difference, exported_difference=exported.difference, label_agreement=live.label_agreement,
        text_agreement=live.text_agreement, reload_difference=reloaded.difference, live_difference=live.difference,
        shipped=merge.description if rows else None, forms=tuple(rows),
    )  # fmt: skip


def load_exported(saved: SavedRun, folder: Path, dtype: str) -> PreTrainedModel:
    """Load the whole model of an export folder in evaluation mode."""
    return load_finished_model(folder, saved.task, dtype=dtype, trust_remote_code=saved.trust_remote_code).eval()


@dataclass(frozen=True, kw_only=True)
class _Merge:
    """A way to merge a run.

    Attributes:
        name: `merged`, or a key of MERGES for a quantized run.
        base: Dtype of the loaded base model.
        dtype: Dtype of the written weights.
        packed: Weights in 4 bits, from `find_packed_weights`.
        original_dtype: Dtype of the weights before quantization.
    """

    name: str
    base: str
    dtype: str
    packed: Mapping[str, bool]
    original_dtype: str

    @property
    def description(self) -> str:
        return MERGES.get(self.name, f"merged, in {self.dtype}")

    def write(self, source: ExportSource, folder: Path) -> Mapping[str, torch.Tensor]:
        """Write the merged model; return the expected outputs."""
        saved = source.saved
        folder.mkdir()
        if self.name == "4bit":
            return _merge_into_4bit(source, folder)
        unmerged = load_model(saved, unquantized_as=self.base)
        unmerged.config.update(collect_settings(saved.task))
        quantization = saved.recipe.method.quantization
        if self.name == "dequantized" and quantization is not None:
            weights = make_dequantizer(quantization, self.packed, getattr(torch, self.original_dtype))
            write_merged(unmerged, folder, getattr(torch, self.dtype), weights)
            return source.live
        expected = compute_outputs(unmerged, source.batch)
        write_merged(unmerged, folder, getattr(torch, self.dtype))
        return expected


def _list_merges(source: ExportSource, model: Any, options: ExportOptions) -> list[_Merge]:
    """List the merges to compare. Raises UserError for a method or a dtype that does not allow merging."""
    saved = source.saved
    if not is_mergeable(model):
        kind = saved.recipe.method.kind.upper()
        raise UserError(f"export: {kind} has no weights to merge; use --format adapter")
    original = saved.manifest["dtype"]
    dtype = original if options.dtype == "auto" else options.dtype
    if dtype == "float16" and model.config.model_type in OVERFLOW_IN_FLOAT16:
        raise UserError(f"--dtype float16: {model.config.model_type} overflows in float16; use bfloat16 or float32")
    names = ["merged"]
    if saved.recipe.method.quantization is not None:
        names = list(MERGES) if options.merge == "4bit" else ["original", "dequantized"]
    base = "float32" if dtype == "float32" else original
    packed = find_packed_weights(model)
    return [_Merge(name=name, base=base, dtype=dtype, packed=packed, original_dtype=original) for name in names]


def _select_merge(merges: Sequence[_Merge], rows: Sequence[VariantScores], merge: str, metric: Metric) -> _Merge:
    """Select the merge by name, or the best merge on validation; the smaller divergence breaks ties."""
    if merge != "best":
        return next(one for one in merges if one.name == merge)
    pairs = list(zip(merges, rows, strict=True))

    def rank(pair: tuple[_Merge, VariantScores]) -> tuple[float, float]:
        score = pair[1].scores.get(metric.name)
        return 0.0 if score is None else metric.rank(score), -pair[1].divergence

    return max(pairs, key=rank)[0]


def _score_folder(comparison: ValidationComparison, name: str, folder: Path) -> VariantScores:
    """Evaluate the model of a folder, on the accelerator if it fits."""
    model: Any = load_exported(comparison.saved, folder, "auto")
    if torch.accelerator.is_available():
        try:
            model = model.to(torch.accelerator.current_accelerator())
        except torch.OutOfMemoryError:
            model = load_exported(comparison.saved, folder, "auto")
            logger.warning("%s does not fit on the accelerator, evaluating on the CPU", name)
    return comparison.score(name, model, count_weight_bytes(folder))


def _merge_into_4bit(source: ExportSource, folder: Path) -> dict[str, torch.Tensor]:
    logger.warning("--merge 4bit: rounding to 4 bits removes much of a small adapter; compare the metrics in the table")
    model = load_model(source.saved)
    with warnings.catch_warnings():
        # peft warns about the same rounding.
        warnings.filterwarnings("ignore", message="Merge lora module to 4-bit linear")
        merged = merge_in_memory(model)
    merged.config.update(collect_settings(source.saved.task))
    merged.save_pretrained(folder)
    return compute_outputs(merged, source.batch)
