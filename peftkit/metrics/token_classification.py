"""Metrics of named entities: precision, recall and F1 of whole entities, over all and per type."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from peftkit.metrics.base import Metric, Predictions, Targets
from peftkit.metrics.bootstrap import Statistic
from peftkit.metrics.modules import compute_by_module

SEQEVAL = "Nakayama, seqeval, 2018; after conlleval, Tjong Kim Sang and Buchholz 2000"


def find_entities(tags: Sequence[str]) -> list[tuple[str, int, int]]:
    """Return type, first and last word of each entity in BIO tags, by seqeval."""
    from seqeval.metrics.sequence_labeling import get_entities

    return get_entities(list(tags))


def _compute_scores(predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Compute `precision`, `recall`, `f1`, also per type, and `f1_macro` of BIO tags, one list per row."""
    from seqeval.metrics import classification_report

    if not any(find_entities(tags) for tags in (*references, *predictions)):
        return {"precision": 0.0, "recall": 0.0, "f1": 0.0, "f1_macro": 0.0}
    report = classification_report(
        [list(tags) for tags in references], [list(tags) for tags in predictions], output_dict=True, zero_division=0
    )
    micro = report.pop("micro avg")
    scores = {
        "precision": float(micro["precision"]),
        "recall": float(micro["recall"]),
        "f1": float(micro["f1-score"]),
    }
    scores["f1_macro"] = float(report.pop("macro avg")["f1-score"])
    report.pop("weighted avg")
    for kind, values in sorted(report.items()):
        scores |= {f"{name}_{kind}": float(values[name]) for name in ("precision", "recall")}
        scores[f"f1_{kind}"] = float(values["f1-score"])
    return scores


def score_entities(predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Compute `precision`, `recall`, `f1`, also per type, and `f1_macro` of BIO tags, one list per row.

    An entity is correct if its type, start and end are correct (seqeval's `classification_report`, as in CoNLL).
    """
    return compute_by_module(_compute_scores, predictions, references, kinds=("strings", "strings"), citation=SEQEVAL)


def make_entity_statistics(
    predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]
) -> dict[str, Statistic]:
    """Return the micro-averaged `f1` as a function of row numbers."""
    counts = np.zeros((len(references), 2))
    for row, (predicted, reference) in enumerate(zip(predictions, references, strict=True)):
        found, gold = set(find_entities(predicted)), set(find_entities(reference))
        counts[row] = 2 * len(found & gold), len(found) + len(gold)

    def micro_f1(rows: np.ndarray) -> float:
        hits, seen = counts[rows].sum(0)
        return float(hits / seen) if seen else 0.0

    return {"f1": micro_f1}


def score_entity_types(
    predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]
) -> dict[str, dict[str, float]]:
    """Compute `precision`, `recall` and `f1` of whole entities of each type, and their number as `rows`."""
    from seqeval.metrics import classification_report

    if not any(find_entities(tags) for tags in (*references, *predictions)):
        return {}
    report = classification_report(
        [list(tags) for tags in references], [list(tags) for tags in predictions], output_dict=True, zero_division=0
    )
    return {
        kind: {
            "precision": float(values["precision"]), "recall": float(values["recall"]),
            "f1": float(values["f1-score"]), "rows": int(values["support"]),
        }
        for kind, values in sorted(report.items()) if not kind.endswith(" avg")
    }  # fmt: skip


def count_type_confusions(
    predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]
) -> Counter[tuple[str, str]]:
    """Count words by target type and predicted type, except words outside of entities in both."""
    pairs: Counter[tuple[str, str]] = Counter()
    for predicted, reference in zip(predictions, references, strict=True):
        pairs.update(zip(map(_type, reference), map(_type, predicted), strict=True))
    # Words outside of entities outnumber all others.
    del pairs["O", "O"]
    return pairs


def _type(tag: str) -> str:
    return tag if tag == "O" else tag[2:]


def _score(predictions: Predictions, targets: Targets) -> dict[str, float]:
    return score_entities([prediction["tags"] for prediction in predictions], targets)


def _statistics(predictions: Predictions, targets: Targets) -> dict[str, Statistic]:
    return make_entity_statistics([prediction["tags"] for prediction in predictions], targets)


METRICS = (
    Metric(
        name="precision", function=_score,
        description="Share of predicted entities whose type, start and end are correct (seqeval).",
    ),
    Metric(
        name="recall", function=_score,
        description="Share of reference entities that are predicted with correct type, start and end (seqeval).",
    ),
    Metric(
        name="f1", title="F1", function=_score, statistic=_statistics,
        description="Harmonic mean of precision and recall over all entities (seqeval).",
    ),
    Metric(
        name="f1_macro", title="macro F1", hub_name="f1", function=_score,
        description="F1 of each entity type, unweighted mean over types (seqeval).",
    ),
)  # fmt: skip
