"""Report of one run: configuration, environment and measurements in one JSON file."""

import dataclasses
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peftkit.errors import UserError
from peftkit.system.files import write_json
from peftkit.system.logging import logger

FILE_NAME = "report.json"


@dataclass(frozen=True, kw_only=True)
class Report:
    """Report of one run.

    Attributes:
        name: name of the recipe.
        method: name of the method.
        status: `complete`, `trial` (evaluated on validation only, no weights saved), `diverged`, `out_of_memory`,
            `not_reproduced` (the saved model differs from the trained model) or `failed`.
        error: error in one line, for a run without metrics.
        recipe: the recipe as plain data; only differences from the defaults.
        environment: versions of packages and Python, hardware, number of processes and hosts.
        data: fingerprint, rows per split, label names, automatic decisions, and `token_lengths`: the longest encoded
            training row in tokens, by the task's length field.
        seed: seed of data order, new weights and dropout.
        parameters: `trainable` and `total`; a 4-bit weight counts as one.
        head: modules with parameters that the checkpoint lacks.
        memory: bytes; `process_peak` and, on a GPU, `allocated_peak` and `reserved_peak`: the maximum over ranks.
        memory_per_rank: the same values for each rank.
        process_before: resident bytes of the process of rank 0 before loading the model.
        batch: `per_device_train_batch_size` and `gradient_accumulation_steps` in training.
        optimizer_bytes: bytes of optimizer state on each rank.
        plan: memory estimate, in reports of version 0.1.0 only (see `peftkit.planning.run_estimate`).
        times: seconds: `start_up` (packages, model), `data` (reading, checks, tokenization, batches), `train` and
            `evaluate`, whose sum is `total`; also `samples_per_second` and `tokens_per_second` of training without
            evaluation.
        tokens: number of tokens in training, without padding.
        sizes: bytes of the `trained` weights (the adapter with its head, or the whole model) and of the `merged` model
            in float32, if the method can be merged.
        metrics: metrics by split, on test with 95 % intervals.
        audit: result of the training audit.
        round_trip: difference between the saved folder, loaded in a new process, and the model in memory at the end of
            training: fields of `peftkit.runs.verification.Difference`.
        resumed: checkpoints that the run was resumed from, in order: `from`, `step`, `processes`, `zero_stage`. In a
            resumed run, times, tokens and history are of the whole run; memory and other values are of the last
            process.
        history: log of the Trainer, one row per logging step, with `seconds` of training without evaluation.
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
    memory_per_rank: list[dict[str, int]] = field(default_factory=list)
    process_before: int = 0
    batch: dict[str, int] = field(default_factory=dict)
    optimizer_bytes: list[int] = field(default_factory=list)
    plan: dict[str, Any] = field(default_factory=dict)
    times: dict[str, float] = field(default_factory=dict)
    tokens: int = 0
    sizes: dict[str, int] = field(default_factory=dict)
    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)
    audit: dict[str, Any] = field(default_factory=dict)
    round_trip: dict[str, Any] = field(default_factory=dict)
    resumed: list[dict[str, Any]] = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list)

    def write(self, folder: Path) -> Path:
        """Write `report.json` to `folder` and return the path; numbers that are not finite become null."""
        path = folder / FILE_NAME
        write_json(path, replace_nonfinite(dataclasses.asdict(self)))
        return path


def replace_nonfinite(value: Any) -> Any:
    """Replace every number that is not finite by None, because JSON has no NaN.

    For example, the gradient norm is not finite at a step that a float16 scaler skips.
    """
    if isinstance(value, dict):
        return {name: replace_nonfinite(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [replace_nonfinite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_report(folder: Path) -> Report:
    """Read the report of a run folder; ignore unknown fields of other versions. Raises UserError."""
    path = folder / FILE_NAME
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        known = {each.name for each in dataclasses.fields(Report)}
        if unknown := values.keys() - known:
            logger.debug("%s: ignoring fields of another version: %s", path, ", ".join(sorted(unknown)))
        return Report(**{name: value for name, value in values.items() if name in known})
    except FileNotFoundError:
        raise UserError(f"{folder}: contains no {FILE_NAME}; pass the folder of a finished run") from None
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: invalid report ({error}); pass the folder of a run") from None


def is_finished(folder: Path) -> bool:
    """Return whether the folder contains a complete run."""
    return (folder / FILE_NAME).exists() and read_report(folder).status == "complete"
