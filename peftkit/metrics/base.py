"""Metric records and the metrics of a task.

A prediction is a mapping from `Task.decode`, such as `{"label": "sports"}`. Targets come from `Task.targets`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from peftkit.errors import UserError
from peftkit.metrics.bootstrap import Statistic, compute_intervals

Predictions = Sequence[Mapping[str, Any]]
Targets = Sequence[Any]


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One metric: computation, name, bounds and direction.

    Attributes:
        name: Key of the metric in reports.
        function: Returns the score of predictions and targets, or several scores by name. Metrics with the same
            function share one call.
        title: Name of the metric in tables; `name` by default.
        bounds: The minimum and the maximum value.
        direction: Whether a higher or a lower value is better.
        hub_name: Id of the metric on the Hugging Face Hub; `name` by default.
        statistic: Returns the score as a function of row numbers, or several by name, for the bootstrap. By default
            `function` is called on the resampled rows.
        interval: Returns the 95 % interval if the bootstrap over rows does not apply.
        description: Definition of the metric and the library that computes it.
    """

    name: str
    function: Callable[[Predictions, Targets], float | Mapping[str, float]]
    title: str = ""
    bounds: tuple[float, float] = (0.0, 1.0)
    direction: Literal["higher", "lower"] = "higher"
    hub_name: str = ""
    statistic: Callable[[Predictions, Targets], Statistic | Mapping[str, Statistic]] | None = None
    interval: Callable[[Predictions, Targets], list[float]] | None = None
    description: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "title", self.title or self.name)
        object.__setattr__(self, "hub_name", self.hub_name or self.name)

    def rank(self, value: float) -> float:
        """Return a number that is greater for a better value."""
        return value if self.direction == "higher" else -value

    @property
    def has_points(self) -> bool:
        """Whether differences are written in points (hundredths), for a metric whose maximum is 1."""
        return self.bounds[1] == 1.0

    def format_difference(self, value: float) -> str:
        """Format a difference in points if the metric's maximum is 1, else unchanged."""
        return f"{100 * value:.1f}" if self.has_points else f"{value:.3g}"


def _call_each(functions: Iterable[Any], *arguments: Any) -> dict[Any, Any]:
    return {function: function(*arguments) for function in dict.fromkeys(functions)}


def _resample(metric: Metric, predictions: Predictions, targets: Targets) -> Statistic:
    def statistic(rows: Any) -> float:
        score = metric.function([predictions[row] for row in rows], [targets[row] for row in rows])
        return score[metric.name] if isinstance(score, Mapping) else score

    return statistic


def no_class_scores(predictions: Predictions, targets: Targets) -> Mapping[str, Mapping[str, float]]:
    """Return no scores: the task has no classes."""
    return {}


def no_confusion(predictions: Predictions, targets: Targets) -> Mapping[tuple[str, str], int]:
    """Return no counts: the task does not have one class per row."""
    return {}


def no_class_counts(targets: Targets) -> Mapping[str, int]:
    """Return no counts: the task has no classes."""
    return {}


@dataclass(frozen=True, kw_only=True)
class MetricSet:
    """The metrics of a task.

    Attributes:
        metrics: All metrics of a report.
        main: Names of the metrics in tables. Tuning, comparison and recommendation use the first one.
        is_correct: Returns whether a prediction equals its target.
        per_class: Returns `precision`, `recall`, `f1` and `rows` of each class.
        confusion: Returns counts by target class and predicted class.
        class_counts: Returns the number of targets of each class.
        class_names: Returns the classes that a list of labels defines.
    """

    metrics: tuple[Metric, ...]
    main: tuple[str, ...]
    is_correct: Callable[[Mapping[str, Any], Any], bool]
    per_class: Callable[[Predictions, Targets], Mapping[str, Mapping[str, float]]] = no_class_scores
    confusion: Callable[[Predictions, Targets], Mapping[tuple[str, str], int]] = no_confusion
    class_counts: Callable[[Targets], Mapping[str, int]] = no_class_counts
    class_names: Callable[[Sequence[str]], tuple[str, ...]] = tuple

    @property
    def main_metrics(self) -> tuple[Metric, ...]:
        """The metrics in tables, the most important one first."""
        by_name = {metric.name: metric for metric in self.metrics}
        return tuple(by_name[name] for name in self.main)

    def compute(self, predictions: Predictions, targets: Targets) -> dict[str, float]:
        """Compute all metrics of one split."""
        found = _call_each((metric.function for metric in self.metrics), predictions, targets)
        scores: dict[str, float] = {}
        for metric in self.metrics:
            score = found[metric.function]
            scores |= score if isinstance(score, Mapping) else {metric.name: score}
        return scores

    def statistics(self, predictions: Predictions, targets: Targets) -> dict[str, Statistic]:
        """Return main metrics as functions of row numbers: the first one, and those that define a statistic."""
        resampled = [metric for metric in self.main_metrics if metric.statistic is not None]
        found = _call_each((metric.statistic for metric in resampled), predictions, targets)
        statistics: dict[str, Statistic] = {}
        for index, metric in enumerate(self.main_metrics):
            if metric.statistic is not None:
                value = found[metric.statistic]
                statistics[metric.name] = value[metric.name] if isinstance(value, Mapping) else value
            elif index == 0:
                statistics[metric.name] = _resample(metric, predictions, targets)
        return statistics

    def intervals(self, predictions: Predictions, targets: Targets) -> dict[str, list[float]]:
        """Compute 95 % intervals of the main metrics, as `{name}_ci95`."""
        found = {f"{m.name}_ci95": m.interval(predictions, targets) for m in self.main_metrics if m.interval}
        statistics = self.statistics(predictions, targets)
        drawn = {name: statistic for name, statistic in statistics.items() if f"{name}_ci95" not in found}
        return compute_intervals(drawn, len(targets)) | found


_REGISTERED: dict[type, dict[str, Metric]] = {}


def register_metric(metric: Metric, *, task: type) -> None:
    """Add a metric to the reports of a task and its subclasses; `main_metric` may name the metric.

    Registering a name again replaces the metric. Raises UserError for the name of one of the task's built-in metrics.
    """
    registered = _REGISTERED.setdefault(task, {})
    names = {known.name for known in task().metrics.metrics} - set(registered)
    if metric.name in names:
        raise UserError(f"register_metric: {task.__name__} has a built-in metric '{metric.name}'; use another name")
    registered[metric.name] = metric


def find_registered_metrics(task: type) -> tuple[Metric, ...]:
    """Return the metrics registered for a task class or one of its base classes."""
    return tuple(metric for kind in task.__mro__ for metric in _REGISTERED.get(kind, {}).values())
