"""Trainer callbacks: training audit and timing."""

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

from transformers import ProgressCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from peftkit.errors import DivergedError
from peftkit.system.logging import is_rank_zero
from peftkit.training.audit import TrainingAudit

# A loss of ten nats is worse than random prediction with 22,000 classes.
DIVERGENCE_FACTOR = 10.0
NOT_IN_LOG_LINE = ("epoch", "total_flos", "num_input_tokens_seen")


def _read_state(callback: TrainerCallback, state: TrainerState) -> dict[str, Any]:
    """Return the state of a callback in the checkpoint that the run resumed from; empty for a new run."""
    states: Any = state.stateful_callbacks
    if state.global_step == 0:
        # A new attempt after an out-of-memory error starts without state.
        return {}
    return states.get(type(callback).__name__, {}).get("attributes", {})


class AuditCallback(TrainerCallback, ExportableState):
    """Callback that starts the audit at the beginning of training and runs it after optimizer steps."""

    def __init__(self) -> None:
        self.audit: TrainingAudit | None = None
        self.finding: dict[str, Any] = {}

    def state(self) -> dict[str, Any]:
        """Return the state for a checkpoint: the step at which the audit passed."""
        passed = None if self.audit is None else self.audit.passed_at or self.audit.passed_before
        return {"args": {}, "attributes": {"passed_at": passed}}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the audit: compute fingerprints of all parameters."""
        if self.audit is not None:
            self.audit.detach()
        self.audit = TrainingAudit(kwargs["model"], state.global_step, _read_state(self, state).get("passed_at"))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Run the audit after an optimizer step."""
        assert self.audit is not None
        self.audit.step(state.global_step)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Run the final audit."""
        assert self.audit is not None
        best = state.best_global_step if args.load_best_model_at_end else None
        self.finding = self.audit.finish(state.global_step, restored=best is not None and best <= self.audit.start_step)


class ClockCallback(TrainerCallback, ExportableState):
    """Callback that adds training seconds to each log row, reports progress and stops a diverged run.

    Each log calls `progress` on rank 0 with `step`, `max_steps` and the last logged values. In a resumed run the
    seconds continue from the checkpoint.
    """

    def __init__(self, progress: Callable[[Mapping[str, Any]], None] | None = None) -> None:
        self.progress = progress
        self.started = 0.0
        self.evaluated = 0.0
        self.values: dict[str, Any] = {}
        self.history: list[dict[str, Any]] = []

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the clock."""
        before = _read_state(self, state)
        self.evaluated = before.get("evaluated", 0.0)
        self.started = time.perf_counter() - before.get("seconds", 0.0)

    def state(self) -> dict[str, Any]:
        """Return the state for a checkpoint: seconds of training, and seconds of its evaluations."""
        seconds = time.perf_counter() - self.started if self.started else 0.0
        return {"args": {}, "attributes": {"seconds": seconds, "evaluated": self.evaluated}}

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Add the seconds to the row of the history. Raises DivergedError for a loss that is not finite."""
        self.history = state.log_history
        row = self.history[-1]
        self.evaluated += row.get("eval_runtime", 0.0)
        row["seconds"] = round(time.perf_counter() - self.started - self.evaluated, 3)
        self.values |= {**row, "step": state.global_step, "max_steps": state.max_steps}
        if self.progress is not None and is_rank_zero():
            self.progress(self.values)
        if not math.isfinite(row.get("loss", 0.0)):
            raise DivergedError(
                f"the training loss is {row['loss']} at step {state.global_step}; use a lower learning rate"
            )

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Raise DivergedError if the final loss is more than ten times the initial loss, and above ten."""
        losses = [row["loss"] for row in state.log_history if "loss" in row]
        if not losses:
            return
        last = losses[-max(1, len(losses) // 4) :]
        end = sum(last) / len(last)
        if end > DIVERGENCE_FACTOR * max(losses[0], 1.0):
            raise DivergedError(
                f"the training loss increased from {losses[0]:.3g} to {end:.3g}; use a lower learning rate"
            )


class LogLineCallback(TrainerCallback):
    """Prints each log as one line, for output that is not a terminal."""

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Print the line."""
        if state.is_local_process_zero:
            print(format_log_line(kwargs["logs"], state), flush=True)


class LogLineProgressCallback(ProgressCallback):
    """The progress bar of the library, with each log as one line above it."""

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any
    ) -> None:
        """Write the line above the bar."""
        if state.is_world_process_zero and self.training_bar is not None:
            self.training_bar.write(format_log_line(logs, state))


def format_log_line(logs: Mapping[str, Any], state: TrainerState) -> str:
    """Format a log of the Trainer, such as `step 10/100 epoch 0.12 loss 0.532 lr 9.0e-04 grad_norm 1.2`."""
    parts = [f"step {state.global_step}/{state.max_steps}"]
    if state.epoch is not None:
        parts.append(f"epoch {state.epoch:.2f}")
    # The library adds the seconds so far to every log; they are of interest in the summary at the end.
    hidden = (*NOT_IN_LOG_LINE, "train_runtime") if "loss" in logs else NOT_IN_LOG_LINE
    for name, value in logs.items():
        if name == "learning_rate":
            parts.append(f"lr {value:.1e}")
        elif name not in hidden and not name.endswith("_per_second"):
            parts.append(f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}")
    return " ".join(parts)
