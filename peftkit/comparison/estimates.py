"""The file `estimates.json`: estimated memory of one run per row, computed once after the runs."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peftkit.comparison.comparison_file import get_run_folder, read_comparison
from peftkit.errors import UserError
from peftkit.planning.run_estimate import estimate_run
from peftkit.runs.report import FILE_NAME, read_report
from peftkit.system.files import write_json

ESTIMATES_FILE = "estimates.json"


def write_estimates(folder: Path) -> None:
    """Estimate the memory of the first complete run of each row without an estimate."""
    comparison, estimates = read_comparison(folder), read_estimates(folder)
    for row in comparison["rows"]:
        for seed in comparison["seeds"] if row["name"] not in estimates else ():
            run = get_run_folder(folder, row["folder"], seed=seed)
            if (run / FILE_NAME).exists() and read_report(run).status == "complete":
                estimates[row["name"]] = estimate_run(run)
                break
    write_json(folder / ESTIMATES_FILE, estimates)


def read_estimates(folder: Path) -> dict[str, Mapping[str, Any]]:
    """Read the estimates by row name; empty without the file. Raises UserError for invalid JSON."""
    try:
        return json.loads((folder / ESTIMATES_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise UserError(f"{folder / ESTIMATES_FILE}: invalid JSON ({error}); remove the file") from None
