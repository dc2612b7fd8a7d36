"""Runs read back from disk, by the row of a comparison that they belong to."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from peftkit.comparison.runner import PLAN, read_plan, run_place
from peftkit.errors import UserError
from peftkit.recipe.method import Method
from peftkit.recipe.parser import dict_to_recipe
from peftkit.recipe.schema import Recipe
from peftkit.runs.report import FILE_NAME, Report, read_report
from peftkit.runs.writer import PREDICTIONS
from peftkit.system.files import redact_home


@dataclass(frozen=True, kw_only=True)
class GatheredRow:
    """The runs of one row.

    Attributes:
        name: What tables call it.
        values: What tells it from the others, by field.
        trials: Reports of the settings tried on validation.
        runs: By seed's folder, its report.
        expected: How many runs there will be.
        expected_trials: The same of trials.
    """

    name: str
    values: Mapping[str, str]
    trials: Sequence[Report]
    runs: Mapping[Path, Report]
    expected: int
    expected_trials: int = 0

    @property
    def complete(self) -> dict[Path, Report]:
        """Those of its runs that came to a score."""
        return {folder: report for folder, report in self.runs.items() if report.status == "complete"}


@dataclass(frozen=True, kw_only=True)
class Gathered:
    """What a page is made of.

    Attributes:
        name: Of the comparison, or of the runs.
        rows: In the order of the comparison.
        plan: The comparison's; empty for runs that belong to none.
        folder: Of the comparison; None for runs that belong to none.
    """

    name: str
    rows: Sequence[GatheredRow]
    plan: Mapping[str, Any] = field(default_factory=dict)
    folder: Path | None = None


def gather(folders: Sequence[Path]) -> Gathered:
    """Read a comparison's folder, or run folders; runs that differ in their seed alone are one row.

    Raises UserError when a folder is neither, and when runs of a comparison would mix with others.
    """
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder; give that of a comparison, or of runs")
    comparisons = [folder for folder in folders if (folder / PLAN).exists()]
    if comparisons and len(folders) > 1:
        raise UserError(f"{comparisons[0]}: is a comparison; give it alone, its runs don't mix with others")
    return _comparison(comparisons[0]) if comparisons else _loose_runs(folders)


def _comparison(folder: Path) -> Gathered:
    plan = read_plan(folder)
    rows = []
    for row in plan["rows"]:
        wanted = {
            "trials": [run_place(folder, row["folder"], trial=number) for number in range(1, row["trials"] + 1)],
            "runs": [run_place(folder, row["folder"], seed=seed) for seed in plan["seeds"]],
        }
        found = {
            kind: {path: read_report(path) for path in paths if (path / FILE_NAME).exists()}
            for kind, paths in wanted.items()
        }
        rows.append(
            GatheredRow(
                name=row["name"], values=row["values"], trials=list(found["trials"].values()), runs=found["runs"],
                expected=len(plan["seeds"]), expected_trials=row["trials"],
            )
        )  # fmt: skip
    return Gathered(name=plan["name"], rows=rows, plan=plan, folder=folder)


def _loose_runs(folders: Sequence[Path]) -> Gathered:
    if len({folder.resolve().parents[2] for folder in folders if _is_of_a_comparison(folder)}) > 1:
        raise UserError("the runs are of different comparisons, which don't mix; give the folder of one")
    alike: dict[str, dict[Path, Report]] = {}
    for folder in folders:
        report = read_report(folder)
        training = {
            name: value for name, value in report.recipe["training"].items() if name not in ("seed", "output_dir")
        }
        here = {name: report.environment.get(name) for name in ("packages", "gpus", "processes")}
        made_on = [report.data.get("fingerprint"), here]
        key = json.dumps([{**report.recipe, "name": None, "training": training}, made_on], sort_keys=True)
        runs = alike.setdefault(key, {})
        for other, known in runs.items():
            if known.seed == report.seed:
                raise UserError(f"{folder}: is {other} once more, with the same seed; give one of them")
        runs[folder] = report
    methods = [next(iter(runs.values())).method for runs in alike.values()]
    rows: list[GatheredRow] = []
    for method, runs in zip(methods, alike.values(), strict=True):
        # Two rows of one method are told apart by where they lie.
        name = method if methods.count(method) == 1 else redact_home(next(iter(runs)))
        rows.append(GatheredRow(name=name, values={"method": method}, trials=[], runs=runs, expected=len(runs)))
    return Gathered(name=", ".join(dict.fromkeys(folder.name for folder in folders)), rows=rows)


def _is_of_a_comparison(folder: Path) -> bool:
    parents = folder.resolve().parents
    return len(parents) > 2 and (parents[2] / PLAN).exists()


def read_predictions(folder: Path) -> tuple[list[int], list[Any], list[dict[str, Any]]]:
    """The test rows of a run: their numbers in the data, the right answers and the answers given.

    Raises UserError when they are not there.
    """
    numbers, references, answers = [], [], []
    try:
        with (folder / PREDICTIONS).open(encoding="utf-8") as file:
            for line in file:
                row = json.loads(line)
                numbers.append(row.pop("row"))
                references.append(row.pop("reference"))
                answers.append(row)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{folder / PREDICTIONS}: can't be read ({type(error).__name__}); make the run anew") from error
    return numbers, references, answers


def task_of(report: Report) -> Any:
    """The task of a run's recipe."""
    return _read(json.dumps({"task": report.recipe["task"]})).task


def method_of(report: Report) -> Method:
    """The method of a run's recipe."""
    return _read(json.dumps({"method": report.recipe["method"]})).method


@lru_cache
def _read(plain: str) -> Recipe:
    # Many runs have one task and few methods, and reading a recipe takes a while.
    return dict_to_recipe(json.loads(plain))
