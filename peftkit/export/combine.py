"""Combine several LoRA runs on one base model into one run: check the arguments, then load the models."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from peftkit.errors import UserError
from peftkit.runs.report import is_finished
from peftkit.system.files import check_new_directory

if TYPE_CHECKING:
    from peftkit.export.variant_scores import VariantScores

MIN_WEIGHT_SUM = 1e-6
SPARSE_TYPES = ("ties", "dare", "magnitude_prune")


def combine(
    runs: Sequence[Path],
    out: Path,
    *,
    weights: Sequence[float] = (),
    combination_type: str = "cat",
    density: float | None = None,
    trust_remote_code: bool = False,
    reload_data: bool = False,
) -> list["VariantScores"]:
    """Write a run to `out` whose adapter is the weighted sum of the adapters of several runs.

    Args:
        runs: Folders of finished LoRA runs on the same base model.
        out: A new folder.
        weights: One weight per run, for adapters and heads; equal weights by default.
        combination_type: As in peft's `add_weighted_adapter`: `cat` is exact with the sum of the ranks, `svd` is an
            approximation with the largest rank.
        density: Share of values that `ties`, `dare` and `magnitude_prune` retain.
        trust_remote_code: Run code from the base model.
        reload_data: Read remote data of the first run again (a database, the Hub).

    Each run and the combination are evaluated on the validation rows of the first run, the combination also on the test
    rows. Raises UserError for runs that differ in base model, labels, tokenizer or task, and NotReproducedError.
    """
    if len(runs) < 2:
        raise UserError("combine: expected two or more runs and a new folder")
    if weights and len(weights) != len(runs):
        raise UserError(f"--weights: expected {len(runs)} numbers, one per run, got {len(weights)}")
    if density is None and combination_type.startswith(SPARSE_TYPES):
        raise UserError(f"--combination_type {combination_type}: missing --density, the share of values to retain")
    weights = list(weights) or [1 / len(runs)] * len(runs)
    if abs(sum(weights)) < MIN_WEIGHT_SUM:
        raise UserError("--weights: the sum must not be 0, because heads are averaged; use other weights")
    for folder in runs:
        if not is_finished(folder):
            raise UserError(f"{folder}: not a finished run; pass the folder of a finished run")
    check_new_directory(out)

    from peftkit.export.combination import combine_runs

    return combine_runs(
        runs, out, weights=weights, combination_type=combination_type, density=density,
        trust_remote_code=trust_remote_code, reload_data=reload_data,
    )  # fmt: skip
