"""Evaluate variants of one model on validation: the effect of merging, rounding or another runtime."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from peftkit.data.splits import reload_splits
from peftkit.errors import UserError
from peftkit.models.inference import BATCH_SIZE, compute_logits, predict_rows, select_inputs
from peftkit.runs.report import Report
from peftkit.runs.saved import SavedRun
from peftkit.runs.verification import combine_differences, compare_outputs
from peftkit.system.logging import logger
from peftkit.tasks import Task

MEGABYTE = 1e6
# Maximum number of stored logits; for generated text this is only a few rows.
MAX_LOGITS = 20_000_000


@dataclass(frozen=True, kw_only=True)
class VariantScores:
    """Validation metrics of one variant of a model, as stored in `receipt.json`.

    Attributes:
        form: Name of the variant.
        scores: Main metrics on all validation rows; empty if the data is not available.
        rows: Number of rows for the next two fields.
        label_agreement: Share of predictions equal to the first variant.
        divergence: Divergence from the first variant, as in `peftkit.runs.verification.Difference`.
        megabytes: Size of the weights on disk in 10^6 bytes; None for a variant that is not saved.
    """

    form: str
    scores: Mapping[str, float]
    rows: int
    label_agreement: float
    divergence: float
    megabytes: float | None


@dataclass(frozen=True, kw_only=True)
class LogitSample:
    """Batches of rows for comparing models, with the outputs of the first model."""

    batches: Sequence[Mapping[str, torch.Tensor]]
    outputs: Sequence[Mapping[str, torch.Tensor]]


@dataclass(frozen=True, kw_only=True)
class ValidationComparison:
    """Validation rows (None if not available), and logits of the first variant for some rows."""

    saved: SavedRun
    rows: Dataset | None
    sample: LogitSample

    @classmethod
    def start(
        cls, saved: SavedRun, report: Report, model: Any, batch: Mapping[str, torch.Tensor], *, reload_data: bool
    ) -> "ValidationComparison":
        """Compute the logits of the first variant on validation rows, or on the held-out `batch` without data."""
        task = saved.task
        try:
            splits = reload_splits(saved.recipe.data, task, report.data["fingerprint"], allow_remote=reload_data)
        except UserError as error:
            logger.warning(
                "comparing variants on only %d held-out rows, without metrics: %s", len(batch["input_ids"]), error
            )
            sample = LogitSample(batches=[batch], outputs=[{"logits": compute_logits(model, batch)}])
            return cls(saved=saved, rows=None, sample=sample)
        encoded = task.encode(splits.validation, saved.tokenizer, saved.labels)
        sample = sample_logits(model, task, encoded, saved.tokenizer)
        return cls(saved=saved, rows=splits.validation, sample=sample)

    def score(self, form: str, model: Any, weight_bytes: int | None, task: Task | None = None) -> VariantScores:
        """Evaluate a variant on the same rows; pass `task` if its calibration differs."""
        task, scores = task or self.saved.task, {}
        logger.info("evaluating on validation: %s", form)
        # Metrics of generated text need a model with `generate`.
        if self.rows is not None and (task.output_kind != "text" or hasattr(model, "generate")):
            predictions = predict_rows(model, task, self.rows, self.saved.tokenizer, self.saved.labels)
            every = task.metrics.compute(predictions, task.targets(self.rows, self.saved.labels))
            scores = {name: every[name] for name in task.metrics.main}
        found = combine_differences(
            [
                compare_outputs(task, {"logits": compute_logits(model, batch)}, reference, batch)
                for batch, reference in zip(self.sample.batches, self.sample.outputs, strict=True)
            ]
        )
        return VariantScores(
            form=form, scores=scores, rows=found.rows, label_agreement=found.label_agreement,
            divergence=found.divergence, megabytes=None if weight_bytes is None else weight_bytes / MEGABYTE,
        )  # fmt: skip


@torch.no_grad()
def sample_logits(model: Any, task: Task, encoded: Dataset, tokenizer: PreTrainedTokenizerBase) -> LogitSample:
    """Compute logits of the first encoded rows, at most `MAX_LOGITS` values."""
    collator = task.collator(tokenizer, model)
    batches: list[Mapping[str, torch.Tensor]] = []
    outputs: list[Mapping[str, torch.Tensor]] = []
    for start in range(0, len(encoded), BATCH_SIZE):
        batch = collator([encoded[row] for row in range(start, min(start + BATCH_SIZE, len(encoded)))])
        inputs, counted = select_inputs(task, batch, model.config)
        batches.append(inputs)
        outputs.append({"logits": compute_logits(model, inputs), **counted})
        sizes = [one["logits"].numel() for one in outputs]
        if sum(sizes) + sizes[-1] > MAX_LOGITS:
            break
    return LogitSample(batches=batches, outputs=outputs)


def format_variants(rows: Sequence[VariantScores]) -> str:
    """Format a Markdown table; agreement and divergence are relative to the first variant."""
    shown = [name for name in rows[0].scores if all(name in row.scores for row in rows)]
    head = ["variant", *(f"validation {name}" for name in shown), "same predictions", "divergence", "rows", "MB"]
    lines = ["| " + " | ".join(head) + " |", "| --- |" + " ---: |" * (len(head) - 1)]
    for row in rows:
        size = "" if row.megabytes is None else f"{row.megabytes:.1f}"
        scores = [f"{row.scores[name]:.4f}" for name in shown]
        cells = [row.form, *scores, f"{row.label_agreement:.4f}", f"{row.divergence:.2g}", str(row.rows), size]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
