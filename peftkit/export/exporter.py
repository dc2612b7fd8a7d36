"""A run's folder to an ordinary model, and the receipt: the proof that it is the one that was trained."""

from dataclasses import asdict
from pathlib import Path
from typing import Literal

from peft import PromptLearningConfig

from peftkit.errors import UserError
from peftkit.export.comparison import format_variants
from peftkit.export.formats import export_adapter, export_merged, export_onnx
from peftkit.export.model_card import write_model_card
from peftkit.export.receipt import RECEIPT, ExportSource, Receipt
from peftkit.recipe.parser import recipe_to_dict
from peftkit.runs.manifest import read_manifest
from peftkit.runs.reload import read_held_out
from peftkit.runs.report import is_finished, read_report, replace_nonfinite
from peftkit.runs.saved import SavedRun, read_run
from peftkit.system.environment import environment
from peftkit.system.files import atomic_directory, write_json
from peftkit.system.logging import logger


def export(
    run: Path,
    out: Path,
    *,
    form: Literal["model", "adapter", "onnx"] | None = None,
    dtype: str = "auto",
    merge: str = "best",
    int8: bool = False,
    tolerance: float | None = None,
    trust_remote_code: bool = False,
    reload_data: bool = False,
) -> Receipt:
    """Write what the run trained to `out`, and prove it.

    Args:
        run: A finished run's folder.
        out: A new folder.
        form: `model`, merged; `adapter`, as it is; `onnx`, merged, for ONNX Runtime. Unless given, a model, or the
            adapter of a method that adds no weights that could be merged.
        dtype: Of the merged weights: `float32`, `bfloat16`, `float16`, or `auto`, as the base was loaded.
        merge: For a quantized run: `original`, `dequantized` or `4bit`, or `best`, the better one of the first two.
        int8: ONNX with 8-bit weights; activations are quantized as it runs.
        tolerance: The largest difference of a logit that passes. Unless given 1e-4 of the largest logit, or where
            16-bit arithmetic takes part 5e-2 of it; of logits below 1 as of 1.
        trust_remote_code: Run code that the base brings.
        reload_data: Read the run's data again where it is remote (a database, the Hub), to score on validation.

    Raises NotReproducedError when the export is not what was trained, and UserError; `out` then does not appear.
    """
    if not is_finished(run):
        raise UserError(f"{run}: no finished run here; give the folder that a training run printed")
    batch, live = read_held_out(run)
    saved = read_run(run, trust_remote_code=trust_remote_code)
    _check_options(saved, form, dtype, merge, int8)
    if form is None and isinstance(saved.recipe.method.peft, PromptLearningConfig):
        kind = saved.recipe.method.kind.upper()
        logger.warning("%s adds no weights that could be merged: the adapter is exported", kind)
        form = "adapter"
    origin = ExportSource(
        saved=saved, report=read_report(run), batch=batch, live=live, tolerance=tolerance, reload_data=reload_data
    )
    with atomic_directory(out) as folder:
        adapter = form == "adapter"
        written = "float32" if form == "onnx" else dtype
        receipt = export_adapter(origin, folder) if adapter else export_merged(origin, folder, written, merge)
        if form == "onnx":
            receipt = export_onnx(origin, folder, receipt, int8)
        told = replace_nonfinite(asdict(receipt))
        write_json(folder / RECEIPT, {**told, "recipe": recipe_to_dict(saved.recipe), "environment": environment()})
        contract = read_manifest(folder)
        assert contract is not None
        write_model_card(folder, saved.recipe, origin.report, contract, told)
    if receipt.forms:
        logger.info("on validation:\n%s\nexported: %s", format_variants(receipt.forms), receipt.shipped)
    if receipt.onnx_forms:
        logger.info("on validation:\n%s", format_variants(receipt.onnx_forms))
    held = "not held to a tolerance" if receipt.tolerance is None else f"tolerance {receipt.tolerance:.2g}"
    logger.info(
        "exported to %s: largest logit difference %.2g on %d held-out rows (%s), %.4g %% of answers as the live model",
        out, receipt.exported_difference, receipt.rows, held, 100 * receipt.label_agreement,
    )  # fmt: skip
    return receipt


def _check_options(saved: SavedRun, form: str | None, dtype: str, merge: str, int8: bool) -> None:
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
