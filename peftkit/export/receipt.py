"""What an export is held to, and what it tells of itself."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoTokenizer, PreTrainedModel

from peftkit.export.comparison import VariantScores
from peftkit.models.inference import compute_outputs
from peftkit.recipe.serialization import whole_class
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
    """How far what was exported is from what was trained; differences are the largest of a logit.

    Attributes:
        format: `model`, `adapter` or `onnx`.
        dtype: Of the weights.
        rows: How many held-out rows were asked.
        tolerance: The most that `exported_difference` may be; None in 8 bits, which are scored instead.
        exported_difference: The export, loaded by a fresh process with plain libraries (or by ONNX Runtime), against
            the same weights before they were merged (or written as ONNX).
        label_agreement: Share of rows, tags or tokens that the exported and the live model name alike.
        text_agreement: Share of rows for which both generate the same tokens; None where nothing is generated.
        reload_difference: The run read back from disk as it was trained, against the live model.
        live_difference: The export against the live model. For a quantized run this is what leaving 4 bits changes,
            and any size passes.
        shipped: Of several forms, the one that the folder holds.
        forms: What each form makes of validation, the one that was trained first; empty where nothing was rounded.
        onnx_forms: The same for ONNX in 8 bits, the merged model first.
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
    """What an export starts from: a run, its report, and what the live model said of a held-out batch."""

    saved: SavedRun
    report: Report
    batch: Mapping[str, torch.Tensor]
    live: Mapping[str, torch.Tensor]
    tolerance: float | None
    reload_data: bool = False

    def compared_live(self, found: Mapping[str, torch.Tensor]) -> Difference:
        """How far outputs are from those of the live model."""
        return compare_outputs(self.saved.task, found, self.live, self.batch)

    @property
    def as_trained(self) -> Tolerance:
        """What may lie between outputs when the arithmetic is that of training."""
        return self.allowed(half=is_half_precision(self.saved.recipe, self.saved.contract["dtype"], on_gpu=self.on_gpu))

    @property
    def on_gpu(self) -> bool:
        """Whether it was trained there."""
        return bool(self.report.environment.get("gpus"))

    def allowed(self, *, half: bool) -> Tolerance:
        """What may lie between outputs in float32, or in 16 bits."""
        usual = find_tolerance(self.live, half=half, same_device=not self.on_gpu)
        return usual if self.tolerance is None else replace(usual, difference=self.tolerance)

    def sign(self, folder: Path, *, adapter: bool, dtype: str) -> None:
        """Write tokenizer and contract beside the weights in the folder."""
        saved = self.saved
        kept = {name: saved.contract[name] for name in ("auto_class", "base", "labels")}
        saved.tokenizer.save_pretrained(folder)
        read = AutoTokenizer.from_pretrained(folder, trust_remote_code=saved.trust_remote_code)
        write_manifest(
            folder, **kept, adapter=adapter, dtype=dtype, tokenizer=identify_tokenizer(read),
            quantization=saved.contract["quantization"] if adapter else None, task=whole_class(saved.task),
        )  # fmt: skip

    def fresh(self, folder: Path) -> dict[str, torch.Tensor]:
        """What a fresh process makes of a folder that was signed."""
        trust = self.saved.trust_remote_code
        return reload_outputs(folder, self.saved.recipe, self.batch, trust_remote_code=trust)

    def load_as_trained(self) -> tuple[PreTrainedModel | PeftModel, Difference]:
        """The model as it was trained, and how far it is from the live one. Raises NotReproducedError if too far."""
        model = load_model(self.saved)
        found = self.compared_live(compute_outputs(model, self.batch))
        check_difference("export: the run read back", found, self.as_trained)
        return model, found
