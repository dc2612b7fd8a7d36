"""A run's folder to an ordinary model, and the receipt: the proof that it is the one that was trained."""

import shutil
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from peftkit.asking import logits_of, outputs_of
from peftkit.card import write_card
from peftkit.contract import read_contract, tokenizer_identity, write_contract
from peftkit.errors import UserError
from peftkit.files import new_folder, write_json
from peftkit.log import logger
from peftkit.measure import environment
from peftkit.merging import dequantized, merged_whole, packed_weights, write_merged
from peftkit.methods import can_be_merged
from peftkit.model import OVERFLOW_IN_FLOAT16, load_finished
from peftkit.onnx_format import OnnxModel, write_onnx
from peftkit.parsing import recipe_to_dict
from peftkit.plain_values import as_class, as_homeless
from peftkit.report import Report, finite, read_report
from peftkit.round_trip import Allowance, Difference, allowance, check, combined, compared, is_half
from peftkit.run_folder import (
    RECEIPT,
    RECIPE,
    SavedRun,
    fresh_outputs_of,
    is_finished,
    load_model,
    read_held_out,
    read_run,
    weight_bytes,
)
from peftkit.validation import FormRow, ValidationLook, form_table

FORMS = {
    "original": "merged onto the original weights",
    "dequantized": "merged onto the dequantized weights",
    "4bit": "merged into the 4-bit weights",
}
ADAPTER_FILES = ("adapter_model.safetensors", "adapter_config.json", "config.json", "generation_config.json", RECIPE)


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """How far what was exported is from what was trained; differences are the largest of a logit.

    Attributes:
        format: `model`, `adapter` or `onnx`.
        dtype: Of the weights.
        rows: How many held-out rows were asked.
        tolerance: The most that `exported_difference` may be.
        exported_difference: The export, loaded by a fresh process with plain libraries (or by ONNX Runtime), against
            the same weights before they were merged (or written as ONNX).
        label_agreement: Share of rows, tags or tokens that the exported and the live model name alike.
        text_agreement: Share of rows for which both generate the same tokens; None where nothing is generated.
        reload_difference: The run read back from disk as it was trained, against the live model.
        live_difference: The export against the live model. For a quantized run this is what leaving 4 bits changes,
            and any size passes.
        shipped: Of several forms, the one that the folder holds.
        forms: What each form makes of validation, the one that was trained first; empty where nothing was rounded.
            Those of ONNX in 8 bits are compared with the merged model, which stands before them.
    """

    format: str
    dtype: str
    rows: int
    tolerance: float
    exported_difference: float
    label_agreement: float
    text_agreement: float | None
    reload_difference: float
    live_difference: float
    shipped: str | None = None
    forms: Sequence[FormRow] = ()


@dataclass(frozen=True, kw_only=True)
class _Origin:
    """What an export starts from: a run, its report, and what the live model said of a held-out batch."""

    saved: SavedRun
    report: Report
    batch: Mapping[str, torch.Tensor]
    live: Mapping[str, torch.Tensor]
    tolerance: float | None

    def compared_live(self, found: Mapping[str, torch.Tensor]) -> Difference:
        return compared(self.saved.task, found, self.live, self.batch)

    @property
    def as_trained(self) -> Allowance:
        """What may lie between outputs when the arithmetic is that of training."""
        return self.allowed(half=is_half(self.saved.recipe, on_gpu=self.on_gpu))

    @property
    def on_gpu(self) -> bool:
        """Whether it was trained there."""
        return bool(self.report.environment.get("gpus"))

    def allowed(self, *, half: bool) -> Allowance:
        """What may lie between outputs in float32, or in 16 bits."""
        usual = allowance(self.live, half=half, same_device=not self.on_gpu)
        return usual if self.tolerance is None else replace(usual, difference=self.tolerance)

    def signed(self, folder: Path, *, adapter: bool) -> dict[str, torch.Tensor]:
        """Write the folder's contract; what a fresh process then makes of it."""
        saved = self.saved
        kept = ("auto_class", "base", "labels") + (("dtype", "quantization") if adapter else ())
        parts = {"dtype": "auto", "quantization": None, **{name: saved.contract[name] for name in kept}}
        saved.tokenizer.save_pretrained(folder)
        write_contract(
            folder, **parts, adapter=adapter, tokenizer=tokenizer_identity(saved.tokenizer),
            task=as_homeless(as_class(saved.task)),
        )  # fmt: skip
        return {} if (folder / "model.onnx").exists() else fresh_outputs_of(folder, saved.recipe, self.batch)


def export(
    run: Path,
    out: Path,
    *,
    form: Literal["model", "adapter", "onnx"] = "model",
    dtype: str = "auto",
    merge: str = "best",
    int8: bool = False,
    tolerance: float | None = None,
    trust_remote_code: bool = False,
) -> Receipt:
    """Write what the run trained to `out`, and prove it.

    Args:
        run: A finished run's folder.
        out: A new folder.
        form: `model`, merged; `adapter`, as it is; `onnx`, merged, for ONNX Runtime.
        dtype: Of the merged weights: `float32`, `bfloat16`, `float16`, or `auto`, as the base was loaded.
        merge: For a quantized run: `original`, `dequantized` or `4bit`, or `best`, the better one of the first two.
        int8: ONNX with 8-bit weights; activations are quantized as it runs.
        tolerance: The largest difference of a logit that passes. Unless given 1e-4 of the largest logit, or where
            16-bit arithmetic takes part 5e-2 of it; of logits below 1 as of 1.
        trust_remote_code: Run code that the base brings.

    Raises NotReproducedError when the export is not what was trained, and UserError; `out` then does not appear.
    """
    if not is_finished(run):
        raise UserError(f"{run}: no finished run here; give the folder that a training run printed")
    batch, live = read_held_out(run)
    saved = read_run(run, trust_remote_code=trust_remote_code)
    _check_words(saved, form, dtype, merge, int8)
    origin = _Origin(saved=saved, report=read_report(run), batch=batch, live=live, tolerance=tolerance)
    with new_folder(out) as folder:
        adapter = form == "adapter"
        receipt = _export_adapter(origin, folder) if adapter else _export_merged(origin, folder, dtype, merge)
        if form == "onnx":
            receipt = _export_onnx(origin, folder, receipt, int8)
        told = finite(asdict(receipt))
        write_json(folder / RECEIPT, {**told, "recipe": recipe_to_dict(saved.recipe), "environment": environment()})
        contract = read_contract(folder)
        assert contract is not None
        write_card(folder, saved.recipe, origin.report, contract, told)
    if receipt.forms:
        logger.info("on validation:\n%s\nexported: %s", form_table(receipt.forms), receipt.shipped)
    logger.info(
        "exported to %s: largest logit difference %.2g on %d held-out rows (tolerance %.2g), "
        "%.4g %% of answers as the live model's",
        out, receipt.exported_difference, receipt.rows, receipt.tolerance, 100 * receipt.label_agreement,
    )  # fmt: skip
    return receipt


def _check_words(saved: SavedRun, form: str, dtype: str, merge: str, int8: bool) -> None:
    recipe = saved.recipe
    if form == "adapter" and recipe.method.peft is None:
        raise UserError("--format adapter: full fine-tuning has no adapter; leave the word out")
    if form == "adapter" and dtype != "auto":
        raise UserError("--dtype: an adapter is written as it was trained; leave the word out")
    if merge != "best" and (recipe.method.quantization is None or form == "adapter"):
        raise UserError("--merge: is for merging a quantized run; leave the word out")
    if merge == "4bit" and (dtype != "auto" or form == "onnx"):
        raise UserError("--merge 4bit: its weights are in 4 bits; leave out --dtype and --format")
    if form == "onnx" and dtype not in ("auto", "float32"):
        raise UserError("--dtype: ONNX is written in float32, or smaller with --int8; leave the word out")
    if int8 and form != "onnx":
        raise UserError("--int8: is for --format onnx")


def _load_as_trained(origin: _Origin) -> tuple[PreTrainedModel | PeftModel, Difference]:
    """The model as it was trained, and how far it is from the live one."""
    model = load_model(origin.saved)
    found = origin.compared_live(outputs_of(model, origin.batch))
    check("export: the run read back", found, origin.as_trained)
    return model, found


def _finished(saved: SavedRun, folder: Path, dtype: str) -> PreTrainedModel:
    return load_finished(folder, saved.task, dtype=dtype, trust_remote_code=saved.trust_remote_code).eval()


def _export_adapter(origin: _Origin, folder: Path) -> Receipt:
    model, reloaded = _load_as_trained(origin)
    del model
    for name in ADAPTER_FILES:
        if (origin.saved.folder / name).exists():
            shutil.copy(origin.saved.folder / name, folder / name)
    found = origin.compared_live(origin.signed(folder, adapter=True))
    allowed = origin.as_trained
    check("export: the adapter", found, allowed)
    return Receipt(
        format="adapter", dtype=origin.saved.recipe.model.dtype, rows=found.rows, tolerance=allowed.difference,
        exported_difference=found.difference, label_agreement=found.label_agreement,
        text_agreement=found.text_agreement, reload_difference=reloaded.difference, live_difference=found.difference,
    )  # fmt: skip


def _export_merged(origin: _Origin, folder: Path, dtype: str, merge: str) -> Receipt:
    """The best merge, checked in a fresh process against the same weights before they were merged."""
    saved, quantization = origin.saved, origin.saved.recipe.method.quantization
    model, reloaded = _load_as_trained(origin)
    if not can_be_merged(model):
        kind = saved.recipe.method.kind.upper()
        raise UserError(f"export: {kind} adds no weights that could be merged; take --format adapter")
    as_trained = str(model.dtype if saved.recipe.model.dtype == "auto" else saved.recipe.model.dtype)
    as_trained = as_trained.removeprefix("torch.")
    dtype = as_trained if dtype == "auto" else dtype
    if dtype == "float16" and model.config.model_type in OVERFLOW_IN_FLOAT16:
        raise UserError(f"--dtype float16: {model.config.model_type} overflows in it; take bfloat16 or float32")
    names = ["merged"] if quantization is None else ["original", "dequantized"] + ["4bit"] * (merge == "4bit")
    look, rows, packed = None, [], packed_weights(model)
    if quantization is not None or dtype != as_trained:
        look = ValidationLook.of(saved, origin.report, model, origin.batch)
        rows.append(look.row("as trained, not merged", model, None))
    # One model at a time: what is merged next maps the base's files anew.
    del model
    expected: dict[str, Mapping[str, torch.Tensor]] = {}
    for name in names:
        (folder / name).mkdir()
        if name == "4bit":
            expected[name] = _merge_into_4bit(origin, folder / name)
        else:
            unmerged = load_model(saved, unquantized_as="float32" if dtype == "float32" else as_trained)
            unmerged.config.update(dict(saved.task.settings()))
            weights = None
            if name == "dequantized":
                assert quantization is not None
                weights = dequantized(quantization, packed, getattr(torch, as_trained))
            expected[name] = origin.live if name == "dequantized" else outputs_of(unmerged, origin.batch)
            write_merged(unmerged, folder / name, getattr(torch, dtype), weights)
            del unmerged
        if look is not None:
            merged: Any = _finished(saved, folder / name, "auto")
            said = FORMS.get(name, f"merged, in {dtype}")
            rows.append(look.row(said, merged, weight_bytes(folder / name)))
            del merged
    chosen = names[0] if len(names) == 1 else merge if merge != "best" else _best(rows[1:], saved.task.main_metrics[0])
    for path in list((folder / chosen).iterdir()):
        path.rename(folder / path.name)
    for name in names:
        shutil.rmtree(folder / name)
    in_full = dtype == "float32" and chosen != "4bit"
    allowed = origin.as_trained if chosen == "dequantized" and in_full else origin.allowed(half=not in_full)
    found = origin.signed(folder, adapter=False)
    exported = compared(saved.task, found, expected[chosen], origin.batch)
    check("export: the merged model", exported, allowed)
    live = origin.compared_live(found)
    return Receipt(
        format="model", dtype="4bit" if chosen == "4bit" else dtype, rows=exported.rows, tolerance=allowed.difference,
        exported_difference=exported.difference, label_agreement=live.label_agreement,
        text_agreement=live.text_agreement, reload_difference=reloaded.difference, live_difference=live.difference,
        shipped=FORMS.get(chosen, f"merged, in {dtype}") if rows else None, forms=tuple(rows),
    )  # fmt: skip


def _best(rows: Sequence[FormRow], metric: str) -> str:
    """The form with the best score on validation; of equals, and without scores, the one nearest to the unmerged."""
    named = dict(zip(FORMS, rows, strict=False))
    return max(named, key=lambda name: (named[name].scores.get(metric, 0.0), -named[name].divergence))


def _merge_into_4bit(origin: _Origin, folder: Path) -> dict[str, torch.Tensor]:
    logger.warning("--merge 4bit: rounding to 4 bits erases much of a small adapter; the table tells how much")
    model = load_model(origin.saved)
    with warnings.catch_warnings():
        # peft warns of the rounding that was just told of.
        warnings.filterwarnings("ignore", message="Merge lora module to 4-bit linear")
        merged = merged_whole(model)
    merged.config.update(dict(origin.saved.task.settings()))
    merged.save_pretrained(folder)
    return outputs_of(merged, origin.batch)


def _export_onnx(origin: _Origin, folder: Path, receipt: Receipt, int8: bool) -> Receipt:
    """The merged model that is in the folder, as ONNX in its place, checked in ONNX Runtime against it."""
    saved = origin.saved
    merged: Any = _finished(saved, folder, "float32")

    def difference(model: Any) -> Difference:
        # The graph was traced with the whole batch: a row alone tells whether its rows or its length are fixed.
        shapes = (origin.batch, _shortest(origin.batch))
        return combined(
            [
                compared(saved.task, {"logits": logits_of(model, one)}, {"logits": logits_of(merged, one)}, one)
                for one in shapes
            ]
        )

    def written(small: bool) -> tuple[Any, int]:
        write_onnx(merged, origin.batch, folder, int8=small)
        return OnnxModel(folder), sum(path.stat().st_size for path in folder.glob("model.onnx*"))

    model, size = written(False)
    exported = difference(model)
    check("export: the model in ONNX Runtime", exported, origin.allowed(half=False))
    forms = list(receipt.forms)
    if int8:
        look = ValidationLook.of(saved, origin.report, merged, origin.batch)
        forms.append(look.row("merged, in float32", merged, weight_bytes(folder)))
        forms.append(look.row("as ONNX, in float32", model, size))
        model, size = written(True)
        forms.append(look.row("as ONNX, in int8", model, size))
        exported = difference(model)
    for path in folder.glob("model*.safetensors*"):
        path.unlink()
    origin.signed(folder, adapter=False)
    live = compared(saved.task, outputs_of(model, origin.batch), {"logits": origin.live["logits"]}, origin.batch)
    return replace(
        receipt, format="onnx", dtype="int8" if int8 else "float32", exported_difference=exported.difference,
        label_agreement=live.label_agreement, text_agreement=None, live_difference=live.difference,
        shipped="as ONNX, in int8" if int8 else receipt.shipped, forms=tuple(forms),
    )  # fmt: skip


def _shortest(batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The row with the fewest tokens, alone and without padding."""
    lengths = batch["attention_mask"].sum(-1)
    row = int(lengths.argmin())
    return {
        name: tensor[row : row + 1] if name.startswith("decoder_") else tensor[row : row + 1, : lengths[row]]
        for name, tensor in batch.items()
    }
