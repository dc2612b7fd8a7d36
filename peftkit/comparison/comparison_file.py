"""The file `comparison.json`, which identifies a comparison: rows, budget, data, packages, hardware."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from peftkit.comparison.grid import ComparisonRow
from peftkit.comparison.options import Budget
from peftkit.comparison.search import Setting, sample_settings
from peftkit.data.splits import load_splits
from peftkit.distributed.deepspeed import read_deepspeed_config
from peftkit.errors import UserError
from peftkit.recipe.schema import Recipe
from peftkit.recipe.serialization import recipe_to_dict
from peftkit.system.environment import read_environment
from peftkit.system.logging import logger

COMPARISON_FILE = "comparison.json"
RUNS_FOLDER = "runs"
# The Trainer's default.
DEFAULT_SEED = 42


def get_run_folder(folder: Path, row: str, *, trial: int | None = None, seed: int | None = None) -> Path:
    """Return the folder of a run in a comparison; `row` is the folder name of the row."""
    return folder / RUNS_FOLDER / row / (f"seed-{seed}" if trial is None else f"trial-{trial}")


def read_comparison(folder: Path) -> dict[str, Any]:
    """Read `comparison.json` of a comparison folder. Raises UserError if it is missing or invalid."""
    try:
        return json.loads((folder / COMPARISON_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{folder}: contains no {COMPARISON_FILE}; pass the folder of a comparison") from None
    except ValueError as error:
        raise UserError(
            f"{folder / COMPARISON_FILE}: invalid JSON ({error}); repeat the comparison in another folder"
        ) from None


def describe_comparison(recipe: Recipe, rows: Sequence[ComparisonRow], budget: Budget) -> dict[str, Any]:
    """Describe a comparison by the values that identify it, without the data fingerprints."""
    here = read_environment()
    first = int(recipe.training.get("seed", DEFAULT_SEED))
    return {
        "name": recipe.name,
        "rows": [
            {
                "name": row.name,
                "folder": row.folder,
                "values": dict(row.values),
                "recipe": recipe_to_dict(row.recipe),
                "content": _digest_files(row.recipe),
                "trials": len(list_trial_settings(row, budget)),
            }
            for row in rows
        ],
        "trials": budget.trials,
        "seeds": list(range(first, first + budget.seeds)),
        "quick": budget.is_quick,
        "jobs": budget.jobs,
        "processes": budget.processes,
        "python": here["python"],
        "packages": here["packages"],
        "hardware": {"cpu": here["cpu"], "cores": here["cores"], "gpus": here["gpus"]},
    }


def fingerprint_data(rows: Sequence[ComparisonRow]) -> list[str]:
    """Read the data of all rows, log automatic decisions and return the fingerprints."""
    fingerprints: dict[str, str] = {}
    for row in rows:
        plain = recipe_to_dict(row.recipe)
        key = json.dumps([plain["data"], plain["task"]], sort_keys=True)
        if key not in fingerprints:
            splits = load_splits(row.recipe.data, row.recipe.task)
            fingerprints[key] = splits.fingerprint
            for decision in splits.decisions:
                logger.info("%s", decision)
    return sorted(fingerprints.values())


def list_trial_settings(row: ComparisonRow, budget: Budget) -> list[Setting]:
    """List the settings to compare on validation; empty if there is only one setting."""
    settings = sample_settings(row.recipe, row.values, budget.trials)
    return settings if len(settings) > 1 else []


def choose_folder(comparison: Mapping[str, Any], output: Path | None) -> Path:
    """Return `output`, or the first free folder. Raises UserError if `output` has other content."""
    if output is not None:
        if difference := find_difference(output, comparison):
            raise UserError(f"--output {output}: {difference}; use another --output")
        return output
    folder, number = Path("comparisons") / comparison["name"], 1
    while find_difference(folder, comparison):
        number += 1
        folder = Path("comparisons") / f"{comparison['name']}-{number}"
    return folder


def find_difference(folder: Path, comparison: Mapping[str, Any]) -> str | None:
    """Describe why the comparison cannot use the folder; None if it can."""
    if not folder.exists():
        return None
    if not folder.is_dir():
        return "is a file"
    try:
        other = json.loads((folder / COMPARISON_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        # Hidden files are the lock and temporary files of a killed process.
        is_empty = all(path.name.startswith(".") for path in folder.iterdir())
        return None if is_empty else f"contains other files and no {COMPARISON_FILE}"
    except ValueError:
        return f"contains an invalid {COMPARISON_FILE}"
    differing = [name for name in comparison if other.get(name) != comparison[name]]
    return f"contains another comparison (different {', '.join(differing)})" if differing else None


def _digest_files(recipe: Recipe) -> str:
    """Compute a digest of files that the recipe references: a local model and a DeepSpeed config."""
    digest = hashlib.sha256()
    model = Path(recipe.model.name_or_path).expanduser()
    for path in sorted(model.glob("*")) if model.is_dir() else ():
        stat = path.stat()
        digest.update(f"{path.name} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    if (deepspeed := recipe.training.get("deepspeed")) is not None:
        digest.update(json.dumps(read_deepspeed_config(deepspeed), sort_keys=True).encode())
    return digest.hexdigest()
