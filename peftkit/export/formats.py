"""The forms in which a run leaves: its adapter, a merged model, ONNX; each checked before it is called so."""

import shutil
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from peftkit.errors import UserError
from peftkit.export.comparison import ValidationComparison, VariantScores
from peftkit.export.merging import find_packed_weights, make_dequantizer, merge_in_memory, write_merged
from peftkit.export.receipt import ExportSource, Receipt
from peftkit.models.adapters import is_mergeable
from peftkit.models.inference import compute_logits, compute_outputs
from peftkit.models.loading import OVERFLOW_IN_FLOAT16, load_finished_model
from peftkit.models.onnx import OnnxModel, write_onnx
from peftkit.runs.manifest import RECIPE
from peftkit.runs.saved import SavedRun, load_model
from peftkit.runs.verification import Difference, check_difference, combine_differences, compare_outputs
from peftkit.runs.writer import count_weight_bytes
from peftkit.system.logging import logger

MERGES = {
    "original": "merged onto the original weights",
    "dequantized": "merged onto the dequantized weights",
    "4bit": "merged into the 4-bit weights",
}
ADAPTER_FILES = ("adapter_model.safetensors", "adapter_config.json", "config.json", "generation_config.json", RECIPE)


def _finished(saved: SavedRun, folder: Path, dtype: str) -> PreTrainedModel:
    return load_finished_model(folder, saved.task, dtype=dtype, trust_remote_code=saved.trust_remote_code).eval()


def _scored(look: ValidationComparison, form: str, folder: Path) -> VariantScores:
    """The row of a model in a folder, asked on the accelerator where it has room."""
    model: Any = _finished(look.saved, folder, "auto")
    if torch.accelerator.is_available():
        try:
            model = model.to(torch.accelerator.current_accelerator())
        except torch.OutOfMemoryError:
            model = _finished(look.saved, folder, "auto")
            logger.warning("%s does not fit the accelerator; it is scored on the CPU", form)
    return look.row(form, model, count_weight_bytes(folder))


def export_adapter(origin: ExportSource, folder: Path) -> Receipt:
    """The adapter as it was trained, with what loads it, checked in a fresh process against the live model."""
    reloaded = origin.load_as_trained()[1]
    for name in ADAPTER_FILES:
        if (origin.saved.folder / name).exists():
            shutil.copy(origin.saved.folder / name, folder / name)
    dtype = origin.saved.contract["dtype"]
    origin.sign(folder, adapter=True, dtype=dtype)
    found = origin.compared_live(origin.fresh(folder))
    allowed = origin.as_trained
    check_difference("export: the adapter", found, allowed)
    return Receipt(
        format="adapter", dtype=dtype, rows=found.rows, tolerance=allowed.difference,
        exported_difference=found.difference, label_agreement=found.label_agreement,
        text_agreement=found.text_agreement, reload_difference=reloaded.difference, live_difference=found.difference,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class _Merge:
    """A way to merge a run: what it is merged onto, and the dtype that is written.

    Attributes:
        name: `merged`, or for a quantized run one of MERGES.
        base: The dtype in which the base is loaded.
        dtype: The dtype in which weights are written.
        packed: The weights that were in 4 bits, as `packed_weights` names them.
        as_trained: The dtype of the weights before they were packed.
    """

    name: str
    base: str
    dtype: str
    packed: Mapping[str, bool]
    as_trained: str

    @property
    def said(self) -> str:
        return MERGES.get(self.name, f"merged, in {self.dtype}")

    def write(self, origin: ExportSource, folder: Path) -> Mapping[str, torch.Tensor]:
        """Write the merged model; the outputs that it must have."""
        saved = origin.saved
        folder.mkdir()
        if self.name == "4bit":
            return _merge_into_4bit(origin, folder)
        unmerged = load_model(saved, unquantized_as=self.base)
        unmerged.config.update(dict(saved.task.settings()))
        quantization = saved.recipe.method.quantization
        if self.name == "dequantized" and quantization is not None:
            weights = make_dequantizer(quantization, self.packed, getattr(torch, self.as_trained))
            write_merged(unmerged, folder, getattr(torch, self.dtype), weights)
            return origin.live
        expected = compute_outputs(unmerged, origin.batch)
        write_merged(unmerged, folder, getattr(torch, self.dtype))
        return expected


def export_merged(origin: ExportSource, folder: Path, dtype: str, merge: str) -> Receipt:
    """The best merge, checked in a fresh process against the same weights before they were merged."""
    saved, quantized = origin.saved, origin.saved.recipe.method.quantization is not None
    model, reloaded = origin.load_as_trained()
    if not is_mergeable(model):
        kind = saved.recipe.method.kind.upper()
        raise UserError(f"export: {kind} adds no weights that could be merged; take --format adapter")
    as_trained = saved.contract["dtype"]
    dtype = as_trained if dtype == "auto" else dtype
    if dtype == "float16" and model.config.model_type in OVERFLOW_IN_FLOAT16:
        raise UserError(f"--dtype float16: {model.config.model_type} overflows in it; take bfloat16 or float32")
    names = ["original", "dequantized"] + ["4bit"] * (merge == "4bit") if quantized else ["merged"]
    base, packed = "float32" if dtype == "float32" else as_trained, find_packed_weights(model)
    merges = [_Merge(name=name, base=base, dtype=dtype, packed=packed, as_trained=as_trained) for name in names]
    rows: list[VariantScores] = []
    look = None
    if quantized or dtype != as_trained:
        look = ValidationComparison.of(saved, origin.report, model, origin.batch, reload_data=origin.reload_data)
        rows.append(look.row("as trained, not merged", model, None))
    # One model at a time: what is merged next maps the base's files anew.
    del model
    expected = {}
    for one in merges:
        expected[one.name] = one.write(origin, folder / one.name)
        if look is not None:
            rows.append(_scored(look, one.said, folder / one.name))
    chosen = merges[0] if len(merges) == 1 else _chosen(merges, rows[1:], merge, saved.task.main_metrics[0])
    for path in list((folder / chosen.name).iterdir()):
        path.rename(folder / path.name)
    for name in names:
        shutil.rmtree(folder / name)
    half = dtype != "float32" or chosen.name == "4bit"
    allowed = origin.as_trained if chosen.name == "dequantized" and not half else origin.allowed(half=half)
    origin.sign(folder, adapter=False, dtype="auto")
    found = origin.fresh(folder)
    exported = compare_outputs(saved.task, found, expected[chosen.name], origin.batch)
    check_difference("export: the merged model", exported, allowed)
    live = origin.compared_live(found)
    return Receipt(
        format="model", dtype="4bit" if chosen.name == "4bit" else dtype, rows=exported.rows,
        tolerance=allowed.difference, exported_difference=exported.difference, label_agreement=live.label_agreement,
        text_agreement=live.text_agreement, reload_difference=reloaded.difference, live_difference=live.difference,
        shipped=chosen.said if rows else None, forms=tuple(rows),
    )  # fmt: skip


def _chosen(merges: Sequence[_Merge], rows: Sequence[VariantScores], asked: str, metric: str) -> _Merge:
    """What was asked for; else the best on validation, of equals and without scores the nearest to the unmerged."""
    if asked != "best":
        return next(merge for merge in merges if merge.name == asked)
    pairs = list(zip(merges, rows, strict=True))
    return max(pairs, key=lambda pair: (pair[1].scores.get(metric, 0.0), -pair[1].divergence))[0]


def _merge_into_4bit(origin: ExportSource, folder: Path) -> dict[str, torch.Tensor]:
    logger.warning("--merge 4bit: rounding to 4 bits erases much of a small adapter; the table tells how much")
    model = load_model(origin.saved)
    with warnings.catch_warnings():
        # peft warns of the rounding that was just told of.
        warnings.filterwarnings("ignore", message="Merge lora module to 4-bit linear")
        merged = merge_in_memory(model)
    merged.config.update(dict(origin.saved.task.settings()))
    merged.save_pretrained(folder)
    return compute_outputs(merged, origin.batch)


def export_onnx(origin: ExportSource, folder: Path, receipt: Receipt, int8: bool) -> Receipt:
    """The merged model that is in the folder, as ONNX in its place, checked in ONNX Runtime against it."""
    saved = origin.saved
    merged: Any = _finished(saved, folder, "float32")

    def difference(model: Any) -> Difference:
        # The graph was traced with the whole batch: a row alone tells whether its rows or its length are fixed.
        shapes = (origin.batch, _shortest(origin.batch))
        return combine_differences(
            [
                compare_outputs(
                    saved.task, {"logits": compute_logits(model, one)}, {"logits": compute_logits(merged, one)}, one
                )
                for one in shapes
            ]
        )

    def written(small: bool) -> tuple[Any, int]:
        write_onnx(merged, origin.batch, folder, int8=small)
        return OnnxModel(folder), sum(path.stat().st_size for path in folder.glob("model.onnx*"))

    model, size = written(False)
    exported = difference(model)
    check_difference("export: the model in ONNX Runtime", exported, origin.allowed(half=False))
    forms: list[VariantScores] = []
    if int8:
        look = ValidationComparison.of(saved, origin.report, merged, origin.batch, reload_data=origin.reload_data)
        forms.append(look.row("merged, in float32", merged, count_weight_bytes(folder)))
        forms.append(look.row("as ONNX, in float32", model, size))
        model, size = written(True)
        forms.append(look.row("as ONNX, in int8", model, size))
        exported = difference(model)
    allowed = origin.allowed(half=False).difference
    for path in folder.glob("model*.safetensors*"):
        path.unlink()
    origin.sign(folder, adapter=False, dtype="float32")
    right = {name: tensor for name, tensor in origin.live.items() if name != "generated"}
    live = compare_outputs(saved.task, compute_outputs(model, origin.batch), right, origin.batch)
    return replace(
        receipt, format="onnx", dtype="int8" if int8 else "float32", exported_difference=exported.difference,
        label_agreement=live.label_agreement, text_agreement=None, live_difference=live.difference,
        tolerance=None if int8 else allowed, onnx_forms=tuple(forms),
    )  # fmt: skip


def _shortest(batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The row with the fewest tokens, alone and without padding."""
    lengths = batch["attention_mask"].sum(-1)
    row = int(lengths.argmin())
    return {
        name: tensor[row : row + 1] if name.startswith("decoder_") else tensor[row : row + 1, : lengths[row]]
        for name, tensor in batch.items()
    }
