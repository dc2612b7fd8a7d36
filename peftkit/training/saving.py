"""Steps after training: save the run and verify the saved run."""

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
    """Comparison of a saved run with the model in memory.

    Attributes:
        report: Report with the difference in `round_trip`.
        difference: Difference between the outputs of the saved and the trained model.
        tolerance: Maximum accepted difference.
    """

    report: Report
    difference: Difference
    tolerance: Tolerance

    def check(self) -> None:
        """Raise NotReproducedError if the difference is larger than the tolerance."""
        check_difference("the saved run", self.difference, self.tolerance)


def save_weights(task: Task, data: PreparedData, fitted: FittedModel, folder: Path) -> dict[str, torch.Tensor]:
    """Save the weights in `folder`; return a batch of test rows and the outputs of the model.

    Every rank participates.
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
    """Write the other files of a run: configs, recipe, manifest, verification batch, test predictions.

    Raises AuditError if a parameter of the head is not saved.
    """
    writer.write_run_files(
        folder, recipe, loaded.model, set(loaded.base.missing_keys), labels=data.splits.labels, held_out=outputs,
        task=evaluation.task,
    )  # fmt: skip
    row_numbers = data.splits.origins["test"][1]
    writer.write_predictions(folder, row_numbers, evaluation.predictions["test"], evaluation.references)


def verify(report: Report, recipe: Recipe, task: Task, folder: Path) -> Verification:
    """Load the saved run in a new process and compare the outputs with the trained model."""
    difference = compare_reloaded(folder, recipe, task)
    tolerance = find_reload_tolerance(folder, recipe, bool(report.environment.get("gpus")))
    result = {**dataclasses.asdict(difference), "tolerance": tolerance.difference}
    return Verification(report=replace(report, round_trip=result), difference=difference, tolerance=tolerance)
