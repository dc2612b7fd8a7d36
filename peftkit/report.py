"""What was measured in one run, as one JSON file. Standard library only."""

import dataclasses
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peftkit.errors import UserError
from peftkit.files import write_json

FILE_NAME = "report.json"


@dataclass(frozen=True, kw_only=True)
class Report:
    """One run.

    Attributes:
        name: the recipe's name.
        method: the method's name.
        status: `complete`, `out_of_memory` or `failed`.
        error: one line, when the run is not complete.
        recipe: the recipe as plain data; only differences from the defaults.
        environment: versions of packages and of Python, the hardware, the number of processes.
        data: fingerprint, rows per split, label names, and what was decided on the user's behalf.
        seed: the seed of data order, new weights and dropout.
        parameters: `trainable` and `total`, counted as weights also where they are stored in 4 bits.
        head: modules that hold what the checkpoint did not bring.
        memory: bytes; `process_peak` and, on a GPU, `allocated_peak` and `reserved_peak`: the maximum over ranks.
        times: seconds of `start_up`, `train` and `evaluate`; `samples_per_second`, `tokens_per_second` of training.
        sizes: bytes on disk of what was `trained` (the adapter with its head, or the whole model).
        metrics: per split, each metric with its value and, on test, its 95 % interval.
        audit: what the training audit found.
        history: what the Trainer logged, a row a logging step.
    """

    name: str
    method: str
    status: str
    error: str | None = None
    recipe: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    seed: int | None = None
    parameters: dict[str, int] = field(default_factory=dict)
    head: list[str] = field(default_factory=list)
    memory: dict[str, int] = field(default_factory=dict)
    times: dict[str, float] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)
    audit: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)

    def write(self, folder: Path) -> Path:
        """Write `report.json` into `folder` and return its path; what is not finite is written as null."""
        path = folder / FILE_NAME
        write_json(path, _finite(dataclasses.asdict(self)))
        return path


def _finite(value: Any) -> Any:
    # JSON has no NaN, and a step that a float16 scaler skipped has no finite gradient norm.
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_report(folder: Path) -> Report:
    """Read a run folder's report. Raises UserError when there is none or it is not one."""
    path = folder / FILE_NAME
    try:
        return Report(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise UserError(f"{folder}: no {FILE_NAME} here; give the folder of a finished run") from None
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: not a report of peftkit ({error})") from None
