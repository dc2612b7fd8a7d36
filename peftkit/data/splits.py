"""Splits of labelled rows: row checks, missing splits, size limits and fingerprint."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from datasets import ClassLabel, Dataset, Features, Value

from peftkit.data.sources import (
    describe_split_files,
    format_path,
    is_remote,
    list_split_files,
    load_rows,
    locate_split,
)
from peftkit.errors import UserError
from peftkit.recipe.schema import DataConfig
from peftkit.tasks import Task

HELD_OUT_SHARE = 0.15
# Rows per batch in computing the fingerprint; limits the number of Python objects.
ROWS_PER_BATCH = 1000


@dataclass(frozen=True, kw_only=True)
class Splits:
    """The data of one run.

    Attributes:
        train, validation, test: Rows with at least the columns of the task.
        labels: Label names in the order of their ids.
        fingerprint: SHA-256 over the task's columns of every split; equal only for equal rows in equal order.
        decisions: Automatic choices, one sentence each.
        origins: Source of the rows of each split, and the row numbers in that source.
    """

    train: Dataset
    validation: Dataset
    test: Dataset
    labels: tuple[str, ...]
    fingerprint: str
    decisions: tuple[str, ...] = ()
    origins: Mapping[str, tuple[str, Sequence[int]]] = field(default_factory=dict)

    def locate_row(self, split: str, row: int) -> str:
        """Return the source of a row and the row number in that source."""
        source, numbers = self.origins[split]
        return f"{source} row {numbers[row]}"

    @property
    def rows(self) -> dict[str, Dataset]:
        """The three splits, by name."""
        return {"train": self.train, "validation": self.validation, "test": self.test}

    def describe(self) -> dict[str, Any]:
        """Return the data section of the run report."""
        return {
            "fingerprint": self.fingerprint,
            "rows": {split: len(rows) for split, rows in self.rows.items()},
            "labels": list(self.labels),
            "decisions": list(self.decisions),
        }


def load_splits(config: DataConfig, task: Task) -> Splits:
    """Load the data, check every row, create missing splits, limit the sizes and compute the fingerprint.

    Raises UserError for a missing file, split or column, or for the first invalid row.
    """
    found = find_splits(config, task)
    labels = task.find_labels(found["train"])
    if problems := find_row_problems(config, task, found, labels):
        more = f" (and {len(problems) - 1} more; run peftkit check to list them)" if len(problems) > 1 else ""
        raise UserError(f"{problems[0]}{more}")
    return complete_splits(config, task, found, labels)


def reload_splits(config: DataConfig, task: Task, fingerprint: str, *, allow_remote: bool) -> Splits:
    """Load the data of a finished run again.

    A run folder may come from another person. A query, database, Hub dataset or URL is read only with `allow_remote`.
    Raises UserError for data that is remote, missing or changed.
    """
    if is_remote(config) and not allow_remote:
        kind = "a database" if config.sql is not None else "remote data"
        raise UserError(f"data.path: {format_path(config)}: the run used {kind}; pass --reload_data to read it")
    splits = load_splits(config, task)
    if splits.fingerprint != fingerprint:
        raise UserError(
            f"data.path: {format_path(config)}: the data has changed since training; restore the training data"
        )
    return splits


def complete_splits(config: DataConfig, task: Task, found: Mapping[str, Dataset], labels: tuple[str, ...]) -> Splits:
    """Create missing splits and limit the size of each split. Raises UserError for a split without rows."""
    splits = dict(found)
    split_names = _name_splits(config)
    files = list_split_files(config)
    sources = {split: locate_split(config, split_names[split], files) for split in splits}
    for split, rows in splits.items():
        if not len(rows):
            raise UserError(f"data: {sources[split]} has no rows; use another source")
    decisions = [
        f"{split} has {describe_split_files(files[split_names[split]])}"
        for split in found
        if len(files.get(split_names[split], ())) > 1
    ]
    decisions += [
        f"{split} uses the training split '{split_names[split]}'; its scores measure fit, not generalization"
        for split in ("validation", "test")
        if split_names[split] == config.train_split
    ]
    if config.validation_split == config.test_split != config.train_split:
        decisions.append(
            f"validation and test share split '{config.test_split}'; test scores are not independent of tuning"
        )
    origins = {split: (sources[split], list(range(len(rows)))) for split, rows in splits.items()}

    def select_rows(split: str, parent: str, rows: Sequence[int]) -> None:
        source, numbers = origins[parent]
        splits[split], origins[split] = splits[parent].select(rows), (source, [numbers[row] for row in rows])

    for split in ("test", "validation"):
        if split not in splits:
            remaining, held_out, how = _hold_out(splits["train"], task, config.seed)
            select_rows(split, "train", held_out)
            select_rows("train", "train", remaining)
            decisions.append(
                f"no {split} split: {len(splits[split])} of {len(splits['train']) + len(splits[split])} training rows "
                f"held out ({how}, seed {config.seed})"
            )
    limits = {"train": config.max_train_samples, "validation": config.max_eval_samples, "test": config.max_eval_samples}
    for split, limit in limits.items():
        if limit is not None and limit < len(splits[split]):
            shuffled = Dataset.from_dict({"row": range(len(splits[split]))}).shuffle(seed=config.seed)
            select_rows(split, split, shuffled["row"][:limit])
        if not len(splits[split]):
            raise UserError(f"data: {split} has no rows; increase the row limits")
    fingerprint = compute_fingerprint(splits, (*task.columns.required, *task.columns.eval_only))
    return Splits(**splits, labels=labels, fingerprint=fingerprint, decisions=tuple(decisions), origins=origins)


def find_splits(config: DataConfig, task: Task) -> dict[str, Dataset]:
    """Load the existing splits by `train`, `validation` and `test`. Raises UserError for a missing one."""
    found = load_rows(config)
    if config.train_split not in found:
        raise UserError(f"data.train_split: no split '{config.train_split}'; use one of {', '.join(found)}")
    splits = {"train": found[config.train_split]}
    for split, name in (("validation", config.validation_split), ("test", config.test_split)):
        if name in found:
            splits[split] = found[name]
        elif name != split:
            raise UserError(f"data.{split}_split: no split '{name}'; use one of {', '.join(found)}")
    for split, rows in splits.items():
        for column in task.columns.required:
            if column not in rows.column_names:
                raise UserError(_describe_missing_column(config, task, split, column, rows))
        for column in task.columns.eval_only if split != "train" else ():
            if column not in rows.column_names:
                raise UserError(_describe_missing_column(config, task, split, column, rows))
    return splits


def _describe_missing_column(config: DataConfig, task: Task, split: str, column: str, rows: Dataset) -> str:
    options = " or ".join(f"--task.{name}" for name in task.columns.fields if getattr(task, name) == column)
    source = locate_split(config, _name_splits(config)[split], list_split_files(config))
    return (
        f"data.path: {source} has no column '{column}' (columns: {', '.join(rows.column_names)}); "
        f"set the column with {options}"
    )


def _name_splits(config: DataConfig) -> dict[str, str]:
    """Return the names in the data of `train`, `validation` and `test`."""
    return {"train": config.train_split, "validation": config.validation_split, "test": config.test_split}


def find_row_problems(
    config: DataConfig, task: Task, splits: Mapping[str, Dataset], labels: Sequence[str]
) -> list[str]:
    """Return one line per invalid row, with file and row number."""
    split_names, files = _name_splits(config), list_split_files(config)
    return [
        problem
        for split, rows in splits.items()
        for problem in task.validate(rows, labels, locate_split(config, split_names[split], files))
    ]


def _hold_out(train: Dataset, task: Task, seed: int) -> tuple[list[int], list[int], str]:
    """Split the training rows into remaining and held-out rows; also return a description of the split.

    Stratified by label if the task has one label per row and every label has enough rows.
    """
    rows = Dataset.from_dict({"row": range(len(train))})
    how = "at random"
    parts = None
    if task.columns.stratify is not None:
        names = [str(value) for value in train[task.columns.stratify][:]]
        ids = {name: label_id for label_id, name in enumerate(sorted(set(names)))}
        labelled = Dataset.from_dict(
            {"row": range(len(train)), "label": [ids[name] for name in names]},
            features=Features({"row": Value("int64"), "label": ClassLabel(names=list(ids))}),
        )
        try:
            parts = labelled.train_test_split(test_size=HELD_OUT_SHARE, stratify_by_column="label", seed=seed)
            how = "stratified"
        except ValueError:
            how = "not stratified: too few rows of a label"
    if parts is None:
        if len(train) < 2:
            raise UserError(
                "data: train has only 1 row, too few for new splits; set data.validation_split and data.test_split"
            )
        parts = rows.train_test_split(test_size=HELD_OUT_SHARE, seed=seed)
    return parts["train"]["row"][:], parts["test"]["row"][:], how


def compute_fingerprint(splits: dict[str, Dataset], columns: tuple[str, ...]) -> str:
    """Return the SHA-256 of the columns of all splits, one line of JSON per row."""
    digest = hashlib.sha256()
    for split in sorted(splits):
        digest.update(f"{split} {len(splits[split])}\n".encode())
        present = [column for column in columns if column in splits[split].column_names]
        for batch in splits[split].select_columns(present).iter(batch_size=ROWS_PER_BATCH):
            for values in zip(*(batch[column] for column in present), strict=True):
                digest.update(json.dumps(values, ensure_ascii=False, default=str).encode())
                digest.update(b"\n")
    return digest.hexdigest()
