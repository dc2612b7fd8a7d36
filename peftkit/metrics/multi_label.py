"""Metrics of any number of labels per row: macro and micro F1, exact match."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from peftkit.metrics.base import Metric, Predictions, Targets
from peftkit.metrics.bootstrap import Statistic
from peftkit.metrics.classification import SCIKIT_LEARN
from peftkit.metrics.modules import compute_by_module


def _indicators(predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> tuple[Any, Any]:
    """Return two sparse 0/1 matrices of shape (rows, labels that occur)."""
    from sklearn.preprocessing import MultiLabelBinarizer

    both = MultiLabelBinarizer(sparse_output=True).fit_transform([*predictions, *references])
    return both[: len(predictions)], both[len(predictions) :]


def _compute_scores(predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Compute `f1_macro`, `f1_micro` and `exact_match` (scikit-learn) of label lists, one list per row."""
    from sklearn.metrics import accuracy_score, f1_score

    predicted, reference = _indicators(predictions, references)
    if not reference.shape[1]:
        return {"f1_macro": 0.0, "f1_micro": 0.0, "exact_match": 1.0}
    # scikit-learn would read a single column as two classes.
    if reference.shape[1] == 1:
        predicted, reference = predicted.toarray().ravel(), reference.toarray().ravel()
        one = float(f1_score(reference, predicted, zero_division=0.0))
        return {"f1_macro": one, "f1_micro": one, "exact_match": float(accuracy_score(reference, predicted))}
    return {
        "f1_macro": float(f1_score(reference, predicted, average="macro", zero_division=0.0)),
        "f1_micro": float(f1_score(reference, predicted, average="micro", zero_division=0.0)),
        "exact_match": float(accuracy_score(reference, predicted)),
    }


def score_label_lists(predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Compute `f1_macro`, `f1_micro` and `exact_match` (scikit-learn) of label lists, one list per row.

    Macro F1 is over the labels that occur in references or predictions.
    """
    return compute_by_module(
        _compute_scores, predictions, references, kinds=("strings", "strings"), citation=SCIKIT_LEARN
    )


def make_label_list_statistics(
    predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]
) -> dict[str, Statistic]:
    """Return `f1_macro` and `f1_micro` as functions of row numbers."""
    predicted, reference = _indicators(predictions, references)
    hits, seen = predicted.multiply(reference).tocsc(), (predicted + reference).tocsc()

    def counts(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        weight = np.bincount(rows, minlength=hits.shape[0])
        return hits.T @ weight, seen.T @ weight

    def macro_f1(rows: np.ndarray) -> float:
        true, both = counts(rows)
        return float(np.mean(2 * true[both > 0] / both[both > 0])) if both.any() else 0.0

    def micro_f1(rows: np.ndarray) -> float:
        true, both = counts(rows)
        return float(2 * true.sum() / both.sum()) if both.any() else 0.0

    return {"f1_macro": macro_f1, "f1_micro": micro_f1}


def _score(predictions: Predictions, targets: Targets) -> dict[str, float]:
    return score_label_lists([prediction["labels"] for prediction in predictions], targets)


def _statistics(predictions: Predictions, targets: Targets) -> dict[str, Statistic]:
    return make_label_list_statistics([prediction["labels"] for prediction in predictions], targets)


METRICS = (
    Metric(
        name="f1_macro", title="macro F1", hub_name="f1", function=_score, statistic=_statistics,
        description="F1 of each label that occurs, unweighted mean over labels (scikit-learn `f1_score`).",
    ),
    Metric(
        name="f1_micro", title="micro F1", hub_name="f1", function=_score, statistic=_statistics,
        description="F1 of all pairs of row and label (scikit-learn `f1_score`).",
    ),
    Metric(
        name="exact_match", function=_score,
        description="Share of rows whose labels are all correct (scikit-learn `accuracy_score`).",
    ),
)  # fmt: skip
