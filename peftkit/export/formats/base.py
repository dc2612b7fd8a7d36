"""The record of an export format, and the options of an export."""

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
        dtype: Dtype of the merged weights: `float32`, `bfloat16`, `float16`, or `auto`, the base's own.
        merge: Base weights of a quantized run that its adapter is merged onto: `original`, `dequantized`, `4bit`, or
            `best`, the better one of the first two on validation.
        int8: Whether weights are written in 8 bits.
    """

    dtype: str = "auto"
    merge: str = "best"
    int8: bool = False


def accept_defaults(options: ExportOptions, report: "Report") -> None:
    """Raise UserError for any option that differs from its default."""
    from peftkit.errors import UserError

    for name, value in vars(ExportOptions()).items():
        if getattr(options, name) != value:
            raise UserError(f"--{name}: not an option of this export format; remove the option")


def format_default_usage(manifest: Mapping[str, Any]) -> str:
    """Return Python code that loads a folder which holds a whole Transformers model."""
    auto_class = manifest["auto_class"]
    return (
        f'from transformers import {auto_class}, AutoTokenizer\n\nmodel = {auto_class}.from_pretrained("FOLDER")\n'
        'tokenizer = AutoTokenizer.from_pretrained("FOLDER")'
    )


@dataclass(frozen=True, kw_only=True)
class ExportFormat:
    """A format that a finished run can be exported in.

    Attributes:
        name: Value of `--format`.
        description: One clause for `--help`.
        write: Fills the folder, verifies what is in it, writes its manifest by `ExportSource.write_manifest`, and
            returns the receipt. Raises NotReproducedError when the folder does not reproduce the trained model.
        check: Raises UserError for options that do not apply to the format or to the run with this report. Called
            before torch is imported.
        usage: Returns Python code for the model card that loads the folder, given its manifest.
        library: Library that loads the folder, by its name on the Hub.
        verifier: Runtime that `write` verified the folder in, for the model card.
    """

    name: str
    description: str
    write: Callable[["ExportSource", Path, ExportOptions], "Receipt"]
    check: Callable[[ExportOptions, "Report"], None] = accept_defaults
    usage: Callable[[Mapping[str, Any]], str] = format_default_usage
    library: str = "transformers"
    verifier: str = "a new process with transformers and peft"
