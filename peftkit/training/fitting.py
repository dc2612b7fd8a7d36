"""Training step: build the Trainer, resume from a checkpoint, train, measure memory and time."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import EvalPrediction

from peftkit.checkpoints import manifest as checkpoint
from peftkit.distributed.process_group import gather_from_ranks, gather_peak_memory
from peftkit.recipe.schema import Recipe
from peftkit.system.environment import count_optimizer_bytes, measure_process_age
from peftkit.system.files import redact_home
from peftkit.system.logging import logger
from peftkit.training.callbacks import AuditCallback, ClockCallback
from peftkit.training.evaluation import Scoring
from peftkit.training.preparation import LoadedModel, PreparedData
from peftkit.training.trainer import build_trainer


@dataclass(frozen=True, kw_only=True)
class FittedModel:
    """A trained model in memory, with measurements of the training.

    Attributes:
        trainer: The Trainer with the model.
        train_metrics: Metrics from `Trainer.train`.
        start_up: Seconds of the process before training, except the time to read the data.
        memory: Peak memory of each rank in bytes, up to the end of training.
        optimizer_bytes: Bytes of the optimizer state of each rank.
        audit: Result of the training audit.
        clock: Seconds of training and of evaluations during training.
    """

    trainer: Any
    train_metrics: Mapping[str, float]
    start_up: float
    memory: list[dict[str, int]]
    optimizer_bytes: list[int]
    audit: dict[str, Any]
    clock: ClockCallback


def fit(
    recipe: Recipe, data: PreparedData, loaded: LoadedModel, clock: ClockCallback, start: Path | None
) -> FittedModel:
    """Train the model, from the checkpoint `start` if given. Raises AuditError and DivergedError."""
    scoring = Scoring(task=recipe.task, splits=data.splits, encoded=data.encoded, tokenizer=data.tokenizer)

    def compute_metrics(prediction: EvalPrediction) -> dict[str, Any]:
        calibrated = scoring.calibrate(prediction.predictions)
        return calibrated.score("validation", calibrated.predict("validation", prediction.predictions))

    audit = AuditCallback()
    manifest = None if start is None else checkpoint.read_manifest(start)
    trainer = build_trainer(
        recipe, loaded.model, data.arguments, data.tokenizer, data.encoded, data.splits.labels, compute_metrics,
        [audit, clock], resumed_step=None if manifest is None else manifest.step,
    )  # fmt: skip
    if manifest is not None or data.arguments.save_strategy != "no":
        trainer.identity = checkpoint.identify_run(recipe, data.splits.fingerprint, data.arguments)
    if start is not None and manifest is not None:
        checkpoint.check_identity(start.name, manifest.recipe, trainer.identity)
        trainer.resumed = [*manifest.resumed, manifest.describe(start.name)]
        logger.info("resuming from %s (saved by %d processes)", redact_home(start), manifest.processes)
    start_up = measure_process_age() - data.seconds
    metrics = trainer.train(resume_from_checkpoint=None if start is None else str(start)).metrics
    return FittedModel(
        trainer=trainer, train_metrics=metrics, start_up=start_up, memory=gather_peak_memory(),
        optimizer_bytes=gather_from_ranks(count_optimizer_bytes(trainer.optimizer)), audit=audit.finding, clock=clock,
    )  # fmt: skip
