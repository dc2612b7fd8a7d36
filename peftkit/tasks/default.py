"""Default task implementation and functions that most tasks share."""

import difflib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import torch
from datasets import Dataset

from peftkit.errors import UserError
from peftkit.metrics.base import Metric, MetricSet, find_registered_metrics
from peftkit.tasks.base import EncodedSplit, TrainerSpec

# Label of a token that loss and metrics ignore.
IGNORED = -100
Self = TypeVar("Self", bound="DefaultTask")


@dataclass(frozen=True, kw_only=True)
class DefaultTask:
    """Defaults of a task: the Trainer of Transformers, the loss of the model, no calibration.

    Args:
        main_metric: Name of the metric for tuning, comparison and recommendation, such as `rmse`. The default is the
            first metric of the task. The metric defines whether higher or lower is better.
    """

    main_metric: str | None = None

    trainer: ClassVar[TrainerSpec] = TrainerSpec()

    def __post_init__(self) -> None:
        # Raises UserError for an unknown main metric.
        _ = self.metrics

    @property
    def metrics(self) -> MetricSet:
        """The metrics of the task; see `build_metrics`."""
        raise NotImplementedError

    def build_metrics(self, metrics: tuple[Metric, ...], main: tuple[str, ...], **parts: Any) -> MetricSet:
        """Return the metric set with registered metrics added and `main_metric` first. Raises UserError."""
        every = (*metrics, *find_registered_metrics(type(self)))
        if self.main_metric is not None:
            names = [metric.name for metric in every]
            if self.main_metric not in names:
                nearest = difflib.get_close_matches(self.main_metric, names, n=1)
                hint = (
                    f"use '{nearest[0]}'"
                    if nearest
                    else f"use one of {', '.join(names)}, or pass the --plugin that registers it"
                )
                raise UserError(f"task.main_metric: unknown metric '{self.main_metric}'; {hint}")
            main = (self.main_metric, *(name for name in main if name != self.main_metric))
        return MetricSet(metrics=every, main=main, **parts)

    def loss(self, train: Dataset, labels: Sequence[str], label_smoothing: float) -> Callable[..., Any] | None:
        """Return None: the model computes the loss."""
        return None

    def calibrate(self: Self, split: EncodedSplit) -> Self:
        """Return the task unchanged."""
        return self


def find_text_problems(dataset: Dataset, column: str, where: str, first: int = 0) -> Iterator[str]:
    """Yield one line per missing, empty or non-string cell of a column; row numbers start at `first`."""
    for row, text in enumerate(dataset[column], first):
        if not isinstance(text, str) or not text.strip():
            found = "empty" if isinstance(text, str) else f"{name_type(text)}, not text"
            yield f"{locate_cell(where, row, column)}: {found}; correct it or remove the row"


def name_type(value: Any) -> str:
    """Return the type name of an unexpected value, `null` for None."""
    return "null" if value is None else type(value).__name__


def locate_cell(where: str, row: int, column: str) -> str:
    """Return the location of a cell for an error message."""
    return f"{where}, row {row} (from 0), column '{column}'"


def reduce_losses(losses: torch.Tensor, num_items_in_batch: Any) -> torch.Tensor:
    """Return the mean of the losses, or their sum divided by the number of items of the optimizer step."""
    return losses.mean() if num_items_in_batch is None else losses.sum() / num_items_in_batch


def get_first_output(output: Any) -> Any:
    """Return the logits: the output itself, or the first of several outputs."""
    return output[0] if isinstance(output, tuple | list) else output
