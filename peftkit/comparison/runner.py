"""A comparison: each row tuned alike on validation, then run with several seeds and tested once, a process a run."""

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from tqdm.contrib.logging import logging_redirect_tqdm

from peftkit.checkpoints.manifest import find_last_complete
from peftkit.comparison.grid import Contender, Setting, contenders, settings, with_setting
from peftkit.comparison.progress import Progress
from peftkit.comparison.scheduler import Place, PlannedRun, places, run_all
from peftkit.data.splits import load_splits
from peftkit.distributed.deepspeed import read_deepspeed_config
from peftkit.errors import UserError
from peftkit.recipe.parser import recipe_to_dict
from peftkit.recipe.schema import Recipe, check_name
from peftkit.runs.report import FILE_NAME, read_report
from peftkit.system.environment import environment
from peftkit.system.files import write_json
from peftkit.system.logging import logger

PLAN = "comparison.json"
RUNS = "runs"
LOCK = ".lock"
# The Trainer's own default.
USUAL_SEED = 42
# Four looks at validation on the way: enough to see a curve.
CURVE = {"eval_strategy": "steps", "eval_steps": 0.25}


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How much is spent on each row, the same for all.

    Attributes:
        trials: Settings tried on validation; with one, the usual setting is taken untried.
        seeds: Runs with the best setting, each tested once.
        jobs: Runs at a time, each with devices of its own.
        processes: Ranks of each run.
    """

    trials: int = 3
    seeds: int = 3
    jobs: int = 1
    processes: int = 1

    def __post_init__(self) -> None:
        for name in ("trials", "seeds", "jobs", "processes"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name}: must be 1 or more")

    @property
    def quick(self) -> bool:
        """Whether it is one setting and one seed: a first look."""
        return self.trials == self.seeds == 1


def compare(
    recipe: Recipe,
    over: Mapping[str, Sequence[str]],
    *,
    budget: Budget | None = None,
    output: Path | None = None,
    learning_rates: Mapping[str, float] | None = None,
) -> Path:
    """Make every run of the comparison that is not there yet; returns its folder.

    Rows are the combinations of the values in `over`. The same comparison begun before is continued. A run that fails
    is a report that says why. Raises UserError for what can be put right before anything is trained.
    """
    check_name(recipe.name)
    budget = budget or Budget()
    output = None if output is None else output.expanduser()
    rows = contenders(recipe, over, learning_rates)
    free = places(budget.jobs, budget.processes)
    plan = _plan(recipe, rows, budget)
    folder = _folder(plan, output, recipe.name)
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        # Another may have begun here since it was looked at.
        if odd := _difference(folder, plan):
            raise UserError(f"{folder}: {odd}; name another folder with --output")
        if not (folder / PLAN).exists():
            write_json(folder / PLAN, plan)
        try:
            _make(folder, rows, budget, free)
        except KeyboardInterrupt:
            raise KeyboardInterrupt("interrupted; the same command continues where it was") from None
    return folder


def _plan(recipe: Recipe, rows: Sequence[Contender], budget: Budget) -> dict[str, Any]:
    """What makes this comparison this one: another recipe, other data, weights or packages make another."""
    here = environment()
    fingerprints: dict[str, str] = {}
    for row in rows:
        plain = recipe_to_dict(row.recipe)
        key = json.dumps([plain["data"], plain["task"]], sort_keys=True)
        if key not in fingerprints:
            splits = load_splits(row.recipe.data, row.recipe.task)
            fingerprints[key] = splits.fingerprint
            for decision in splits.decisions:
                logger.info("%s", decision)
    first = int(recipe.training.get("seed", USUAL_SEED))
    return {
        "name": recipe.name,
        "rows": [
            {
                "name": row.name,
                "folder": row.folder,
                "values": dict(row.values),
                "recipe": recipe_to_dict(row.recipe),
                "content": _content(row.recipe),
                "trials": len(_tried(row, budget)),
            }
            for row in rows
        ],
        "trials": budget.trials,
        "seeds": list(range(first, first + budget.seeds)),
        "quick": budget.quick,
        "jobs": budget.jobs,
        "processes": budget.processes,
        "data": sorted(fingerprints.values()),
        "python": here["python"],
        "packages": here["packages"],
        "hardware": {"cpu": here["cpu"], "cores": here["cores"], "gpus": here["gpus"]},
    }


def _content(recipe: Recipe) -> str:
    """A digest of what the recipe only names: the files of a local model, a DeepSpeed config."""
    digest = hashlib.sha256()
    model = Path(recipe.model.name_or_path).expanduser()
    for path in sorted(model.glob("*")) if model.is_dir() else ():
        found = path.stat()
        digest.update(f"{path.name} {found.st_size} {found.st_mtime_ns}\n".encode())
    if (deepspeed := recipe.training.get("deepspeed")) is not None:
        digest.update(json.dumps(read_deepspeed_config(deepspeed), sort_keys=True).encode())
    return digest.hexdigest()


def _tried(row: Contender, budget: Budget) -> list[Setting]:
    """The settings to try; none where there is but one."""
    found = settings(row, budget.trials)
    return found if len(found) > 1 else []


def run_place(folder: Path, row: str, *, trial: int | None = None, seed: int | None = None) -> Path:
    """Where a run of a comparison lies, given the name of its row's folder."""
    return folder / RUNS / row / (f"seed-{seed}" if trial is None else f"trial-{trial}")


def _folder(plan: Mapping[str, Any], output: Path | None, name: str) -> Path:
    """Where this comparison lies or may lie. Raises UserError when `output` holds something else."""
    if output is not None:
        if odd := _difference(output, plan):
            raise UserError(f"--output {output}: {odd}; name another folder or remove it")
        return output
    folder, number = Path("comparisons") / name, 1
    while _difference(folder, plan):
        number += 1
        folder = Path("comparisons") / f"{name}-{number}"
    return folder


def _difference(folder: Path, plan: Mapping[str, Any]) -> str | None:
    """Why this comparison can't go there; None when it can."""
    if not folder.exists():
        return None
    if not folder.is_dir():
        return "is a file"
    try:
        there = json.loads((folder / PLAN).read_text(encoding="utf-8"))
    except FileNotFoundError:
        # The lock, and what a kill left of a file that was being written.
        empty = all(path.name.startswith(".") for path in folder.iterdir())
        return None if empty else f"is not empty and holds no {PLAN}"
    except ValueError:
        return f"holds a {PLAN} that is not JSON"
    odd = [name for name in plan if there.get(name) != plan[name]]
    return f"holds another comparison (its {', '.join(odd)} differ)" if odd else None


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise UserError(f"{folder}: another comparison is at work here; wait for it or name another --output") from None
    try:
        yield
    finally:
        lock.release()


def _make(folder: Path, rows: Sequence[Contender], budget: Budget, free: Sequence[Place]) -> None:
    plan = read_plan(folder)
    tried = {row.name: _tried(row, budget) for row in rows}
    trials = [
        _planned(row, with_setting(row.recipe, setting), folder, trial=number, shown=f" ({setting})")
        for number in range(1, budget.trials + 1)
        for row in rows
        for setting in tried[row.name][number - 1 : number]
    ]
    count = len(trials) + len(rows) * budget.seeds
    logger.info("comparing %s: %d runs in %s", "; ".join(row.name for row in rows), count, folder)
    if budget.quick:
        logger.info("quick: one setting and one seed a row, for a first look")
    with Progress(count, budget.jobs) as progress, logging_redirect_tqdm([logger]):
        _run_missing(trials, free, budget.processes, progress)
        for trial in trials:
            for checkpoint in trial.folder.glob("checkpoint-*"):
                shutil.rmtree(checkpoint)
        finals = []
        for seed in plan["seeds"]:
            for row in rows:
                setting = best_setting(folder, row, tried[row.name], row.recipe.task.main_metrics[0])
                # None of its trials came to a score; nor would a run.
                if setting is None:
                    progress.skip()
                    continue
                final = with_setting(row.recipe, setting)
                curve = {} if "eval_strategy" in final.training else CURVE
                final = replace(final, training={**curve, **final.training, "seed": seed})
                finals.append(_planned(row, final, folder, seed=seed))
        _run_missing(finals, free, budget.processes, progress)


def _run_missing(planned: Sequence[PlannedRun], free: Sequence[Place], processes: int, progress: Progress) -> None:
    missing = []
    for one in planned:
        if (one.folder / FILE_NAME).exists():
            progress.made_before(one)
        else:
            # What a run left that was killed, unless it can go on.
            if find_last_complete(one.folder) is None:
                shutil.rmtree(one.folder, ignore_errors=True)
            missing.append(one)
    run_all(missing, free, processes, ended=progress.ended, watch=progress.watch)


def _planned(
    row: Contender, recipe: Recipe, folder: Path, *, trial: int | None = None, seed: int | None = None, shown: str = ""
) -> PlannedRun:
    what = f"seed {seed}" if trial is None else f"trial {trial}"
    place = run_place(folder, row.folder, trial=trial, seed=seed)
    # A tracker tells runs apart by their names.
    training = {name: value for name, value in recipe.training.items() if name != "run_name"}
    recipe = replace(recipe, name=f"{recipe.name} {row.name} {what}", training={**training, "output_dir": str(place)})
    return PlannedRun(title=f"{row.name}, {what}{shown}", recipe=recipe, folder=place, trial=trial is not None)


def best_setting(folder: Path, row: Contender, tried: Sequence[Setting], metric: str) -> Setting | None:
    """The setting whose trial scored best on validation, of equals the first; None when every trial failed.

    Without trials the row's own.
    """
    if not tried:
        return settings(row, 1)[0]
    scored = []
    for number, setting in enumerate(tried, start=1):
        report = read_report(run_place(folder, row.folder, trial=number))
        score = report.metrics.get("validation", {}).get(metric)
        if report.status == "trial":
            scored.append((float("-inf") if score is None else score, -number, setting))
    return max(scored, key=lambda one: one[:2])[2] if scored else None


def read_plan(folder: Path) -> dict[str, Any]:
    """The comparison's plan. Raises UserError when there is none."""
    try:
        return json.loads((folder / PLAN).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{folder}: no {PLAN} here; give the folder of a comparison") from None
    except ValueError as error:
        raise UserError(f"{folder / PLAN}: not a plan of peftkit ({error})") from None
