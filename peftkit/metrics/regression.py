"""Metrics of one number per row: correlations and errors."""

import math
import warnings
from collections.abc import Sequence

import numpy as np

from peftkit.metrics.base import Metric, Predictions, Targets
from peftkit.metrics.bootstrap import Statistic
from peftkit.metrics.modules import compute_by_module

SCIPY = "Virtanen et al., SciPy 1.0, Nature Methods 17, 2020"


def _pearson(predicted: np.ndarray, reference: np.ndarray) -> float:
    from scipy.stats import pearsonr

    # The correlation of a constant is NaN, which a report contains as null.
    with warnings.catch_warnings(action="ignore"):
        return float(pearsonr(predicted, reference).statistic) if len(reference) > 1 else float("nan")


def _spearman(predicted: np.ndarray, reference: np.ndarray) -> float:
    from scipy.stats import spearmanr

    with warnings.catch_warnings(action="ignore"):
        return float(spearmanr(predicted, reference).statistic) if len(reference) > 1 else float("nan")


def _compute_scores(predictions: Sequence[float], references: Sequence[float]) -> dict[str, float]:
    """Compute `pearson`, `spearman` (SciPy), `rmse` and `mae` (scikit-learn) of one number per row."""
    from sklearn.metrics import mean_absolute_error, root_mean_squared_error

    predicted, reference = np.asarray(predictions), np.asarray(references)
    return {
        "pearson": _pearson(predicted, reference),
        "spearman": _spearman(predicted, reference),
        "rmse": float(root_mean_squared_error(reference, predicted)),
        "mae": float(mean_absolute_error(reference, predicted)),
    }


def score_numbers(predictions: Sequence[float], references: Sequence[float]) -> dict[str, float]:
    """Compute `pearson`, `spearman` (SciPy), `rmse` and `mae` (scikit-learn) of one number per row."""
    return compute_by_module(_compute_scores, predictions, references, kinds=("number", "number"), citation=SCIPY)


def make_number_statistics(predictions: Sequence[float], references: Sequence[float]) -> dict[str, Statistic]:
    """Return `pearson`, `spearman`, `rmse` and `mae` as functions of row numbers."""
    predicted, reference = np.asarray(predictions), np.asarray(references)
    return {
        "pearson": lambda rows: _pearson(predicted[rows], reference[rows]),
        "spearman": lambda rows: _spearman(predicted[rows], reference[rows]),
        "rmse": lambda rows: float(np.sqrt(np.mean((predicted[rows] - reference[rows]) ** 2))),
        "mae": lambda rows: float(np.mean(np.abs(predicted[rows] - reference[rows]))),
    }


def _score(predictions: Predictions, targets: Targets) -> dict[str, float]:
    return score_numbers([prediction["score"] for prediction in predictions], targets)


def _statistics(predictions: Predictions, targets: Targets) -> dict[str, Statistic]:
    return make_number_statistics([prediction["score"] for prediction in predictions], targets)


def _make_correlation(name: str, title: str, hub_name: str, description: str) -> Metric:
    return Metric(
        name=name, title=title, hub_name=hub_name, bounds=(-1.0, 1.0), function=_score, statistic=_statistics,
        description=description,
    )  # fmt: skip


def _make_error(name: str, title: str, description: str) -> Metric:
    return Metric(
        name=name, title=title, bounds=(0.0, math.inf), direction="lower", function=_score, statistic=_statistics,
        description=description,
    )  # fmt: skip


METRICS = (
    _make_correlation("pearson", "Pearson's r", "pearsonr", "Linear correlation (SciPy `pearsonr`)."),
    _make_correlation("spearman", "Spearman's rho", "spearmanr", "Correlation of the ranks (SciPy `spearmanr`)."),
    _make_error("rmse", "RMSE", "Root of the mean squared error (scikit-learn `root_mean_squared_error`)."),
    _make_error("mae", "MAE", "Mean absolute error (scikit-learn `mean_absolute_error`)."),
)
