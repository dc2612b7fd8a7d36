"""What listens to the Trainer while it trains."""

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from peftkit.errors import DivergedError
from peftkit.system.logging import is_rank_zero
from peftkit.training.audit import TrainingAudit

# A loss of ten nats is worse than a guess among 22,000 classes.
RISEN = 10.0


def _kept(callback: TrainerCallback, state: TrainerState) -> dict[str, Any]:
    """What a callback had kept in the checkpoint that the run goes on from; in a new run, what it begins with."""
    kept: Any = state.stateful_callbacks
    if state.global_step == 0:
        # Another attempt, after memory had run out, begins as the first did.
        return {}
    return kept.get(type(callback).__name__, {}).get("attributes", {})


class AuditCallback(TrainerCallback, ExportableState):
    """Starts the audit once the model is in the hands of DeepSpeed, and asks it after optimizer steps."""

    def __init__(self) -> None:
        self.audit: TrainingAudit | None = None
        self.finding: dict[str, Any] = {}

    def state(self) -> dict[str, Any]:
        """For a checkpoint: at which step the audit passed."""
        passed = None if self.audit is None else self.audit.passed_at or self.audit.passed_before
        return {"args": {}, "attributes": {"passed_at": passed}}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Fingerprint every parameter, of a resumed run as the checkpoint has it."""
        if self.audit is not None:
            self.audit.detach()
        self.audit = TrainingAudit(kwargs["model"], state.global_step, _kept(self, state).get("passed_at"))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Check the first few steps."""
        assert self.audit is not None
        self.audit.step(state.global_step)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Check the whole run; of a resumed one what came after the checkpoint."""
        assert self.audit is not None
        best = state.best_global_step if args.load_best_model_at_end else None
        self.finding = self.audit.finish(state.global_step, put_back=best is not None and best <= self.audit.begun_at)


class ClockCallback(TrainerCallback, ExportableState):
    """Adds training seconds to each log row, reports progress and stops a diverged run.

    `progress` is told at each log, on rank 0, of `step`, `max_steps` and the last value of whatever was logged. In a
    resumed run the seconds continue from those of the checkpoint.
    """

    def __init__(self, progress: Callable[[Mapping[str, Any]], None] | None = None) -> None:
        self.progress = progress
        self.started = 0.0
        self.evaluated = 0.0
        self.told: dict[str, Any] = {}
        self.history: list[dict[str, Any]] = []

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the clock."""
        kept = _kept(self, state)
        self.evaluated = kept.get("evaluated", 0.0)
        self.started = time.perf_counter() - kept.get("seconds", 0.0)

    def state(self) -> dict[str, Any]:
        """Return the state of a checkpoint: seconds since training began and those of its evaluations."""
        seconds = time.perf_counter() - self.started if self.started else 0.0
        return {"args": {}, "attributes": {"seconds": seconds, "evaluated": self.evaluated}}

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Complete the row of the history. Raises DivergedError for a loss that is no number."""
        self.history = state.log_history
        row = self.history[-1]
        self.evaluated += row.get("eval_runtime", 0.0)
        row["seconds"] = round(time.perf_counter() - self.started - self.evaluated, 3)
        self.told |= {**row, "step": state.global_step, "max_steps": state.max_steps}
        if self.progress is not None and is_rank_zero():
            self.progress(self.told)
        if not math.isfinite(row.get("loss", 0.0)):
            raise DivergedError(f"the training loss is {row['loss']} at step {state.global_step}")

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Raises DivergedError when the loss ends ten times over where it began, and over ten."""
        losses = [row["loss"] for row in state.log_history if "loss" in row]
        if not losses:
            return
        last = losses[-max(1, len(losses) // 4) :]
        end = sum(last) / len(last)
        if end > RISEN * max(losses[0], 1.0):
            raise DivergedError(f"the training loss rose from {losses[0]:.3g} to {end:.3g}")
