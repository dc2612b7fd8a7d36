"""Metrics as `evaluate` modules that need no network, and their confidence intervals."""

from collections.abc import Sequence

import datasets
import evaluate
import numpy as np
from scipy.stats import bootstrap
from sklearn.metrics import accuracy_score, f1_score

_CITATION = "Pedregosa et al., Scikit-learn: Machine Learning in Python, JMLR 12, 2011"


def _labels_info(description: str) -> evaluate.MetricInfo:
    return evaluate.MetricInfo(
        description=description,
        citation=_CITATION,
        inputs_description="predictions and references: label ids",
        features=datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}),
    )


class Accuracy(evaluate.Metric):
    """Share of rows whose predicted label is the right one (scikit-learn's `accuracy_score`)."""

    def _info(self) -> evaluate.MetricInfo:
        return _labels_info("Share of rows whose predicted label is the right one")

    def _compute(self, predictions: Sequence[int], references: Sequence[int]) -> dict[str, float]:
        return {"accuracy": float(accuracy_score(references, predictions))}


class MacroF1(evaluate.Metric):
    """Unweighted mean over labels of the F1 score (scikit-learn's `f1_score`, `average="macro"`)."""

    def _info(self) -> evaluate.MetricInfo:
        return _labels_info("Unweighted mean over labels of the F1 score")

    def _compute(self, predictions: Sequence[int], references: Sequence[int]) -> dict[str, float]:
        return {"f1_macro": float(f1_score(references, predictions, average="macro", zero_division=0.0))}


def classification_metrics(predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
    """Accuracy and macro F1 of label ids, each of shape (rows,)."""
    metrics = evaluate.combine([Accuracy(), MacroF1()])
    return metrics.compute(predictions=predictions, references=references)


def classification_intervals(
    predictions: np.ndarray, references: np.ndarray, *, seed: int = 0, n_resamples: int = 1000
) -> dict[str, list[float]]:
    """95 % intervals of accuracy and macro F1 over test rows, as `{metric}_ci95: [low, high]`.

    Percentile bootstrap over rows (Efron and Tibshirani 1993, chapter 13), by `scipy.stats.bootstrap`, seeded. It
    tells what another test set of this size might give; it knows nothing of another training seed.
    """

    def macro_f1(predicted: np.ndarray, right: np.ndarray) -> float:
        return float(f1_score(right, predicted, average="macro", zero_division=0.0))

    def accuracy(predicted: np.ndarray, right: np.ndarray) -> float:
        return float(np.mean(predicted == right))

    intervals: dict[str, list[float]] = {}
    for name, statistic in (("accuracy", accuracy), ("f1_macro", macro_f1)):
        found = bootstrap(
            (predictions, references), statistic, paired=True, vectorized=False, n_resamples=n_resamples,
            method="percentile", rng=seed,
        ).confidence_interval  # fmt: skip
        intervals[f"{name}_ci95"] = [float(found.low), float(found.high)]
    return intervals
