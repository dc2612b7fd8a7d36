"""Any number of labels a row: macro and micro F1, and the share of rows that are right as a whole."""

from collections.abc import Sequence

import evaluate
import numpy as np
from datasets import Features, List, Value
from scipy.sparse import csr_matrix
from sklearn.metrics import accuracy_score, f1_score
from sklearn.preprocessing import MultiLabelBinarizer

from peftkit.metrics.base import Metric, Predictions, Targets
from peftkit.metrics.bootstrap import Statistic
from peftkit.metrics.classification import SCIKIT_LEARN


class MultiLabelScores(evaluate.Metric):
    """Macro and micro F1 over label indicators, and exact match (scikit-learn's `f1_score` and `accuracy_score`).

    Macro F1 is over the labels that some row has or was given.
    """

    def _info(self) -> evaluate.MetricInfo:
        names = List(Value("string"))
        return evaluate.MetricInfo(
            description="Macro and micro F1 over label indicators; share of rows whose labels are all right",
            citation=SCIKIT_LEARN,
            inputs_description="predictions and references: a list of names of labels a row",
            features=Features({"predictions": names, "references": names}),
        )

    def _compute(self, predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> dict[str, float]:
        predicted, right = _indicators(predictions, references)
        if not right.shape[1]:
            return {"f1_macro": 0.0, "f1_micro": 0.0, "exact_match": 1.0}
        # scikit-learn reads a single column as two classes, of which this label is one.
        if right.shape[1] == 1:
            predicted, right = predicted.toarray().ravel(), right.toarray().ravel()
            one = float(f1_score(right, predicted, zero_division=0.0))
            return {"f1_macro": one, "f1_micro": one, "exact_match": float(accuracy_score(right, predicted))}
        return {
            "f1_macro": float(f1_score(right, predicted, average="macro", zero_division=0.0)),
            "f1_micro": float(f1_score(right, predicted, average="micro", zero_division=0.0)),
            "exact_match": float(accuracy_score(right, predicted)),
        }


def _indicators(
    predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]
) -> tuple[csr_matrix, csr_matrix]:
    """Two sparse 0/1 matrices of shape (rows, labels that occur)."""
    both = MultiLabelBinarizer(sparse_output=True).fit_transform([*predictions, *references])
    return both[: len(predictions)], both[len(predictions) :]


def multi_label_metrics(predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """`f1_macro`, `f1_micro` and `exact_match` of lists of label names, one list a row."""
    return MultiLabelScores().compute(predictions=predictions, references=references)


def multi_label_statistics(
    predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]
) -> dict[str, Statistic]:
    """`f1_macro` and `f1_micro` of drawn rows."""
    predicted, right = _indicators(predictions, references)
    hits, seen = predicted.multiply(right).tocsc(), (predicted + right).tocsc()

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
    return multi_label_metrics([prediction["labels"] for prediction in predictions], targets)


def _statistics(predictions: Predictions, targets: Targets) -> dict[str, Statistic]:
    return multi_label_statistics([prediction["labels"] for prediction in predictions], targets)


METRICS = (
    Metric(name="f1_macro", title="macro F1", hub_name="f1", function=_score, statistic=_statistics),
    Metric(name="f1_micro", title="micro F1", hub_name="f1", function=_score, statistic=_statistics),
    Metric(name="exact_match", function=_score),
)
