"""Forms of one model side by side on validation: what merging, rounding or another runtime changes."""

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
# So many numbers of logits are held for a comparison; of a vocabulary's, that is a few rows.
MAX_LOGITS = 20_000_000


@dataclass(frozen=True, kw_only=True)
class VariantScores:
    """What one form of a model makes of validation.

    Attributes:
        form: What it is called.
        scores: Main metrics on all of validation; empty where the data is no longer at hand.
        rows: How many rows the next two are of.
        label_agreement: Share of answers that equal those of the first form.
        divergence: From the first form, as in `peftkit.runs.verification.Difference`.
        megabytes: Of its weights on disk, in 10^6 bytes; None for what is not saved.
    """

    form: str
    scores: Mapping[str, float]
    rows: int
    label_agreement: float
    divergence: float
    megabytes: float | None


@dataclass(frozen=True, kw_only=True)
class LogitSample:
    """Batches of held-out rows on which models are compared, and one model's outputs of them."""

    batches: Sequence[Mapping[str, torch.Tensor]]
    outputs: Sequence[Mapping[str, torch.Tensor]]


@dataclass(frozen=True, kw_only=True)
class ValidationComparison:
    """Validation rows (None where they can't be had), and the first form's logits of some of them."""

    saved: SavedRun
    rows: Dataset | None
    sample: LogitSample

    @classmethod
    def of(
        cls, saved: SavedRun, report: Report, model: Any, batch: Mapping[str, torch.Tensor], *, reload_data: bool
    ) -> "ValidationComparison":
        """Look at validation with the first form; where the data can't be had, at the held-out `batch`."""
        task = saved.task
        try:
            splits = reload_splits(saved.recipe.data, task, report.data["fingerprint"], allow_remote=reload_data)
        except UserError as error:
            logger.warning(
                "forms are compared on %d held-out rows alone, without scores: %s", len(batch["input_ids"]), error
            )
            sample = LogitSample(batches=[batch], outputs=[{"logits": compute_logits(model, batch)}])
            return cls(saved=saved, rows=None, sample=sample)
        encoded = task.encode(splits.validation, saved.tokenizer, saved.labels)
        sample = sample_logits(model, task, encoded, saved.tokenizer)
        return cls(saved=saved, rows=splits.validation, sample=sample)

    def row(self, form: str, model: Any, weight_bytes: int | None, task: Task | None = None) -> VariantScores:
        """What this form makes of the same rows, by its own `task` where it learned another one from validation."""
        task, scores = task or self.saved.task, {}
        logger.info("scoring on validation: %s", form)
        # What can't generate can't be scored on what it generates.
        if self.rows is not None and (task.task_type != "SEQ_2_SEQ_LM" or hasattr(model, "generate")):
            answers = predict_rows(model, task, self.rows, self.saved.tokenizer, self.saved.labels)
            every = task.score(answers, task.references(self.rows, self.saved.labels))
            scores = {name: every[name] for name in task.main_metrics}
        found = combine_differences(
            [
                compare_outputs(task, {"logits": compute_logits(model, batch)}, right, batch)
                for batch, right in zip(self.sample.batches, self.sample.outputs, strict=True)
            ]
        )
        return VariantScores(
            form=form, scores=scores, rows=found.rows, label_agreement=found.label_agreement,
            divergence=found.divergence, megabytes=None if weight_bytes is None else weight_bytes / MEGABYTE,
        )  # fmt: skip


@torch.no_grad()
def sample_logits(model: Any, task: Task, encoded: Dataset, tokenizer: PreTrainedTokenizerBase) -> LogitSample:
    """Logits of encoded rows, from the first on, until the numbers held would be too many."""
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
    """The rows as a Markdown table; agreement and divergence are with the first."""
    shown = [name for name in rows[0].scores if all(name in row.scores for row in rows)]
    head = ["form", *(f"validation {name}" for name in shown), "same answers", "divergence", "rows", "MB"]
    lines = ["| " + " | ".join(head) + " |", "| --- |" + " ---: |" * (len(head) - 1)]
    for row in rows:
        size = "" if row.megabytes is None else f"{row.megabytes:.1f}"
        scores = [f"{row.scores[name]:.4f}" for name in shown]
        cells = [row.form, *scores, f"{row.label_agreement:.4f}", f"{row.divergence:.2g}", str(row.rows), size]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
