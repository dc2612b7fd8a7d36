"""All export formats by name, without heavy imports because `--help` lists the names."""

import importlib
from collections.abc import Callable
from typing import Any

from peftkit.errors import UserError
from peftkit.export.formats.base import ExportFormat, ExportOptions
from peftkit.runs.report import Report


def _import_later(module: str, function: str) -> Callable[..., Any]:
    """Return a function that imports the module of a format at the first call."""

    def call(*arguments: Any) -> Any:
        return getattr(importlib.import_module(f"peftkit.export.formats.{module}"), function)(*arguments)

    return call


def _is_quantized(report: Report) -> bool:
    return bool(report.recipe.get("method", {}).get("quantization"))


def _check_merged(options: ExportOptions, report: Report) -> None:
    if options.merge != "best" and not _is_quantized(report):
        raise UserError("--merge applies to quantized runs only; remove the option")
    if options.merge == "4bit" and options.dtype != "auto":
        raise UserError("--merge 4bit writes weights in 4 bits; remove --dtype")
    if options.int8:
        raise UserError("--int8 applies to --format onnx only; remove the option")


def _check_adapter(options: ExportOptions, report: Report) -> None:
    if not report.recipe.get("method", {}).get("peft"):
        raise UserError("--format adapter: full fine-tuning has no adapter; remove the option")
    if options.dtype != "auto":
        raise UserError("--dtype applies to merged weights only; remove the option")
    if options.merge != "best":
        raise UserError("--merge applies to merged models only; remove the option")
    if options.int8:
        raise UserError("--int8 applies to --format onnx only; remove the option")


def _check_onnx(options: ExportOptions, report: Report) -> None:
    if options.merge != "best" and not _is_quantized(report):
        raise UserError("--merge applies to quantized runs only; remove the option")
    if options.merge == "4bit":
        raise UserError("--merge 4bit: ONNX does not support 4-bit weights; use --int8 or remove --format")
    if options.dtype not in ("auto", "float32"):
        raise UserError(f"--dtype {options.dtype}: ONNX exports are in float32; use --int8 or remove the option")


MODEL = ExportFormat(
    name="model",
    description="a merged Transformers model",
    write=_import_later("merged", "write_merged_model"),
    check=_check_merged,
)
ADAPTER = ExportFormat(
    name="adapter",
    description="the adapter alone",
    write=_import_later("adapter", "write_adapter"),
    check=_check_adapter,
    usage=_import_later("adapter", "format_usage"),
    library="peft",
)
ONNX = ExportFormat(
    name="onnx",
    description="a merged model for ONNX Runtime (pip install 'peftkit[onnx]')",
    write=_import_later("onnx", "write_onnx_model"),
    check=_check_onnx,
    usage=_import_later("onnx", "format_usage"),
    library="onnx",
    verifier="ONNX Runtime",
)
BUILT_IN = (MODEL, ADAPTER, ONNX)

_formats = {one.name: one for one in BUILT_IN}


def register_export_format(export_format: ExportFormat) -> None:
    """Add a format to `peftkit export --format`. Raises UserError for the name of a built-in format."""
    if any(export_format.name == one.name for one in BUILT_IN):
        raise UserError(f"register_export_format: '{export_format.name}' is a built-in format; use another name")
    _formats[export_format.name] = export_format


def list_export_formats() -> tuple[ExportFormat, ...]:
    """List the built-in and registered formats."""
    return tuple(_formats.values())


def find_export_format(name: str) -> ExportFormat:
    """Return the format with this name. Raises UserError for an unknown name."""
    if name not in _formats:
        raise UserError(f"--format: unknown format '{name}'; use one of {', '.join(_formats)}")
    return _formats[name]
