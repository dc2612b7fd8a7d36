"""A number a row: correlations and errors."""

import math
import warnings
from collections.abc import Sequence

import evaluate
import numpy as np
from datasets import Features, Value
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import mean_absolute_error, root_mean_squared_error

from peftkit.metrics.base import Metric, Predictions, Targets
from peftkit.metrics.bootstrap import Statistic


class RegressionScores(evaluate.Metric):
    """Pearson's and Spearman's correlation (SciPy), root mean squared and mean absolute error (scikit-learn)."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Pearson's and Spearman's correlation, root mean squared error, mean absolute error",
            citation="Virtanen et al., SciPy 1.0, Nature Methods 17, 2020",
            inputs_description="predictions and references: a number a row",
            features=Features({"predictions": Value("float64"), "references": Value("float64")}),
        )

    def _compute(self, predictions: Sequence[float], references: Sequence[float]) -> dict[str, float]:
        predicted, right = np.asarray(predictions), np.asarray(references)
        return {
            "pearson": _pearson(predicted, right),
            "spearman": _spearman(predicted, right),
            "rmse": float(root_mean_squared_error(right, predicted)),
            "mae": float(mean_absolute_error(right, predicted)),
        }


def _pearson(predicted: np.ndarray, right: np.ndarray) -> float:
    # A constant has no correlation: NaN, which a report holds as null.
    with warnings.catch_warnings(action="ignore"):
        return float(pearsonr(predicted, right).statistic) if len(right) > 1 else float("nan")


def _spearman(predicted: np.ndarray, right: np.ndarray) -> float:
    with warnings.catch_warnings(action="ignore"):
        return float(spearmanr(predicted, right).statistic) if len(right) > 1 else float("nan")


def regression_metrics(predictions: Sequence[float], references: Sequence[float]) -> dict[str, float]:
    """`pearson`, `spearman`, `rmse` and `mae` of numbers, one a row."""
    return RegressionScores().compute(predictions=predictions, references=references)


def regression_statistics(predictions: Sequence[float], references: Sequence[float]) -> dict[str, Statistic]:
    """Return `pearson`, `spearman`, `rmse` and `mae` as functions of row numbers."""
    predicted, right = np.asarray(predictions), np.asarray(references)
    return {
        "pearson": lambda rows: _pearson(predicted[rows], right[rows]),
        "spearman": lambda rows: _spearman(predicted[rows], right[rows]),
        "rmse": lambda rows: float(np.sqrt(np.mean((predicted[rows] - right[rows]) ** 2))),
        "mae": lambda rows: float(np.mean(np.abs(predicted[rows] - right[rows]))),
    }


def _score(predictions: Predictions, targets: Targets) -> dict[str, float]:
    return regression_metrics([prediction["score"] for prediction in predictions], targets)


def _statistics(predictions: Predictions, targets: Targets) -> dict[str, Statistic]:
    return regression_statistics([prediction["score"] for prediction in predictions], targets)


def _correlation(name: str, title: str, hub_name: str) -> Metric:
    return Metric(
        name=name, title=title, hub_name=hub_name, bounds=(-1.0, 1.0), function=_score, statistic=_statistics
    )  # fmt: skip


def _error(name: str, title: str) -> Metric:
    return Metric(
        name=name, title=title, bounds=(0.0, math.inf), direction="lower", function=_score, statistic=_statistics
    )  # fmt: skip


METRICS = (
    _correlation("pearson", "Pearson's r", "pearsonr"), _correlation("spearman", "Spearman's rho", "spearmanr"),
    _error("rmse", "RMSE"), _error("mae", "MAE"),
)  # fmt: skip
