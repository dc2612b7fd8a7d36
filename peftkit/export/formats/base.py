"""Export format record and export options."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from peftkit.export.receipt import ExportSource, Receipt
    from peftkit.runs.report import Report


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Options of one export.

    Attributes:
        dtype: Dtype of the merged weights: `float32`, `bfloat16`, `float16`, or `auto`, the dtype of the base model.
        merge: Base weights for merging the adapter of a quantized run: `original`, `dequantized`, `4bit`, or `best`,
            the better one of the first two on validation.
        int8: Whether to write weights in 8 bits.
    """

    dtype: str = "auto"
    merge: str = "best"
    int8: bool = False


def accept_defaults(options: ExportOptions, report: "Report") -> None:
    """Raise UserError for an option with a value other than the default."""
    from peftkit.errors import UserError

    for name, value in vars(ExportOptions()).items():
        if getattr(options, name) != value:
            raise UserError(f"--{name}: not an option of this export format; remove the option")


def format_default_usage(manifest: Mapping[str, Any]) -> str:
    """Return Python code that loads a folder with a whole Transformers model."""
    auto_class = manifest["auto_class"]
    return (
        f'from transformers import {auto_class}, AutoTokenizer\n\nmodel = {auto_class}.from_pretrained("FOLDER")\n'
        'tokenizer = AutoTokenizer.from_pretrained("FOLDER")'
    )


@dataclass(frozen=True, kw_only=True)
class ExportFormat:
    """An export format of a finished run.

    Attributes:
        name: Value of `--format`.
        description: Short description for `--help`.
        write: Writes and verifies the folder, writes the manifest with `ExportSource.write_manifest`, and returns the
            receipt. Raises NotReproducedError if the folder does not reproduce the trained model.
        check: Raises UserError for options that do not apply to the format or to the run with this report. Called
            before torch is imported.
        usage: Returns Python code for the model card that loads the folder, from the manifest.
        library: Name on the Hub of the library that loads the folder.
        verifier: Runtime in which `write` verifies the folder, for the model card.
    """

    name: str
    description: str
    write: Callable[["ExportSource", Path, ExportOptions], "Receipt"]
    check: Callable[[ExportOptions, "Report"], None] = accept_defaults
    usage: Callable[[Mapping[str, Any]], str] = format_default_usage
    library: str = "transformers"
    verifier: str = "a new process with transformers and peft"
