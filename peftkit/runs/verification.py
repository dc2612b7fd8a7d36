"""What is on disk, asked by a fresh process, against what was in memory: the proof that nothing was lost between."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from peftkit.errors import NotReproducedError
from peftkit.recipe.schema import Recipe
from peftkit.tasks import Task

FULL_TOLERANCE = 1e-4
HALF_TOLERANCE = 5e-2


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How far one model's outputs are from another's, on the same rows.

    Attributes:
        rows: How many rows were asked.
        difference: The largest difference of a logit.
        label_agreement: Share of rows, tags or tokens, or of rows and labels, for which both name the same answer.
        text_agreement: Share of rows for which both generate the same tokens; None where nothing is generated.
        divergence: Kullback-Leibler divergence of the second from the first in nats, the mean over rows, tags or
            tokens (of several labels, their sum); of numbers, the mean absolute difference.
    """

    rows: int
    difference: float
    label_agreement: float
    text_agreement: float | None
    divergence: float


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """How far one model's outputs may be from another's.

    Attributes:
        difference: Of a logit, the most.
        label_agreement: Share of answers that must be the same; two nearly equal ones may change places.
        text_agreement: Share of rows for which both must generate the same tokens.
    """

    difference: float
    label_agreement: float = 0.95
    text_agreement: float = 1.0


def find_tolerance(outputs: Mapping[str, torch.Tensor], *, half: bool = False, same_device: bool = True) -> Tolerance:
    """What may lie between `outputs` and the same model's elsewhere: 1e-4 of the largest logit, and at least that.

    In 16 bits (`half`) it is 5e-2, and texts may differ, since of two nearly equal tokens either may be generated.
    Between a GPU and a CPU that happens in 32 bits as well, but rarely.
    """
    scale = max(1.0, float(outputs["logits"].abs().max()))
    if half:
        return Tolerance(difference=HALF_TOLERANCE * scale, label_agreement=0.9, text_agreement=0.0)
    return Tolerance(difference=FULL_TOLERANCE * scale, text_agreement=1.0 if same_device else 0.5)


def is_half_precision(recipe: Recipe, dtype: str, *, on_gpu: bool) -> bool:
    """Whether arithmetic of 16 bits (or TF32's 19) takes part: by weights of `dtype`, mixed precision, 4-bit layers."""
    half = dtype != "float32" or any(recipe.training.get(name) for name in ("bf16", "fp16"))
    half |= on_gpu and bool(recipe.training.get("tf32"))
    if (quantization := recipe.method.quantization) is not None:
        compute = quantization.bnb_4bit_compute_dtype
        half |= on_gpu if compute == "auto" else compute != "float32"
    return half


def compare_outputs(
    task: Task, found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], batch: Mapping[str, Any]
) -> Difference:
    """How far `found` (`logits`, perhaps `generated`) is from `expected` on `batch`; padding does not count.

    Where `expected` has `counted`, true and false a token of the target, only those tokens do.
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
    # A NaN is no agreement: infinity fails every tolerance.
    worst = (logits - reference).abs().nan_to_num(nan=float("inf")).max()
    return Difference(
        rows=len(expected["logits"]),
        difference=float(worst),
        label_agreement=float(task.same(logits, reference).float().mean()),
        text_agreement=texts,
        divergence=float(task.divergence(logits, reference).mean()),
    )


def _compare_texts(one: torch.Tensor, other: torch.Tensor) -> float:
    """Share of rows with the same tokens; -1 is padding."""
    if one.shape != other.shape:
        width = max(one.shape[1], other.shape[1])
        one, other = (torch.nn.functional.pad(ids, (0, width - ids.shape[1]), value=-1) for ids in (one, other))
    return float((one == other).all(-1).float().mean())


def combine_differences(parts: Sequence[Difference]) -> Difference:
    """Of several batches: the largest difference, and the other means by their rows."""
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


def check_difference(what: str, found: Difference, allowed: Tolerance) -> None:
    """Raise NotReproducedError when logits, answers or texts differ by more than is allowed."""
    if not found.difference <= allowed.difference:
        raise NotReproducedError(
            f"{what} differs from what was trained by {found.difference:.3g} in a logit "
            f"(tolerance {allowed.difference:.3g})"
        )
    if found.label_agreement < allowed.label_agreement:
        raise NotReproducedError(
            f"{what} gives other answers than what was trained for {1 - found.label_agreement:.0%}"
        )
    if found.text_agreement is not None and found.text_agreement < allowed.text_agreement:
        share = 1 - found.text_agreement
        raise NotReproducedError(f"{what} generates other text than what was trained for {share:.0%} of rows")
