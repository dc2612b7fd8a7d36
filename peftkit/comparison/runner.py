"""Run a comparison: tune every row on validation, then run it with several seeds; one process per run."""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from filelock import FileLock, Timeout
from tqdm.contrib.logging import logging_redirect_tqdm

from peftkit.checkpoints.manifest import find_last_complete
from peftkit.comparison.comparison_file import (
    COMPARISON_FILE,
    choose_folder,
    describe_comparison,
    find_difference,
    fingerprint_data,
    get_run_folder,
    list_trial_settings,
    read_comparison,
)
from peftkit.comparison.estimates import write_estimates
from peftkit.comparison.grid import ComparisonRow, make_rows
from peftkit.comparison.options import Budget
from peftkit.comparison.progress import Progress
from peftkit.comparison.scheduler import DeviceSlot, RunSpec, allocate_slots, run_all
from peftkit.comparison.search import Setting, apply_setting, sample_settings
from peftkit.errors import UserError
from peftkit.metrics.base import Metric
from peftkit.recipe.schema import Recipe, check_name
from peftkit.runs.report import FILE_NAME, read_report
from peftkit.system.files import write_json
from peftkit.system.logging import logger

LOCK_FILE = ".lock"
# Four evaluations during training, for a learning curve.
CURVE_ARGUMENTS = {"eval_strategy": "steps", "eval_steps": 0.25}


def compare(
    recipe: Recipe,
    over: Mapping[str, Sequence[str]],
    *,
    budget: Budget | None = None,
    output: Path | None = None,
    learning_rates: Mapping[str, float] | None = None,
) -> Path:
    """Compare the values in `over`: run the missing runs and return the comparison folder.

    Rows are the combinations of the values. An interrupted comparison continues. A failed run has a report with the
    error. Raises UserError for problems that are detected before training.
    """
    check_name(recipe.name)
    budget = budget or Budget()
    output = None if output is None else output.expanduser()
    rows = make_rows(recipe, over, learning_rates)
    slots = allocate_slots(budget.jobs, budget.processes)
    comparison = describe_comparison(recipe, rows, budget)
    # Check the folder before reading the data, which may take minutes.
    choose_folder(comparison, output)
    comparison["data"] = fingerprint_data(rows)
    folder = choose_folder(comparison, output)
    folder.mkdir(parents=True, exist_ok=True)
    with _lock_folder(folder):
        # Check again: another process may have started a comparison in this folder.
        if difference := find_difference(folder, comparison):
            raise UserError(f"{folder}: {difference}; use another --output")
        if not (folder / COMPARISON_FILE).exists():
            write_json(folder / COMPARISON_FILE, comparison)
        try:
            _run_rows(folder, rows, budget, slots)
            write_estimates(folder)
        except KeyboardInterrupt:
            raise KeyboardInterrupt("interrupted; repeat the command to continue") from None
    return folder


@contextmanager
def _lock_folder(folder: Path) -> Iterator[None]:
    lock = FileLock(folder / LOCK_FILE, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise UserError(
            f"{folder}: another process is running a comparison in this folder; wait or use another --output"
        ) from None
    try:
        yield
    finally:
        lock.release()


def _run_rows(folder: Path, rows: Sequence[ComparisonRow], budget: Budget, slots: Sequence[DeviceSlot]) -> None:
    """Run the trials of all rows, then the best setting of each row with every seed."""
    seeds = read_comparison(folder)["seeds"]
    settings = {row.name: list_trial_settings(row, budget) for row in rows}
    trials = [
        _make_run(row, apply_setting(row.recipe, setting), folder, trial=number, suffix=f" ({setting})")
        for number in range(1, budget.trials + 1)
        for row in rows
        for setting in settings[row.name][number - 1 : number]
    ]
    count = len(trials) + len(rows) * budget.seeds
    logger.info("comparing %s: %d runs in %s", "; ".join(row.name for row in rows), count, folder)
    if budget.is_quick:
        logger.info("quick: one setting and one seed per row")
    with Progress(count, budget.jobs) as progress, logging_redirect_tqdm([logger]):
        _run_missing(trials, slots, budget.processes, progress)
        for trial in trials:
            for checkpoint in trial.folder.glob("checkpoint-*"):
                shutil.rmtree(checkpoint)
        finals = []
        for seed in seeds:
            for row in rows:
                setting = find_best_setting(folder, row, settings[row.name], row.recipe.task.metrics.main_metrics[0])
                # All trials of the row failed, so its runs are skipped.
                if setting is None:
                    progress.skip()
                    continue
                final = apply_setting(row.recipe, setting)
                curve = {} if "eval_strategy" in final.training else CURVE_ARGUMENTS
                final = replace(final, training={**curve, **final.training, "seed": seed})
                finals.append(_make_run(row, final, folder, seed=seed))
        _run_missing(finals, slots, budget.processes, progress)


def _run_missing(runs: Sequence[RunSpec], slots: Sequence[DeviceSlot], processes: int, progress: Progress) -> None:
    missing = []
    for run in runs:
        if (run.folder / FILE_NAME).exists():
            progress.skip_finished(run)
        else:
            # Remove the folder of a killed run without a checkpoint to resume from.
            if find_last_complete(run.folder) is None:
                shutil.rmtree(run.folder, ignore_errors=True)
            missing.append(run)
    run_all(missing, slots, processes, on_end=progress.log_result, on_poll=progress.show_active)


def _make_run(
    row: ComparisonRow, recipe: Recipe, folder: Path, *, trial: int | None = None, seed: int | None = None,
    suffix: str = "",
) -> RunSpec:  # fmt: skip
    kind = f"seed {seed}" if trial is None else f"trial {trial}"
    run_folder = get_run_folder(folder, row.folder, trial=trial, seed=seed)
    # Trackers identify runs by name.
    training = {name: value for name, value in recipe.training.items() if name != "run_name"}
    training["output_dir"] = str(run_folder)
    recipe = replace(recipe, name=f"{recipe.name} {row.name} {kind}", training=training)
    return RunSpec(title=f"{row.name}, {kind}{suffix}", recipe=recipe, folder=run_folder, is_trial=trial is not None)


def find_best_setting(folder: Path, row: ComparisonRow, settings: Sequence[Setting], metric: Metric) -> Setting | None:
    """Find the first setting with the best validation score; None if all trials failed.

    Without trials the result is the default setting of the row.
    """
    if not settings:
        return sample_settings(row.recipe, row.values, 1)[0]
    scores = []
    for number, setting in enumerate(settings, start=1):
        report = read_report(get_run_folder(folder, row.folder, trial=number))
        score = report.metrics.get("validation", {}).get(metric.name)
        if report.status == "trial":
            scores.append((float("-inf") if score is None else metric.rank(score), -number, setting))
    return max(scores, key=lambda score: score[:2])[2] if scores else None
