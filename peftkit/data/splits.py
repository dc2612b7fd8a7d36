"""Labelled rows to splits: checked, held out where a split is absent, cut to size, and fingerprinted."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset

from peftkit.data.sources import DEMOS, describe_split_files, find_split_file, format_path, is_remote, load_rows
from peftkit.errors import UserError
from peftkit.recipe.schema import DataConfig
from peftkit.tasks import Task

HELD_OUT_SHARE = 0.15


@dataclass(frozen=True, kw_only=True)
class Splits:
    """The data of one run.

    Attributes:
        train, validation, test: The rows, with the task's columns among theirs.
        labels: Names in the order of their ids.
        fingerprint: SHA-256 over the task's columns of every split; equal only for equal rows in equal order.
        decisions: What was decided on the user's behalf, a sentence each.
        origins: By split, what its rows were read from, and their numbers there.
    """

    train: Dataset
    validation: Dataset
    test: Dataset
    labels: tuple[str, ...]
    fingerprint: str
    decisions: tuple[str, ...] = ()
    origins: Mapping[str, tuple[str, Sequence[int]]] = field(default_factory=dict)

    def place(self, split: str, row: int) -> str:
        """Where a split's row stands in the data."""
        source, numbers = self.origins[split]
        return f"{source} row {numbers[row]}"

    @property
    def rows(self) -> dict[str, Dataset]:
        """The three splits by name."""
        return {"train": self.train, "validation": self.validation, "test": self.test}

    def describe(self) -> dict[str, Any]:
        """The part of the report that tells of the data."""
        return {
            "fingerprint": self.fingerprint,
            "rows": {split: len(rows) for split, rows in self.rows.items()},
            "labels": list(self.labels),
            "decisions": list(self.decisions),
        }


def load_splits(config: DataConfig, task: Task) -> Splits:
    """Load, check every row, make the splits that are absent, cut to the asked size, and fingerprint.

    Raises UserError naming what is wrong: a missing file, split or column, or the first row that can't be used.
    """
    found = find_splits(config, task)
    labels = task.find_labels(found["train"])
    if problems := row_problems(config, task, found, labels):
        more = f" (and {len(problems) - 1} more; peftkit check lists them)" if len(problems) > 1 else ""
        raise UserError(f"{problems[0]}{more}")
    return complete_splits(config, task, found, labels)


def reload_splits(config: DataConfig, task: Task, fingerprint: str, *, allow_remote: bool) -> Splits:
    """Load the data of a finished run again.

    A run folder may come from someone else. Only with `allow_remote` is a query run, or a database, the Hub or an
    address contacted because the folder names it. Raises UserError for data that is remote, missing or changed.
    """
    if is_remote(config) and not allow_remote:
        kind = "a database" if config.sql is not None else "remote data"
        raise UserError(f"data.path: {format_path(config)}: the run folder names {kind}; pass --reload_data to read it")
    splits = load_splits(config, task)
    if splits.fingerprint != fingerprint:
        raise UserError(f"data.path: {format_path(config)}: the data has changed since training")
    return splits


def complete_splits(config: DataConfig, task: Task, found: Mapping[str, Dataset], labels: tuple[str, ...]) -> Splits:
    """The splits that are absent made, all cut to the asked size. Raises UserError for one without rows."""
    splits = dict(found)
    for split, rows in splits.items():
        if not len(rows):
            raise UserError(f"data: {where(config, split)} has no rows")
    names = {"validation": config.validation_split, "test": config.test_split}
    decisions = [
        f"{split} is {files}" for split in found if (files := describe_split_files(config, _name(config, split)))
    ]
    decisions += [
        f"{split} is {name}, the training rows: its scores tell only how well they were learned"
        for split, name in names.items()
        if name == config.train_split
    ]
    if config.validation_split == config.test_split != config.train_split:
        decisions.append(f"validation and test are both {config.test_split}: what is chosen on it is not tested apart")
    origins = {split: (where(config, split), list(range(len(rows)))) for split, rows in splits.items()}

    def take(split: str, of: str, rows: Sequence[int]) -> None:
        source, numbers = origins[of]
        splits[split], origins[split] = splits[of].select(rows), (source, [numbers[row] for row in rows])

    for split in ("test", "validation"):
        if split not in splits:
            kept, held, how = _hold_out(splits["train"], task, config.seed)
            take(split, "train", held)
            take("train", "train", kept)
            decisions.append(
                f"no {split} split: {len(splits[split])} of {len(splits['train']) + len(splits[split])} training rows "
                f"held out ({how}, seed {config.seed})"
            )
    limits = {"train": config.max_train_samples, "validation": config.max_eval_samples, "test": config.max_eval_samples}
    for split, limit in limits.items():
        if limit is not None and limit < len(splits[split]):
            drawn = Dataset.from_dict({"row": range(len(splits[split]))}).shuffle(seed=config.seed)
            take(split, split, drawn["row"][:limit])
        if not len(splits[split]):
            raise UserError(f"data: {split} has no rows")
    fingerprint = _fingerprint(splits, (*task.columns, *task.scored_columns))
    return Splits(**splits, labels=labels, fingerprint=fingerprint, decisions=tuple(decisions), origins=origins)


def find_splits(config: DataConfig, task: Task) -> dict[str, Dataset]:
    """The splits that the data has, by what they are for. Raises UserError for a missing split or column."""
    found = load_rows(config)
    if config.train_split not in found:
        raise UserError(f"data.train_split: no split '{config.train_split}' among {', '.join(found)}")
    splits = {"train": found[config.train_split]}
    for split, name in (("validation", config.validation_split), ("test", config.test_split)):
        if name in found:
            splits[split] = found[name]
        elif name != split:
            raise UserError(f"data.{split}_split: no split '{name}' among {', '.join(found)}")
    for split, rows in splits.items():
        for column in task.columns:
            if column not in rows.column_names:
                raise UserError(_no_column(config, task, split, column, rows))
        for column in task.scored_columns if split != "train" else ():
            if column not in rows.column_names:
                raise UserError(_no_column(config, task, split, column, rows))
    return splits


def _no_column(config: DataConfig, task: Task, split: str, column: str, rows: Dataset) -> str:
    words = " or ".join(f"--task.{word}" for word in task.column_fields if getattr(task, word) == column)
    return (
        f"data.path: {where(config, split)} has no column '{column}' among {', '.join(rows.column_names)}; "
        f"name the right one with {words}"
    )


def _name(config: DataConfig, split: str) -> str:
    return {"validation": config.validation_split, "test": config.test_split}.get(split, config.train_split)


def row_problems(config: DataConfig, task: Task, splits: Mapping[str, Dataset], labels: Sequence[str]) -> list[str]:
    """A line for each row that can't be used, with its file and number."""
    return [problem for split, rows in splits.items() for problem in task.problems(rows, labels, where(config, split))]


def where(config: DataConfig, split: str) -> str:
    """What a split is called in an error: its file where it has one of its own."""
    name = _name(config, split)
    alone = config.path in DEMOS and config.data_files is None
    return format_path(config) if alone else find_split_file(config, name) or f"{format_path(config)}, {name}"


def _hold_out(train: Dataset, task: Task, seed: int) -> tuple[list[int], list[int], str]:
    """Rows to keep and rows to hold out, stratified by label where the task has one and every label has rows enough."""
    rows = Dataset.from_dict({"row": range(len(train))})
    how = "at random"
    parts = None
    if task.stratify_by is not None:
        names = [str(value) for value in train[task.stratify_by]]
        try:
            labelled = rows.add_column("label", names).class_encode_column("label")
            parts = labelled.train_test_split(test_size=HELD_OUT_SHARE, stratify_by_column="label", seed=seed)
            how = "stratified"
        except ValueError:
            how = "not stratified: some label has too few rows"
    if parts is None:
        if len(train) < 2:
            raise UserError(
                "data: train has 1 row, of which none can be held out; name validation_split and test_split"
            )
        parts = rows.train_test_split(test_size=HELD_OUT_SHARE, seed=seed)
    return parts["train"]["row"][:], parts["test"]["row"][:], how


def _fingerprint(splits: dict[str, Dataset], columns: tuple[str, ...]) -> str:
    digest = hashlib.sha256()
    for split in sorted(splits):
        digest.update(f"{split} {len(splits[split])}\n".encode())
        there = [column for column in columns if column in splits[split].column_names]
        for row in splits[split].select_columns(there):
            digest.update(json.dumps([row[column] for column in there], ensure_ascii=False, default=str).encode())
            digest.update(b"\n")
    return digest.hexdigest()
