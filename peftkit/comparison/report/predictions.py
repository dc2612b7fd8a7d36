"""Predictions of the rows of a comparison: per class, confusions and different predictions."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from peftkit.comparison.report.formatting import format_prediction, format_target
from peftkit.comparison.results import ComparisonResults, read_predictions, read_task
from peftkit.data.splits import reload_splits
from peftkit.errors import UserError
from peftkit.recipe.parser import dict_to_recipe
from peftkit.runs.report import Report
from peftkit.system.files import redact_home_in_text
from peftkit.system.logging import logger


@dataclass(frozen=True, kw_only=True)
class Example:
    """One test row.

    Attributes:
        number: Row number in the data.
        text: Input text; None if the data is not available.
        right: Reference.
        predictions: Prediction of each row of the comparison, with the first seed.
        hits: Rows of the comparison with a correct prediction.
    """

    number: int
    text: str | None
    right: str
    predictions: dict[str, str]
    hits: frozenset[str]


@dataclass(frozen=True, kw_only=True)
class ComparedPredictions:
    """Predictions of all rows of a comparison.

    Attributes:
        confusions: Counts by reference class and predicted class over all seeds, by row.
        class_scores: Precision, recall and F1 by row and class, means over seeds.
        class_rows: Number of test rows by class.
        examples: Test rows with different predictions.
        disagreeing: Number of test rows with different predictions.
        tested: Number of test rows.
        without_text: Reason why the texts of examples are not available; None if they are available.
    """

    confusions: dict[str, Counter] = field(default_factory=dict)
    class_scores: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    class_rows: dict[str, int] = field(default_factory=dict)
    examples: list[Example] = field(default_factory=list)
    disagreeing: int = 0
    tested: int = 0
    without_text: str | None = None


def compare_predictions(results: ComparisonResults, examples: int, *, reload_data: bool = False) -> ComparedPredictions:
    """Read the predictions of all runs; select `examples` test rows with different predictions.

    Remote data is read only with `reload_data`.
    """
    confusions: dict[str, Counter] = {}
    scores: dict[str, dict[str, dict[str, float]]] = {}
    class_rows: dict[str, int] = {}
    first: tuple[Report, list[int], list[Any]] | None = None
    predictions: dict[str, list[str]] = {}
    hits: dict[str, list[bool]] = {}
    right: list[str] = []
    for row in results.rows:
        by_seed = []
        for folder, report in row.complete.items():
            task = read_task(report)
            numbers, references, decoded = read_predictions(folder)
            if first is None:
                first = (report, numbers, references)
                right = [format_target(task, reference) for reference in references]
            # Skip predictions on another test set.
            if row.name not in predictions and (numbers, references) == first[1:]:
                predictions[row.name] = [format_prediction(prediction) for prediction in decoded]
                hits[row.name] = list(map(task.metrics.is_correct, decoded, references))
            confusions.setdefault(row.name, Counter()).update(task.metrics.confusion(decoded, references))
            by_seed.append(task.metrics.per_class(decoded, references))
            for name, values in by_seed[-1].items():
                class_rows.setdefault(name, int(values["rows"]))
        if by_seed and by_seed[0]:
            names = sorted({name for one in by_seed for name in one})
            scores[row.name] = {
                name: {
                    what: float(np.mean([one[name][what] for one in by_seed if name in one]))
                    for what in ("precision", "recall", "f1")
                }
                for name in names
            }
    if first is None:
        return ComparedPredictions()
    report, numbers, _ = first
    differing = _find_disagreements(list(predictions.values()), list(hits.values()))
    texts, why = _load_texts(report, numbers, reload_data) if examples and differing else (None, None)
    selected = [
        Example(
            number=numbers[place], text=None if texts is None else texts[place], right=right[place],
            predictions={name: texts_of_row[place] for name, texts_of_row in predictions.items()},
            hits=frozenset(name for name in predictions if hits[name][place]),
        )
        for place in differing[:examples]
    ]  # fmt: skip
    return ComparedPredictions(
        confusions={name: counts for name, counts in confusions.items() if counts}, class_scores=scores,
        class_rows=class_rows, examples=selected, disagreeing=len(differing), tested=len(numbers), without_text=why,
    )  # fmt: skip


def _find_disagreements(predictions: Sequence[Sequence[str]], hits: Sequence[Sequence[bool]]) -> list[int]:
    """Find test rows with different predictions, most different first; for one row, wrong predictions."""
    if len(predictions) == 1:
        return [place for place, hit in enumerate(hits[0]) if not hit]
    kinds = [len(set(texts)) for texts in zip(*predictions, strict=True)]
    return sorted((place for place, count in enumerate(kinds) if count > 1), key=lambda place: (-kinds[place], place))


def _load_texts(report: Report, numbers: Sequence[int], reload_data: bool) -> tuple[list[str] | None, str | None]:
    """Load the input texts of the test rows from the data of the run, or return the failure."""
    recipe = dict_to_recipe(report.recipe)
    try:
        splits = reload_splits(recipe.data, recipe.task, report.data["fingerprint"], allow_remote=reload_data)
    except (UserError, OSError) as error:
        logger.info("examples have no text, because the data is not available: %s", error)
        return None, redact_home_in_text(str(error).split(": ", 2)[-1])
    if list(splits.origins["test"][1]) != list(numbers):
        return None, "the data has changed since training"
    return recipe.task.columns.texts(splits.test), None
