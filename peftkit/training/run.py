"""One training run: resolve, prepare_data, load_model, fit, evaluate, save, verify."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from peftkit.checkpoints import manifest as checkpoint
from peftkit.distributed.deepspeed import choose_default_config, is_deepspeed_launcher
from peftkit.distributed.process_group import count_ranks, leave_process_group, raise_lost_rank_errors, wait_for_ranks
from peftkit.planning.auto_deepspeed import resolve_deepspeed
from peftkit.recipe.schema import Recipe, check_name
from peftkit.recipe.serialization import recipe_to_dict
from peftkit.runs import writer
from peftkit.runs.report import Report
from peftkit.system.environment import read_environment
from peftkit.system.logging import is_rank_zero
from peftkit.tasks import Task
from peftkit.training.callbacks import ClockCallback
from peftkit.training.evaluation import evaluate
from peftkit.training.failure import FailureReporter
from peftkit.training.fitting import fit
from peftkit.training.preparation import load_model, prepare_data
from peftkit.training.report_builder import build_report, log_report
from peftkit.training.saving import save, save_weights, verify


@dataclass(frozen=True, kw_only=True)
class ResolvedRun:
    """A run before data and model are loaded.

    Attributes:
        recipe: Final recipe, including DeepSpeed config, 4-bit storage and the batch size of a resumed run.
        folder: The run folder.
        checkpoint: The checkpoint to resume from; None for a new run.
        report: Initial report: name, method, recipe, environment.
        is_trial: Whether to evaluate only validation and save no weights.
    """

    recipe: Recipe
    folder: Path
    checkpoint: Path | None
    report: Report
    is_trial: bool


@dataclass(frozen=True, kw_only=True)
class SavedFiles:
    """A saved run whose model is freed.

    Attributes:
        report: Report without the verification.
        task: Task calibrated on validation; None without saved weights: for a trial, and on ranks other than 0.
    """

    report: Report
    task: Task | None


def run(
    recipe: Recipe,
    *,
    trial: bool = False,
    progress: Callable[[Mapping[str, Any]], None] | None = None,
    resume: bool | str | Path = False,
) -> Report:
    """Train, audit, evaluate, save and verify; return the report, which is also saved in the run folder.

    Args:
        recipe: The recipe of the run.
        trial: Evaluate only validation and save no weights.
        progress: Called on rank 0 with the values of each log.
        resume: The checkpoint to resume from, or True for the last checkpoint in the run folder.

    A failed run leaves a report with its status, and checkpoints. A finished run is never overwritten. Raises UserError
    for errors that the user can fix, and AuditError if the model is not trained or saved correctly.
    """
    resolved = resolve(recipe, trial=trial, resume=resume)
    clock = ClockCallback(progress)
    with FailureReporter(resolved.folder, resolved.report, clock) as reporter:
        with writer.stage_run_folder(resolved.folder) as temporary, raise_lost_rank_errors():
            saved = _train_and_save(resolved, clock, temporary)
            reporter.report = saved.report
            # The other ranks do not wait for the verification.
            wait_for_ranks()
            leave_process_group()
            if saved.task is not None:
                verification = verify(saved.report, resolved.recipe, saved.task, temporary)
                reporter.report = verification.report
                verification.check()
            if is_rank_zero():
                reporter.report.write(temporary)
                if trial:
                    checkpoint.remove_checkpoints(resolved.folder)
        if is_rank_zero():
            log_report(resolved.recipe, reporter.report, resolved.folder)
    return reporter.report


def resolve(recipe: Recipe, *, trial: bool, resume: bool | str | Path) -> ResolvedRun:
    """Resolve all automatic choices of the recipe; later steps do not change the recipe. Raises UserError."""
    check_name(recipe.name)
    if recipe.training.get("deepspeed") is None and is_deepspeed_launcher():
        recipe = replace(recipe, training={**recipe.training, "deepspeed": choose_default_config(recipe)})
    recipe = resolve_deepspeed(recipe)
    folder = writer.choose_run_folder(recipe)
    start = checkpoint.find_checkpoint(folder, resume)
    if start is not None:
        recipe = checkpoint.set_batch_sizes(recipe, checkpoint.read_manifest(start), count_ranks())
    report = Report(
        name=recipe.name, method=recipe.method.name, status="failed", recipe=recipe_to_dict(recipe),
        environment=read_environment(),
    )  # fmt: skip
    return ResolvedRun(recipe=recipe, folder=folder, checkpoint=start, report=report, is_trial=trial)


def _train_and_save(run: ResolvedRun, clock: ClockCallback, temporary: Path) -> SavedFiles:
    """Train the model and write the files of the run to `temporary`; free the model on return."""
    recipe = run.recipe
    data = prepare_data(recipe, run.folder, sees_folder=temporary.is_dir())
    loaded = load_model(recipe, data)
    fitted = fit(recipe, data, loaded, clock, run.checkpoint)
    # Save before evaluation, which may cast the model to 16 bits.
    outputs = {} if run.is_trial else save_weights(recipe.task, data, fitted, temporary)
    splits = ("validation",) if run.is_trial else ("validation", "test")
    evaluation = evaluate(recipe.task, data, fitted.trainer, splits)
    if evaluation is None:
        return SavedFiles(report=run.report, task=None)
    if not run.is_trial:
        save(recipe, data, loaded, evaluation, outputs, temporary)
    folder = None if run.is_trial else temporary
    report = build_report(run.report, recipe.task, data, loaded, fitted, evaluation, folder)
    return SavedFiles(report=report, task=None if run.is_trial else evaluation.task)
