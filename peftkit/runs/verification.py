"""Compare the outputs of two models on the same rows, with a tolerance."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from peftkit.errors import NotReproducedError
from peftkit.recipe.schema import Recipe
from peftkit.tasks import Task

FULL_TOLERANCE = 1e-4
HALF_TOLERANCE = 5e-2
# Maximum difference of two predicted numbers that count as equal.
SAME_NUMBER = 1e-2


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Difference between the outputs of two models on the same rows.

    Attributes:
        rows: Number of rows.
        difference: Maximum difference of a logit.
        label_agreement: Share of rows, tags or tokens, or of pairs of row and label, with the same prediction.
        text_agreement: Share of rows with the same generated tokens; None without generation.
        divergence: Kullback-Leibler divergence in nats, the mean over rows, tags or tokens (summed over several
            labels); for regression the mean absolute difference.
    """

    rows: int
    difference: float
    label_agreement: float
    text_agreement: float | None
    divergence: float


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """Maximum accepted difference between the outputs of two models.

    Attributes:
        difference: Maximum difference of a logit.
        label_agreement: Minimum share of equal predictions; two classes with nearly equal logits may swap.
        text_agreement: Minimum share of rows with the same generated tokens.
    """

    difference: float
    label_agreement: float = 0.95
    text_agreement: float = 1.0


def find_tolerance(outputs: Mapping[str, torch.Tensor], *, half: bool = False, same_device: bool = True) -> Tolerance:
    """Return the tolerance for recomputed `outputs`: 1e-4 of the largest logit, at least 1e-4.

    With 16-bit arithmetic (`half`) the tolerance is 5e-2, and generated text may differ: rounding may change the choice
    between two tokens with nearly equal logits. Between a GPU and a CPU this also happens in 32 bits, but rarely.
    """
    scale = max(1.0, float(outputs["logits"].abs().max()))
    if half:
        return Tolerance(difference=HALF_TOLERANCE * scale, label_agreement=0.9, text_agreement=0.0)
    return Tolerance(difference=FULL_TOLERANCE * scale, text_agreement=1.0 if same_device else 0.5)


def is_half_precision(recipe: Recipe, dtype: str, *, on_gpu: bool) -> bool:
    """Return whether a computation uses fewer than 32 bits: `dtype`, mixed precision, TF32, 4-bit layers."""
    half = dtype != "float32" or any(recipe.training.get(name) for name in ("bf16", "fp16"))
    half |= on_gpu and bool(recipe.training.get("tf32"))
    if (quantization := recipe.method.quantization) is not None:
        compute = quantization.bnb_4bit_compute_dtype
        half |= on_gpu if compute == "auto" else compute != "float32"
    return half


def compare_outputs(
    task: Task, found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], batch: Mapping[str, Any]
) -> Difference:
    """Compare `found` (`logits`, for text also `generated`) with `expected` on `batch`, without padding.

    If `expected` has `counted`, a boolean per target token, only tokens with the value true are compared.
    """
    counted = expected.get("counted")
    if counted is None and expected["logits"].ndim == 3 and "decoder_input_ids" not in batch:
        counted = batch["attention_mask"].bool()
    logits, reference = (
        (outputs["logits"] if counted is None else outputs["logits"][counted]).float() for outputs in (found, expected)
    )
    texts = None
    if "generated" in expected:
        texts = _compare_texts(found["generated"], expected["generated"])
    # Replace NaN by infinity, which exceeds every tolerance.
    worst = (logits - reference).abs().nan_to_num(nan=float("inf")).max()
    return Difference(
        rows=len(expected["logits"]),
        difference=float(worst),
        label_agreement=float(find_equal_predictions(task, logits, reference).float().mean()),
        text_agreement=texts,
        divergence=float(compute_divergence(task, logits, reference).mean()),
    )


def find_equal_predictions(task: Task, logits: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Return whether the logits of two models, of shape (..., labels), give the same prediction."""
    if task.model.problem_type == "regression":
        return torch.isclose(logits, other, rtol=0.0, atol=SAME_NUMBER)
    if task.model.problem_type == "multi_label_classification":
        thresholds = list(getattr(task, "thresholds", {}).values())
        cut = torch.tensor(thresholds if len(thresholds) == logits.shape[-1] else 0.5).logit()
        return (logits >= cut) == (other >= cut)
    return logits.argmax(-1) == other.argmax(-1)


def compute_divergence(task: Task, logits: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Return the Kullback-Leibler divergence in nats; for regression the absolute difference."""
    if task.model.problem_type == "regression":
        return (logits - reference).abs().sum(-1)
    if task.model.problem_type == "multi_label_classification":
        logits, reference = logits.double(), reference.double()
        gap = torch.nn.functional.logsigmoid(reference) - torch.nn.functional.logsigmoid(logits)
        gap_of_absence = torch.nn.functional.logsigmoid(-reference) - torch.nn.functional.logsigmoid(-logits)
        present = reference.sigmoid()
        return (present * gap + (1 - present) * gap_of_absence).sum(-1)
    found, expected = logits.log_softmax(-1), reference.log_softmax(-1)
    # Rounding can make the sum slightly negative.
    return torch.nn.functional.kl_div(found, expected, log_target=True, reduction="none").sum(-1).clamp(min=0)


def _compare_texts(one: torch.Tensor, other: torch.Tensor) -> float:
    """Return the share of rows with the same tokens; -1 is padding."""
    if one.shape != other.shape:
        width = max(one.shape[1], other.shape[1])
        one, other = (torch.nn.functional.pad(ids, (0, width - ids.shape[1]), value=-1) for ids in (one, other))
    return float((one == other).all(-1).float().mean())


def combine_differences(parts: Sequence[Difference]) -> Difference:
    """Combine batches: the maximum difference, and means weighted by rows."""
    rows = [part.rows for part in parts]

    def mean(values: list[float]) -> float:
        return sum(value * count for value, count in zip(values, rows, strict=True)) / sum(rows)

    texts = [part.text_agreement for part in parts if part.text_agreement is not None]
    return Difference(
        rows=sum(rows),
        difference=max(part.difference for part in parts),
        label_agreement=mean([part.label_agreement for part in parts]),
        text_agreement=mean(texts) if len(texts) == len(parts) else None,
        divergence=mean([part.divergence for part in parts]),
    )


def check_difference(name: str, found: Difference, tolerance: Tolerance) -> None:
    """Raise NotReproducedError if logits, predictions or generated texts differ more than the tolerance."""
    if not found.difference <= tolerance.difference:
        raise NotReproducedError(
            f"{name} differs from the model in memory by {found.difference:.3g} in a logit "
            f"(tolerance {tolerance.difference:.3g})"
        )
    if found.label_agreement < tolerance.label_agreement:
        raise NotReproducedError(
            f"{name}: {1 - found.label_agreement:.0%} of predictions differ from the model in memory"
        )
    if found.text_agreement is not None and found.text_agreement < tolerance.text_agreement:
        share = 1 - found.text_agreement
        raise NotReproducedError(f"{name}: generated text differs from the model in memory for {share:.0%} of rows")
