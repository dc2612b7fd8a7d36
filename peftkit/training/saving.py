"""The steps that save a run and verify what was saved."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from peftkit.recipe.schema import Recipe
from peftkit.runs import writer
from peftkit.runs.reload import compare_reloaded, compute_live_outputs, find_reload_tolerance
from peftkit.runs.report import Report
from peftkit.runs.verification import Difference, Tolerance, check_difference
from peftkit.tasks import Task
from peftkit.training.evaluation import Evaluation
from peftkit.training.fitting import FittedModel
from peftkit.training.preparation import LoadedModel, PreparedData

VERIFIED_ROWS = 32


@dataclass(frozen=True, kw_only=True)
class Verification:
    """A saved run compared with its model in memory.

    Attributes:
        report: With the difference in `round_trip`.
        difference: Between the outputs of the saved and of the trained model.
        tolerance: The largest difference that passes.
    """

    report: Report
    difference: Difference
    tolerance: Tolerance

    def check(self) -> None:
        """Raise NotReproducedError when the difference is larger than the tolerance."""
        check_difference("the saved run", self.difference, self.tolerance)


def save_weights(task: Task, data: PreparedData, fitted: FittedModel, folder: Path) -> dict[str, torch.Tensor]:
    """Save the weights in `folder`; return a batch of test rows with the outputs of the model for it.

    Every rank takes part.
    """
    trainer, test = fitted.trainer, data.encoded["test"]
    rows = test.select(range(min(VERIFIED_ROWS, len(test))))
    trainer.save_model(str(folder))
    return compute_live_outputs(task, trainer.model, trainer.data_collator(list(rows)), data.arguments.device)


def save(
    recipe: Recipe,
    data: PreparedData,
    loaded: LoadedModel,
    evaluation: Evaluation,
    outputs: Mapping[str, torch.Tensor],
    folder: Path,
) -> None:
    """Write what belongs beside the weights: configs, recipe, contract, verification batch, test predictions.

    Raises AuditError when a parameter of the head was not saved.
    """
    writer.write_run_files(
        folder, recipe, loaded.model, set(loaded.base.missing_keys), labels=data.splits.labels, held_out=outputs,
        task=evaluation.task,
    )  # fmt: skip
    row_numbers = data.splits.origins["test"][1]
    writer.write_predictions(folder, row_numbers, evaluation.predictions["test"], evaluation.references)


def verify(report: Report, recipe: Recipe, task: Task, folder: Path) -> Verification:
    """Load the saved run in a new process and compare its outputs with those of the trained model."""
    difference = compare_reloaded(folder, recipe, task)
    tolerance = find_reload_tolerance(folder, recipe, bool(report.environment.get("gpus")))
    result = {**dataclasses.asdict(difference), "tolerance": tolerance.difference}
    return Verification(report=replace(report, round_trip=result), difference=difference, tolerance=tolerance)
