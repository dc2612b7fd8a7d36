"""One label a row: accuracy and macro F1."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import evaluate
import numpy as np
from datasets import Features, Value
from sklearn.metrics import accuracy_score, f1_score

from peftkit.metrics.base import Metric, Predictions, Targets
from peftkit.metrics.bootstrap import Statistic
from peftkit.metrics.calibration import expected_calibration_error

SCIKIT_LEARN = "Pedregosa et al., Scikit-learn: Machine Learning in Python, JMLR 12, 2011"


def _info(description: str) -> evaluate.MetricInfo:
    return evaluate.MetricInfo(
        description=description,
        citation=SCIKIT_LEARN,
        inputs_description="predictions and references: names of labels",
        features=Features({"predictions": Value("string"), "references": Value("string")}),
    )


class Accuracy(evaluate.Metric):
    """Share of rows whose predicted label is the right one (scikit-learn's `accuracy_score`)."""

    def _info(self) -> evaluate.MetricInfo:
        return _info("Share of rows whose predicted label is the right one")

    def _compute(self, predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
        return {"accuracy": float(accuracy_score(references, predictions))}


class MacroF1(evaluate.Metric):
    """Unweighted mean over labels of the F1 score (scikit-learn's `f1_score`, `average="macro"`)."""

    def _info(self) -> evaluate.MetricInfo:
        return _info("Unweighted mean over labels of the F1 score")

    def _compute(self, predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
        return {"f1_macro": float(f1_score(references, predictions, average="macro", zero_division=0.0))}


def classification_metrics(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """`accuracy` and `f1_macro` of label names, one a row."""
    return evaluate.combine([Accuracy(), MacroF1()]).compute(predictions=predictions, references=references)


def classification_statistics(predictions: Sequence[str], references: Sequence[str]) -> dict[str, Statistic]:
    """`accuracy` and `f1_macro` of drawn rows."""
    names, ids = np.unique(np.asarray([*predictions, *references]), return_inverse=True)
    predicted, right = ids[: len(predictions)], ids[len(predictions) :]

    def macro_f1(rows: np.ndarray) -> float:
        # The same as scikit-learn's, by counts: a resample of many classes costs a millisecond.
        hits = np.bincount(right[rows][predicted[rows] == right[rows]], minlength=len(names))
        seen = np.bincount(predicted[rows], minlength=len(names)) + np.bincount(right[rows], minlength=len(names))
        return float(np.mean(2 * hits[seen > 0] / seen[seen > 0]))

    def accuracy(rows: np.ndarray) -> float:
        return float(np.mean(predicted[rows] == right[rows]))

    return {"accuracy": accuracy, "f1_macro": macro_f1}


def class_scores(predictions: Sequence[Any], references: Sequence[Any]) -> dict[str, dict[str, float]]:
    """`precision`, `recall`, `f1` and `rows` of each label, of one label a row or of lists of them.

    By counts, which scikit-learn's own does not do for a single label; where nothing can be divided by, the score is 0.
    """
    given, right, hits = Counter[str](), Counter[str](), Counter[str]()
    for said, gold in zip(predictions, references, strict=True):
        answered, correct = ({labels} if isinstance(labels, str) else set(labels) for labels in (said, gold))
        given.update(answered)
        right.update(correct)
        hits.update(answered & correct)
    return {
        name: {
            "precision": hits[name] / max(given[name], 1),
            "recall": hits[name] / max(right[name], 1),
            "f1": 2 * hits[name] / (given[name] + right[name]),
            "rows": right[name],
        }
        for name in sorted(given | right)
    }


def _score(predictions: Predictions, targets: Targets) -> dict[str, float]:
    scores = classification_metrics([prediction["label"] for prediction in predictions], targets)
    if all("confidence" in prediction for prediction in predictions):
        right = [prediction["label"] == target for prediction, target in zip(predictions, targets, strict=True)]
        scores["ece"] = expected_calibration_error([prediction["confidence"] for prediction in predictions], right)
    return scores


def _statistics(predictions: Predictions, targets: Targets) -> dict[str, Statistic]:
    return classification_statistics([prediction["label"] for prediction in predictions], targets)


METRICS = (
    Metric(name="accuracy", function=_score, statistic=_statistics),
    Metric(name="f1_macro", title="macro F1", hub_name="f1", function=_score, statistic=_statistics),
    Metric(name="ece", title="calibration error", direction="lower", function=_score),
)
