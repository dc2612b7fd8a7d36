"""The source run of an export, and the receipt with the differences between export and source run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoTokenizer, PreTrainedModel

from peftkit.export.variant_scores import VariantScores
from peftkit.models.inference import compute_outputs
from peftkit.recipe.serialization import to_full_class_dict
from peftkit.runs.manifest import identify_tokenizer, write_manifest
from peftkit.runs.reload import reload_outputs
from peftkit.runs.report import Report
from peftkit.runs.saved import SavedRun, load_model
from peftkit.runs.verification import (
    Difference,
    Tolerance,
    check_difference,
    compare_outputs,
    find_tolerance,
    is_half_precision,
)

RECEIPT = "receipt.json"


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """Maximum logit differences between an export and the trained model, stored in `receipt.json`.

    Attributes:
        format: Name of the export format.
        dtype: Dtype of the weights.
        rows: Number of compared held-out rows.
        tolerance: Maximum accepted `exported_difference`; None for 8-bit weights, which have validation metrics
            instead.
        exported_difference: Difference between the export, loaded in a new process (or in ONNX Runtime), and the same
            weights before merging (or before the conversion to ONNX).
        label_agreement: Share of rows, tags or tokens with equal predictions of export and trained model.
        text_agreement: Share of rows with equal generated tokens; None without generation.
        reload_difference: Difference between the reloaded run and the trained model.
        live_difference: Difference between the export and the trained model. For a quantized run this includes the
            effect of dequantization, and has no limit.
        shipped: The variant in the folder, if several variants are compared.
        forms: Validation metrics of each variant, the trained model first; empty if no weights are rounded.
        onnx_forms: Validation metrics of ONNX variants with 8-bit weights, the merged model first.
    """

    format: str
    dtype: str
    rows: int
    tolerance: float | None
    exported_difference: float
    label_agreement: float
    text_agreement: float | None
    reload_difference: float
    live_difference: float
    shipped: str | None = None
    forms: Sequence[VariantScores] = ()
    onnx_forms: Sequence[VariantScores] = ()


@dataclass(frozen=True, kw_only=True)
class ExportSource:
    """The source run of an export.

    Attributes:
        saved: The run without the model.
        report: The report of the run.
        batch: Model inputs of held-out rows.
        live: Outputs of the model in memory at the end of training for `batch`.
        tolerance: Maximum accepted difference of a logit; None for the default.
        reload_data: Whether remote data may be read again.
    """

    saved: SavedRun
    report: Report
    batch: Mapping[str, torch.Tensor]
    live: Mapping[str, torch.Tensor]
    tolerance: float | None
    reload_data: bool = False

    @property
    def is_trained_on_gpu(self) -> bool:
        """Whether the run was trained on a GPU."""
        return bool(self.report.environment.get("gpus"))

    @property
    def training_tolerance(self) -> Tolerance:
        """Tolerance for outputs in the arithmetic of training."""
        half = is_half_precision(self.saved.recipe, self.saved.manifest["dtype"], on_gpu=self.is_trained_on_gpu)
        return self.find_tolerance(half=half)

    def find_tolerance(self, *, half: bool) -> Tolerance:
        """Return the tolerance for outputs in 32 bits, or in 16 bits (`half`)."""
        default = find_tolerance(self.live, half=half, same_device=not self.is_trained_on_gpu)
        return default if self.tolerance is None else replace(default, difference=self.tolerance)

    def compare_with_live(self, outputs: Mapping[str, torch.Tensor]) -> Difference:
        """Compare outputs with the outputs of the trained model."""
        return compare_outputs(self.saved.task, outputs, self.live, self.batch)

    def write_manifest(self, folder: Path, *, adapter: bool, dtype: str) -> None:
        """Write tokenizer and manifest to the folder with the weights."""
        saved = self.saved
        shared = {name: saved.manifest[name] for name in ("auto_class", "base", "labels")}
        saved.tokenizer.save_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=saved.trust_remote_code)
        write_manifest(
            folder, **shared, adapter=adapter, dtype=dtype, tokenizer=identify_tokenizer(tokenizer),
            quantization=saved.manifest["quantization"] if adapter else None, task=to_full_class_dict(saved.task),
        )  # fmt: skip

    def reload(self, folder: Path) -> dict[str, torch.Tensor]:
        """Compute the outputs of a folder with a manifest in a new process."""
        trust = self.saved.trust_remote_code
        return reload_outputs(folder, self.saved.recipe, self.batch, trust_remote_code=trust)

    def load_as_trained(self) -> tuple[PreTrainedModel | PeftModel, Difference]:
        """Load the trained model and compare it with its outputs after training. Raises NotReproducedError."""
        model = load_model(self.saved)
        difference = self.compare_with_live(compute_outputs(model, self.batch))
        check_difference("export: the reloaded run", difference, self.training_tolerance)
        return model, difference
