"""Export a finished run to another format and verify the export; the receipt contains the comparison."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from peftkit.errors import UserError
from peftkit.export.formats.base import ExportFormat, ExportOptions
from peftkit.export.formats.registry import find_export_format
from peftkit.runs.report import is_finished, read_report
from peftkit.system.files import atomic_directory, check_new_directory, write_json
from peftkit.system.logging import logger

if TYPE_CHECKING:
    from peftkit.export.receipt import ExportSource, Receipt


def export(
    run: Path,
    out: Path,
    *,
    format: str | None = None,  # noqa: A002  # the name of the option
    dtype: str = "auto",
    merge: str = "best",
    int8: bool = False,
    tolerance: float | None = None,
    trust_remote_code: bool = False,
    reload_data: bool = False,
) -> "Receipt":
    """Export a run to the folder `out` and verify the export against the trained model.

    Args:
        run: Folder of a finished run.
        out: A new folder.
        format: Name of an export format: `model` (merged), `adapter`, `onnx` (merged, for ONNX Runtime), or a
            registered format. The default is `model`, or `adapter` for methods without weights to merge.
        dtype: Dtype of the merged weights: `float32`, `bfloat16`, `float16`, or `auto`, the dtype of the base model.
        merge: Base weights for merging the adapter of a quantized run: `original`, `dequantized`, `4bit`, or `best`,
            the better one of the first two on validation.
        int8: Write ONNX with 8-bit weights; activations are quantized at run time.
        tolerance: Maximum accepted difference of a logit. The default is 1e-4 of the largest logit, with 16-bit
            arithmetic 5e-2; a largest logit below 1 counts as 1.
        trust_remote_code: Run code from the base model.
        reload_data: Read remote data of the run again (a database, the Hub), for metrics on validation.

    Raises UserError, or NotReproducedError if the export does not reproduce the trained model; `out` is then not
    created. Arguments are checked before model libraries are imported.
    """
    options = ExportOptions(dtype=dtype, merge=merge, int8=int8)
    export_format = find_export_format(format or "model")
    if not is_finished(run):
        raise UserError(f"{run}: not a finished run; pass the folder of a finished run")
    export_format.check(options, read_report(run))
    check_new_directory(out)

    source = _read_source(run, tolerance=tolerance, trust_remote_code=trust_remote_code, reload_data=reload_data)
    if format is None:
        export_format = _select_format(source, export_format)
    receipt = _write_export(source, out, export_format, options)
    _log_receipt(receipt, out)
    return receipt


def _read_source(run: Path, *, tolerance: float | None, trust_remote_code: bool, reload_data: bool) -> "ExportSource":
    from peftkit.export.receipt import ExportSource
    from peftkit.runs.reload import read_held_out
    from peftkit.runs.saved import read_run

    batch, live = read_held_out(run)
    saved = read_run(run, trust_remote_code=trust_remote_code)
    return ExportSource(
        saved=saved, report=read_report(run), batch=batch, live=live, tolerance=tolerance, reload_data=reload_data
    )


def _select_format(source: "ExportSource", default: ExportFormat) -> ExportFormat:
    """Select the format `adapter` for methods without weights to merge."""
    from peft import PromptLearningConfig

    method = source.saved.recipe.method
    if not isinstance(method.peft, PromptLearningConfig):
        return default
    logger.warning("%s has no weights to merge, exporting the adapter", method.kind.upper())
    return find_export_format("adapter")


def _write_export(source: "ExportSource", out: Path, export_format: ExportFormat, options: ExportOptions) -> "Receipt":
    """Write and verify the export in a temporary folder, which is then renamed to `out`."""
    from peftkit.export.model_card import write_model_card
    from peftkit.export.receipt import RECEIPT
    from peftkit.recipe.serialization import recipe_to_dict
    from peftkit.runs.manifest import read_manifest
    from peftkit.runs.report import replace_nonfinite
    from peftkit.system.environment import read_environment

    recipe = source.saved.recipe
    with atomic_directory(out) as folder:
        receipt = export_format.write(source, folder, options)
        content = replace_nonfinite(asdict(receipt))
        write_json(folder / RECEIPT, {**content, "recipe": recipe_to_dict(recipe), "environment": read_environment()})
        manifest = read_manifest(folder)
        assert manifest is not None
        write_model_card(folder, recipe, source.report, manifest, content, export_format)
    return receipt


def _log_receipt(receipt: "Receipt", out: Path) -> None:
    from peftkit.export.variant_scores import format_variants

    if receipt.forms:
        logger.info("validation metrics:\n%s\nselected: %s", format_variants(receipt.forms), receipt.shipped)
    if receipt.onnx_forms:
        logger.info("validation metrics:\n%s", format_variants(receipt.onnx_forms))
    tolerance = "no tolerance" if receipt.tolerance is None else f"tolerance {receipt.tolerance:.2g}"
    logger.info(
        "exported to %s: max logit difference %.2g on %d held-out rows (%s), %.4g %% of predictions equal",
        out, receipt.exported_difference, receipt.rows, tolerance, 100 * receipt.label_agreement,
    )  # fmt: skip
