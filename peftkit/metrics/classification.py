"""Metrics of one label per row: accuracy, macro F1, calibration error; scores of each class."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from peftkit.metrics.base import Metric, Predictions, Targets
from peftkit.metrics.bootstrap import Statistic
from peftkit.metrics.calibration import compute_calibration_error
from peftkit.metrics.modules import compute_by_module

SCIKIT_LEARN = "Pedregosa et al., Scikit-learn: Machine Learning in Python, JMLR 12, 2011"


def _compute_scores(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Compute `accuracy` and `f1_macro`, the mean over labels (scikit-learn), of one label per row."""
    from sklearn.metrics import accuracy_score, f1_score

    return {
        "accuracy": float(accuracy_score(references, predictions)),
        "f1_macro": float(f1_score(references, predictions, average="macro", zero_division=0.0)),
    }


def score_labels(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Compute `accuracy` and `f1_macro`, the mean over labels (scikit-learn), of one label per row."""
    return compute_by_module(
        _compute_scores, predictions, references, kinds=("string", "string"), citation=SCIKIT_LEARN
    )


def make_label_statistics(predictions: Sequence[str], references: Sequence[str]) -> dict[str, Statistic]:
    """Return `accuracy` and `f1_macro` as functions of row numbers."""
    names, ids = np.unique(np.asarray([*predictions, *references]), return_inverse=True)
    predicted, expected = ids[: len(predictions)], ids[len(predictions) :]

    def macro_f1(rows: np.ndarray) -> float:
        # Equals scikit-learn's macro F1; from counts, one resample of many classes takes a millisecond.
        hits = np.bincount(expected[rows][predicted[rows] == expected[rows]], minlength=len(names))
        seen = np.bincount(predicted[rows], minlength=len(names)) + np.bincount(expected[rows], minlength=len(names))
        return float(np.mean(2 * hits[seen > 0] / seen[seen > 0]))

    def accuracy(rows: np.ndarray) -> float:
        return float(np.mean(predicted[rows] == expected[rows]))

    return {"accuracy": accuracy, "f1_macro": macro_f1}


def score_classes(predictions: Sequence[Any], references: Sequence[Any]) -> dict[str, dict[str, float]]:
    """Compute `precision`, `recall`, `f1` and `rows` by label, for one or several labels per row.

    A score whose denominator is 0 is 0.
    """
    given, expected, hits = Counter[str](), Counter[str](), Counter[str]()
    for prediction, reference in zip(predictions, references, strict=True):
        found, correct = ({one} if isinstance(one, str) else set(one) for one in (prediction, reference))
        given.update(found)
        expected.update(correct)
        hits.update(found & correct)
    return {
        name: {
            "precision": hits[name] / max(given[name], 1),
            "recall": hits[name] / max(expected[name], 1),
            "f1": 2 * hits[name] / (given[name] + expected[name]),
            "rows": expected[name],
        }
        for name in sorted(given | expected)
    }


def _score(predictions: Predictions, targets: Targets) -> dict[str, float]:
    scores = score_labels([prediction["label"] for prediction in predictions], targets)
    if all("confidence" in prediction for prediction in predictions):
        expected = [prediction["label"] == target for prediction, target in zip(predictions, targets, strict=True)]
        scores["ece"] = compute_calibration_error([prediction["confidence"] for prediction in predictions], expected)
    return scores


def _statistics(predictions: Predictions, targets: Targets) -> dict[str, Statistic]:
    return make_label_statistics([prediction["label"] for prediction in predictions], targets)


METRICS = (
    Metric(
        name="accuracy", function=_score, statistic=_statistics,
        description="Share of rows with the correct label (scikit-learn `accuracy_score`).",
    ),
    Metric(
        name="f1_macro", title="macro F1", hub_name="f1", function=_score, statistic=_statistics,
        description="F1 of each label that occurs, unweighted mean over labels (scikit-learn `f1_score`).",
    ),
    Metric(
        name="ece", title="calibration error", direction="lower", function=_score,
        description="Expected calibration error: mean gap between confidence and accuracy over 15 bins of equal width "
        "(scikit-learn `calibration_curve`).",
    ),
)  # fmt: skip
