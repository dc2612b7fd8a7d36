"""Data quality: duplicates, leakage between splits, conflicting labels, rare classes and truncation."""

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from peftkit.data.near_duplicates import find_near_duplicates
from peftkit.data.splits import Splits
from peftkit.tasks import Task, TokenClassification

NEAR_DUPLICATE = 0.8
# The search for near duplicates uses only the first rows of a split.
MAX_TRAIN_ROWS, MAX_OTHER_ROWS = 20_000, 2_000
FEW_ROWS = 10
IMBALANCED = 20
PERCENTILES = (50, 90, 95, 99, 100)
CUT_SHARE = 0.01
UNKNOWN_SHARE = 0.05


@dataclass(frozen=True, kw_only=True)
class Checks:
    """Results of the data checks.

    Attributes:
        warnings: Problems that may invalidate results, one sentence each.
        classes: Number of training rows (or entities) by class.
        lengths: Token counts of the training rows by the task's length field: percentiles, the share of truncated
            rows, and a suggested length. That is the smallest multiple of 8 that fits 99 % of the rows, at most the
            model's limit.
        duplicates: Number of duplicates by split: rows equal to an earlier row, rows equal or similar to a training
            row, and test rows in validation.
        entities: Number of training entities that are truncated in every window, and of all training entities.
    """

    warnings: tuple[str, ...] = ()
    classes: Mapping[str, int] = field(default_factory=dict)
    lengths: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    duplicates: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    entities: Mapping[str, int] = field(default_factory=dict)


def check_data(
    splits: Splits, task: Task, tokenizer: PreTrainedTokenizerBase, position_limit: int | None = None
) -> Checks:
    """Check for duplicates between splits, conflicting labels, rare classes and truncation.

    `position_limit` is the model's maximum number of tokens, which limits the suggested length.
    """
    references = {split: task.targets(rows, splits.labels) for split, rows in splits.rows.items()}
    classes = task.metrics.class_counts(references["train"])
    duplicates, warnings = _find_duplicates(splits, task)
    if classes:
        warnings += _find_conflicts(splits, task, references) + _check_balance(classes, splits.labels, task)
    lengths, length_warnings = _measure_lengths(splits.train, task, tokenizer, position_limit)
    warnings += length_warnings
    entities: dict[str, int] = {}
    if isinstance(task, TokenClassification):
        found = task.count_cut_entities(splits.train, tokenizer, references["train"])
        entities = dict(zip(("cut", "all"), found, strict=True))
        if found[0]:
            why = "longer than a window, or with a word without tokens"
            warnings.append(
                f"train: {found[0]} of {found[1]} entities are truncated in every window ({why}); increase task.stride"
            )
    warnings += _check_vocabulary(splits.train, task, tokenizer)
    return Checks(
        warnings=tuple(warnings),
        classes=dict(sorted(classes.items(), key=lambda entry: -entry[1])),
        lengths=lengths,
        duplicates=duplicates,
        entities=entities,
    )


def _find_duplicates(splits: Splits, task: Task) -> tuple[dict[str, dict[str, int]], list[str]]:
    """Count duplicates by split, of training rows, validation rows and earlier rows; also return warnings."""
    texts = {
        split: [" ".join(text.lower().split()) for text in task.columns.texts(rows)]
        for split, rows in splits.rows.items()
    }
    first = {split: {text: row for row, text in reversed(list(enumerate(rows)))} for split, rows in texts.items()}
    counts, warnings = {}, []
    for split, rows in texts.items():
        found = counts[split] = {"repeated": len(rows) - len(first[split])}
        if found["repeated"]:
            again = next(row for row, text in enumerate(rows) if first[split][text] != row)
            example = f"{splits.locate_row(split, again)} equals {splits.locate_row(split, first[split][rows[again]])}"
            warnings.append(
                f"{split}: {_format_share(found['repeated'], len(rows))} duplicate an earlier row ({example})"
            )
        if split == "train":
            continue
        exact = [row for row, text in enumerate(rows) if text in first["train"]]
        compared = rows[:MAX_OTHER_ROWS]
        near = dict(find_near_duplicates(compared, texts["train"][:MAX_TRAIN_ROWS], NEAR_DUPLICATE))
        only_near = sorted(set(near) - set(exact))
        found |= {"exact": len(exact), "near": len(only_near)}
        if exact:
            same = splits.locate_row("train", first["train"][rows[exact[0]]])
            example = f"{splits.locate_row(split, exact[0])} equals {same}"
            warnings.append(
                f"{split}: {_format_share(len(exact), len(rows))} duplicate training rows ({example}); "
                "scores will be too optimistic"
            )
        if only_near:
            example = f"{splits.locate_row(split, only_near[0])} and {splits.locate_row('train', near[only_near[0]])}"
            share = _format_share(len(only_near), len(compared))
            warnings.append(
                f"{split}: {share} nearly duplicate training rows (cosine of words >= {NEAR_DUPLICATE}; {example})"
            )
    if both := [row for row, text in enumerate(texts["test"]) if text in first["validation"]]:
        counts["test"]["in_validation"] = len(both)
        same = splits.locate_row("validation", first["validation"][texts["test"][both[0]]])
        example = f"{splits.locate_row('test', both[0])} equals {same}"
        warnings.append(f"test: {_format_share(len(both), len(texts['test']))} duplicate validation rows ({example})")
    return counts, warnings


def _make_target_key(task: Task, target: Any) -> str:
    """Return a string that is equal for equal targets, independent of the order of a row's labels."""
    return json.dumps(sorted(target) if task.output_kind == "sequence" and isinstance(target, list) else target)


def _find_conflicts(splits: Splits, task: Task, references: Mapping[str, Sequence[Any]]) -> list[str]:
    places_by_text: dict[str, dict[str, str]] = defaultdict(dict)
    for split, rows in splits.rows.items():
        for row, (text, target) in enumerate(zip(task.columns.texts(rows), references[split], strict=True)):
            places_by_text[text].setdefault(_make_target_key(task, target), splits.locate_row(split, row))
    conflicts = [places for places in places_by_text.values() if len(places) > 1]
    if not conflicts:
        return []
    example = " and ".join(list(conflicts[0].values())[:2])
    texts = "1 text has" if len(conflicts) == 1 else f"{len(conflicts)} texts have"
    return [f"{texts} different labels in different rows ({example})"]


def _check_balance(classes: Mapping[str, int], labels: Sequence[str], task: Task) -> list[str]:
    names = task.metrics.class_names(labels)
    warnings = []
    if len(classes) > sum(classes.values()) / 2:
        warnings.append(f"train has {len(classes)} classes in {sum(classes.values())} rows; check the label column")
    if missing := [name for name in names if not classes.get(name)]:
        warnings.append(f"train has no rows of {_list_names(missing)}; the model cannot learn them")
    if few := [name for name in names if 0 < classes.get(name, 0) < FEW_ROWS]:
        warnings.append(f"train has fewer than {FEW_ROWS} rows of {_list_names(few)}")
    largest, smallest = max(classes.values()), min(classes.values())
    if largest > IMBALANCED * smallest:
        hint = "; task.class_weights balanced weights all classes equally" if hasattr(task, "class_weights") else ""
        warnings.append(f"train: the largest class has {largest} rows, the smallest {smallest}{hint}")
    return warnings


def _measure_lengths(
    train: Dataset, task: Task, tokenizer: PreTrainedTokenizerBase, position_limit: int | None
) -> tuple[dict[str, dict[str, float]], list[str]]:
    found, warnings = {}, []
    for name, tokens in task.token_lengths(train, tokenizer).items():
        limit = getattr(task, name)
        percentiles = {f"p{p}": float(np.percentile(tokens, p, method="higher")) for p in PERCENTILES}
        suggested = 8 * math.ceil(percentiles["p99"] / 8)
        if position_limit is not None and name == task.columns.length_field:
            suggested = min(suggested, position_limit)
        fits = math.floor(100 * np.mean(tokens <= suggested)) / 100
        cut = int((tokens > limit).sum())
        found[name] = {
            **percentiles,
            "limit": limit,
            "cut_share": cut / len(tokens),
            "suggested": suggested,
            "suggested_keeps": fits,
        }
        if cut > CUT_SHARE * len(tokens):
            effect = "are split into parts" if task.output_kind == "tokens" else "are truncated"
            share = _format_share(cut, len(tokens))
            warnings.append(
                f"train: {share} {effect} at task.{name} {limit}; {suggested} fits {100 * fits:.0f} % of the rows"
            )
    return found, warnings


def _check_vocabulary(train: Dataset, task: Task, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    if tokenizer.unk_token_id is None:
        return []
    ids = tokenizer(task.columns.texts(train.select(range(min(1000, len(train))))), verbose=False)["input_ids"]
    tokens = [token for row in ids for token in row]
    unknown = tokens.count(tokenizer.unk_token_id) / max(1, len(tokens))
    if unknown <= UNKNOWN_SHARE:
        return []
    return [f"train: {unknown:.0%} of the tokens are not in the vocabulary; use a model for the language of the text"]


def _format_share(count: int, total: int) -> str:
    return f"{count} of {total} rows ({count / total:.1%})"


def _list_names(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
