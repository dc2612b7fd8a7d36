"""Finished runs of a comparison, loaded from disk by row."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from peftkit.comparison.comparison_file import COMPARISON_FILE, get_run_folder, read_comparison
from peftkit.comparison.estimates import read_estimates
from peftkit.errors import UserError
from peftkit.recipe.method import Method
from peftkit.recipe.parser import dict_to_recipe
from peftkit.recipe.schema import Recipe
from peftkit.runs.report import FILE_NAME, Report, read_report
from peftkit.runs.writer import PREDICTIONS
from peftkit.system.files import redact_home


@dataclass(frozen=True, kw_only=True)
class RowResults:
    """Runs of one row.

    Attributes:
        name: Name of the row in tables.
        values: Compared values by field.
        trials: Reports of the trials.
        runs: Reports of the runs, by run folder.
        expected: Number of runs in a finished comparison.
        expected_trials: Number of trials in a finished comparison.
        estimate: Estimated memory of a run; empty without an estimate.
    """

    name: str
    values: Mapping[str, str]
    trials: Sequence[Report]
    runs: Mapping[Path, Report]
    expected: int
    expected_trials: int = 0
    estimate: Mapping[str, Any] = field(default_factory=dict)

    @property
    def complete(self) -> dict[Path, Report]:
        """Runs with test metrics, by run folder."""
        return {folder: report for folder, report in self.runs.items() if report.status == "complete"}


@dataclass(frozen=True, kw_only=True)
class ComparisonResults:
    """Rows of a comparison, or of separate runs.

    Attributes:
        name: Name of the comparison, or of the run folders.
        rows: Rows in the order of the comparison.
        comparison: Content of `comparison.json`; empty for separate runs.
        folder: Folder of the comparison; None for separate runs.
    """

    name: str
    rows: Sequence[RowResults]
    comparison: Mapping[str, Any] = field(default_factory=dict)
    folder: Path | None = None


def load_results(folders: Sequence[Path]) -> ComparisonResults:
    """Load a comparison folder, or run folders; runs that differ only in the seed are one row.

    Raises UserError for another folder, and for a mix of a comparison with other folders.
    """
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder; pass the folder of a comparison, or run folders")
    comparisons = [folder for folder in folders if (folder / COMPARISON_FILE).exists()]
    if comparisons and len(folders) > 1:
        raise UserError(f"{comparisons[0]}: a comparison cannot be combined with other folders; pass it alone")
    return _load_comparison(comparisons[0]) if comparisons else _load_separate_runs(folders)


def _load_comparison(folder: Path) -> ComparisonResults:
    comparison, estimates = read_comparison(folder), read_estimates(folder)
    rows = []
    for row in comparison["rows"]:
        folders = {
            "trials": [get_run_folder(folder, row["folder"], trial=number) for number in range(1, row["trials"] + 1)],
            "runs": [get_run_folder(folder, row["folder"], seed=seed) for seed in comparison["seeds"]],
        }
        reports = {
            kind: {path: read_report(path) for path in paths if (path / FILE_NAME).exists()}
            for kind, paths in folders.items()
        }
        rows.append(
            RowResults(
                name=row["name"], values=row["values"], trials=list(reports["trials"].values()), runs=reports["runs"],
                expected=len(comparison["seeds"]), expected_trials=row["trials"],
                estimate=estimates.get(row["name"], {}),
            )
        )  # fmt: skip
    return ComparisonResults(name=comparison["name"], rows=rows, comparison=comparison, folder=folder)


def _load_separate_runs(folders: Sequence[Path]) -> ComparisonResults:
    if len({folder.resolve().parents[2] for folder in folders if _is_in_comparison(folder)}) > 1:
        raise UserError("report: the runs belong to different comparisons; pass runs of one comparison")
    groups: dict[str, dict[Path, Report]] = {}
    for folder in folders:
        report = read_report(folder)
        training = {
            name: value for name, value in report.recipe["training"].items() if name not in ("seed", "output_dir")
        }
        here = {name: report.environment.get(name) for name in ("packages", "gpus", "processes")}
        source = [report.data.get("fingerprint"), here]
        key = json.dumps([{**report.recipe, "name": None, "training": training}, source], sort_keys=True)
        runs = groups.setdefault(key, {})
        for other, known in runs.items():
            if known.seed == report.seed:
                raise UserError(f"{folder}: same recipe and seed as {other}; pass only one of them")
        runs[folder] = report
    methods = [next(iter(runs.values())).method for runs in groups.values()]
    rows: list[RowResults] = []
    for method, runs in zip(methods, groups.values(), strict=True):
        # Rows with the same method have the names of their folders.
        name = method if methods.count(method) == 1 else redact_home(next(iter(runs)))
        rows.append(RowResults(name=name, values={"method": method}, trials=[], runs=runs, expected=len(runs)))
    return ComparisonResults(name=", ".join(dict.fromkeys(folder.name for folder in folders)), rows=rows)


def _is_in_comparison(folder: Path) -> bool:
    parents = folder.resolve().parents
    return len(parents) > 2 and (parents[2] / COMPARISON_FILE).exists()


def read_predictions(folder: Path) -> tuple[list[int], list[Any], list[dict[str, Any]]]:
    """Read the test rows of a run: row numbers in the data, references and predictions.

    Raises UserError for a missing or invalid file.
    """
    numbers, references, predictions = [], [], []
    try:
        with (folder / PREDICTIONS).open(encoding="utf-8") as file:
            for line in file:
                row = json.loads(line)
                numbers.append(row.pop("row"))
                references.append(row.pop("reference"))
                predictions.append(row)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{folder / PREDICTIONS}: cannot be read ({type(error).__name__}); repeat the run") from error
    return numbers, references, predictions


def read_task(report: Report) -> Any:
    """Return the task of a run's recipe."""
    return _parse_recipe(json.dumps({"task": report.recipe["task"]})).task


def read_method(report: Report) -> Method:
    """Return the method of a run's recipe."""
    return _parse_recipe(json.dumps({"method": report.recipe["method"]})).method


@lru_cache
def _parse_recipe(plain: str) -> Recipe:
    # Cached, because many runs have the same task and method, and parsing is slow.
    return dict_to_recipe(json.loads(plain))
