"""What is wrong with labelled data, before anything is trained on it."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from peftkit.data.near_duplicates import near_duplicates
from peftkit.data.splits import Splits
from peftkit.tasks import Task

NEAR_DUPLICATE = 0.8
# More rows are not compared: the first so many of a split stand for it.
MOST_TRAIN, MOST_OTHER = 20_000, 2_000
FEW_ROWS = 10
IMBALANCED = 20
PERCENTILES = (50, 90, 95, 99, 100)
CUT_SHARE = 0.01
UNKNOWN_SHARE = 0.05


@dataclass(frozen=True, kw_only=True)
class Checks:
    """What was found.

    Attributes:
        warnings: What may spoil a result, a sentence each.
        classes: Rows (or entities) of each class in train.
        lengths: By the task's field that limits them, tokens of the training rows: percentiles, the share that is
            cut, and the least length, a multiple of 8, that keeps 99 % whole, or the model's most.
        duplicates: By split, how many of its rows repeat an earlier one, are in train too, exactly or nearly, or in
            validation.
        entities: How many entities of train the model never reads whole, and how many there are.
    """

    warnings: tuple[str, ...] = ()
    classes: Mapping[str, int] = field(default_factory=dict)
    lengths: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    duplicates: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    entities: Mapping[str, int] = field(default_factory=dict)


def check_data(splits: Splits, task: Task, tokenizer: PreTrainedTokenizerBase, positions: int | None = None) -> Checks:
    """Look for duplicates between splits, conflicting labels, rare classes, and what truncation cuts.

    No length over `positions`, the most tokens that the model reads, is suggested.
    """
    references = {split: task.references(rows, splits.labels) for split, rows in splits.rows.items()}
    classes = task.class_counts(references["train"])
    duplicates, warnings = _duplicates(splits, task)
    if classes:
        warnings += _conflicts(splits, task, references) + _balance(classes, splits.labels, task)
    lengths, said = _lengths(splits.train, task, tokenizer, positions)
    warnings += said
    entities: dict[str, int] = {}
    if found := task.entities_cut(splits.train, tokenizer, references["train"]):
        entities = dict(zip(("cut", "all"), found, strict=True))
        if found[0]:
            why = "they are longer than a part of the text, or have a word that gives no token; raise task.stride"
            warnings.append(f"train: {found[0]} of {found[1]} entities are never read whole: {why}")
    warnings += _unknown(splits.train, task, tokenizer)
    return Checks(
        warnings=tuple(warnings),
        classes=dict(sorted(classes.items(), key=lambda entry: -entry[1])),
        lengths=lengths,
        duplicates=duplicates,
        entities=entities,
    )


def _duplicates(splits: Splits, task: Task) -> tuple[dict[str, dict[str, int]], list[str]]:
    """Rows that stand in train too, or in an earlier split, or earlier in their own; counts by split, and sentences."""
    texts = {
        split: [" ".join(text.lower().split()) for text in task.texts(rows)] for split, rows in splits.rows.items()
    }
    first = {split: {text: row for row, text in reversed(list(enumerate(found)))} for split, found in texts.items()}
    counts, warnings = {}, []
    for split, rows in texts.items():
        mine = counts[split] = {"repeated": len(rows) - len(first[split])}
        if mine["repeated"]:
            again = next(row for row, text in enumerate(rows) if first[split][text] != row)
            example = f"{splits.place(split, again)} is {splits.place(split, first[split][rows[again]])}"
            warnings.append(f"{split}: {_share(mine['repeated'], len(rows))} repeat an earlier row ({example})")
        if split == "train":
            continue
        exact = [row for row, text in enumerate(rows) if text in first["train"]]
        asked = rows[:MOST_OTHER]
        near = dict(near_duplicates(asked, texts["train"][:MOST_TRAIN], NEAR_DUPLICATE))
        only_near = sorted(set(near) - set(exact))
        mine |= {"exact": len(exact), "near": len(only_near)}
        if exact:
            example = f"{splits.place(split, exact[0])} is {splits.place('train', first['train'][rows[exact[0]]])}"
            warnings.append(
                f"{split}: {_share(len(exact), len(rows))} are in train word for word ({example}): scores flatter"
            )
        if only_near:
            example = f"{splits.place(split, only_near[0])} and {splits.place('train', near[only_near[0]])}"
            of = _share(len(only_near), len(asked))
            warnings.append(f"{split}: {of} are nearly in train (cosine of words >= {NEAR_DUPLICATE}; {example})")
    if both := [row for row, text in enumerate(texts["test"]) if text in first["validation"]]:
        counts["test"]["in_validation"] = len(both)
        same = splits.place("validation", first["validation"][texts["test"][both[0]]])
        example = f"{splits.place('test', both[0])} is {same}"
        warnings.append(f"test: {_share(len(both), len(texts['test']))} are in validation word for word ({example})")
    return counts, warnings


def _conflicts(splits: Splits, task: Task, references: Mapping[str, Sequence[Any]]) -> list[str]:
    answers: dict[str, dict[str, str]] = defaultdict(dict)
    for split, rows in splits.rows.items():
        for row, (text, right) in enumerate(zip(task.texts(rows), references[split], strict=True)):
            answers[text].setdefault(task.same_answer(right), splits.place(split, row))
    conflicts = [places for places in answers.values() if len(places) > 1]
    if not conflicts:
        return []
    example = " and ".join(list(conflicts[0].values())[:2])
    texts = "1 text has" if len(conflicts) == 1 else f"{len(conflicts)} texts have"
    return [f"{texts} different labels in different rows ({example})"]


def _balance(classes: Mapping[str, int], labels: Sequence[str], task: Task) -> list[str]:
    names = task.class_names(labels)
    warnings = []
    if len(classes) > sum(classes.values()) / 2:
        warnings.append(f"train has {len(classes)} classes in {sum(classes.values())} rows: is it the right column?")
    if missing := [name for name in names if not classes.get(name)]:
        warnings.append(f"train has no row of {_some(missing)}: {_cannot(missing)} learned")
    if few := [name for name in names if 0 < classes.get(name, 0) < FEW_ROWS]:
        warnings.append(f"train has fewer than {FEW_ROWS} rows of {_some(few)}")
    largest, smallest = max(classes.values()), min(classes.values())
    if largest > IMBALANCED * smallest:
        warnings.append(f"train: the largest class has {largest} rows, the smallest {smallest}{task.balance_hint}")
    return warnings


def _lengths(
    train: Dataset, task: Task, tokenizer: PreTrainedTokenizerBase, positions: int | None
) -> tuple[dict[str, dict[str, float]], list[str]]:
    found, warnings = {}, []
    for name, tokens in task.lengths(train, tokenizer).items():
        limit = getattr(task, name)
        percentiles = {f"p{p}": float(np.percentile(tokens, p, method="higher")) for p in PERCENTILES}
        suggested = 8 * math.ceil(percentiles["p99"] / 8)
        if positions is not None and name == task.length_fields[0]:
            suggested = min(suggested, positions)
        keeps = math.floor(100 * np.mean(tokens <= suggested)) / 100
        cut = int((tokens > limit).sum())
        found[name] = {
            **percentiles,
            "limit": limit,
            "cut_share": cut / len(tokens),
            "suggested": suggested,
            "suggested_keeps": keeps,
        }
        if cut > CUT_SHARE * len(tokens):
            what = f"{_share(cut, len(tokens))} {task.too_long}"
            warnings.append(f"train: {what} at task.{name} {limit}; {suggested} keeps {100 * keeps:.0f} % whole")
    return found, warnings


def _unknown(train: Dataset, task: Task, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    if tokenizer.unk_token_id is None:
        return []
    ids = tokenizer(task.texts(train.select(range(min(1000, len(train))))), verbose=False)["input_ids"]
    tokens = [token for row in ids for token in row]
    unknown = tokens.count(tokenizer.unk_token_id) / max(1, len(tokens))
    if unknown <= UNKNOWN_SHARE:
        return []
    return [f"train: {unknown:.0%} of the tokens are unknown to the vocabulary; take a model of the text's language"]


def _share(count: int, total: int) -> str:
    return f"{count} of {total} rows ({count / total:.1%})"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _cannot(names: Sequence[str]) -> str:
    return "it can't be" if len(names) == 1 else "they can't be"
