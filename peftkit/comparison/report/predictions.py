"""What the rows of a comparison answered: per class, confused, and where they disagree."""

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
        number: In the data that it was read from.
        text: What it asks; None where the data is not at hand.
        right: The right answer.
        predictions: The prediction of each row of the comparison, of its first seed.
        hits: Those rows whose answer is right.
    """

    number: int
    text: str | None
    right: str
    predictions: dict[str, str]
    hits: frozenset[str]


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What was answered.

    Attributes:
        confusions: By row, how often a class was answered where another was right, over all seeds.
        class_scores: By row and class, precision, recall and F1, means over seeds.
        class_rows: How many test rows have each class.
        examples: Test rows on which the rows of the comparison disagree.
        disagreeing: How many there are in all.
        tested: How many test rows there are.
        without_text: Why examples are shown without their text; None when they have it.
    """

    confusions: dict[str, Counter] = field(default_factory=dict)
    class_scores: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    class_rows: dict[str, int] = field(default_factory=dict)
    examples: list[Example] = field(default_factory=list)
    disagreeing: int = 0
    tested: int = 0
    without_text: str | None = None


def read_answers(results: ComparisonResults, examples: int, *, reload_data: bool = False) -> Answers:
    """Read every run's predictions; of those that rows disagree on, so many examples with their text from the data.

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
            numbers, references, answers = read_predictions(folder)
            if first is None:
                first = (report, numbers, references)
                right = [format_target(task, reference) for reference in references]
            # Another test set has other rows, which can't stand beside these.
            if row.name not in predictions and (numbers, references) == first[1:]:
                predictions[row.name] = [format_prediction(answer) for answer in answers]
                hits[row.name] = list(map(task.metrics.is_correct, answers, references))
            confusions.setdefault(row.name, Counter()).update(task.metrics.confusion(answers, references))
            by_seed.append(task.metrics.per_class(answers, references))
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
        return Answers()
    report, numbers, _ = first
    differing = _find_disagreements(list(predictions.values()), list(hits.values()))
    texts, why = _load_texts(report, numbers, reload_data) if examples and differing else (None, None)
    shown = [
        Example(
            number=numbers[place], text=None if texts is None else texts[place], right=right[place],
            predictions={name: answers[place] for name, answers in predictions.items()},
            hits=frozenset(name for name in predictions if hits[name][place]),
        )
        for place in differing[:examples]
    ]  # fmt: skip
    return Answers(
        confusions={name: counts for name, counts in confusions.items() if counts}, class_scores=scores,
        class_rows=class_rows, examples=shown, disagreeing=len(differing), tested=len(numbers), without_text=why,
    )  # fmt: skip


def _find_disagreements(predictions: Sequence[Sequence[str]], hits: Sequence[Sequence[bool]]) -> list[int]:
    """Places on which the answers differ, those with the most different ones first; of a single row, where it errs."""
    if len(predictions) == 1:
        return [place for place, hit in enumerate(hits[0]) if not hit]
    kinds = [len(set(answers)) for answers in zip(*predictions, strict=True)]
    return sorted((place for place, count in enumerate(kinds) if count > 1), key=lambda place: (-kinds[place], place))


def _load_texts(report: Report, numbers: Sequence[int], reload_data: bool) -> tuple[list[str] | None, str | None]:
    """What each test row asks, from the data that the run was made on; or why that is not to be had."""
    recipe = dict_to_recipe(report.recipe)
    try:
        splits = reload_splits(recipe.data, recipe.task, report.data["fingerprint"], allow_remote=reload_data)
    except (UserError, OSError) as error:
        logger.info("examples are shown without their text: %s", error)
        return None, redact_home_in_text(str(error).split(": ", 2)[-1])
    if list(splits.origins["test"][1]) != list(numbers):
        return None, "the data has changed since training"
    return recipe.task.columns.texts(splits.test), None
