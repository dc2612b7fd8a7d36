"""Report of a complete run, and the final log lines."""

import dataclasses
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.compute
from datasets import Dataset

from peftkit.models.adapters import is_mergeable
from peftkit.models.parameters import count_parameters
from peftkit.recipe.schema import Recipe
from peftkit.runs import writer
from peftkit.runs.report import Report
from peftkit.system.files import redact_home_in_text
from peftkit.system.logging import logger
from peftkit.tasks import Task
from peftkit.training.evaluation import Evaluation
from peftkit.training.fitting import FittedModel
from peftkit.training.preparation import LoadedModel, PreparedData

# Exports are written in float32 by default.
FLOAT32_BYTES = 4


def build_report(
    report: Report, task: Task, data: PreparedData, loaded: LoadedModel, fitted: FittedModel, evaluation: Evaluation,
    folder: Path | None,
) -> Report:  # fmt: skip
    """Complete `report` with the measurements of a run; `folder` has the weights, None for a trial."""
    trainer, clock, memory = fitted.trainer, fitted.clock, fitted.memory
    sizes = {} if folder is None else {"trained": writer.count_weight_bytes(folder)}
    if is_mergeable(loaded.model):
        sizes["merged"] = loaded.base_parameters * FLOAT32_BYTES
    checks = dataclasses.asdict(data.checks)
    checks["warnings"] = [redact_home_in_text(warning) for warning in checks["warnings"]]
    token_lengths = measure_longest_rows(task, data.encoded["train"])
    train_runtime, collate_seconds = fitted.train_metrics["train_runtime"], trainer.data_collator.seconds
    train_seconds = train_runtime - clock.evaluated
    return replace(
        report,
        status="trial" if folder is None else "complete",
        data={
            **data.splits.describe(),
            "checks": checks,
            "token_lengths": token_lengths,
        },
        seed=data.arguments.seed,
        batch={
            "per_device_train_batch_size": trainer._train_batch_size,
            "gradient_accumulation_steps": data.arguments.gradient_accumulation_steps,
        },
        parameters=count_parameters(loaded.model),
        head=sorted(loaded.base.head),
        memory={name: max(rank[name] for rank in memory) for name in memory[0]},
        memory_per_rank=memory,
        optimizer_bytes=fitted.optimizer_bytes,
        process_before=data.process_bytes,
        times={
            "start_up": fitted.start_up,
            "data": data.seconds + collate_seconds,
            "train": train_seconds - collate_seconds,
            "evaluate": clock.evaluated + evaluation.seconds,
            "total": fitted.start_up + data.seconds + train_runtime + evaluation.seconds,
            "samples_per_second": fitted.train_metrics["train_samples_per_second"] * train_runtime / train_seconds,
            "tokens_per_second": trainer.state.num_input_tokens_seen / train_seconds,
        },
        tokens=trainer.state.num_input_tokens_seen,
        sizes=sizes,
        metrics=dict(evaluation.metrics),
        audit=fitted.audit,
        resumed=list(trainer.resumed),
        history=[dict(row) for row in trainer.state.log_history],
    )


def measure_longest_rows(task: Task, encoded: Dataset) -> dict[str, int]:
    """Return the number of tokens of the longest encoded row, by the task field that limits the tokens."""
    table = encoded.with_format("arrow")
    columns = zip(task.columns.max_lengths, ("input_ids", "labels"), strict=False)
    return {
        field: pyarrow.compute.max(pyarrow.compute.list_value_length(table[column][:])).as_py()
        for field, column in columns
    }


def log_report(recipe: Recipe, report: Report, folder: Path) -> None:
    """Log the audit, the main metrics, the peak memory, the verification and the run folder."""
    split = "validation" if report.status == "trial" else "test"
    shown = ", ".join(f"{name} {report.metrics[split][name]:.4f}" for name in recipe.task.metrics.main)
    if "ece" in report.metrics[split]:
        shown += f", calibration error {report.metrics[split]['ece']:.4f}"
    logger.info("%s: audit %s; %s: %s", recipe.name, report.audit.get("verdict"), split, shown)
    kind = "allocated_peak" if "allocated_peak" in report.memory else "process_peak"
    scope = "on the GPU" if kind == "allocated_peak" else "of the process"
    logger.info("peak memory %s: %.2f GiB", scope, report.memory[kind] / 2**30)
    if report.round_trip:
        result: dict[str, Any] = report.round_trip
        logger.info(
            "verified in a new process: max logit difference %.2g on %d test rows (tolerance %.2g), "
            "%.4g %% of predictions equal",
            result["difference"], result["rows"], result["tolerance"], 100 * result["label_agreement"],
        )  # fmt: skip
    logger.info("saved run to %s", folder)
