"""Splits of labelled rows: checked, held out if missing, limited in size, and fingerprinted."""

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
# Rows that are Python objects at a time while the fingerprint is computed.
ROWS_PER_BATCH = 1000


@dataclass(frozen=True, kw_only=True)
class Splits:
    """The data of one run.

    Attributes:
        train, validation, test: The rows, with at least the task's columns.
        labels: Label names, by label id.
        fingerprint: SHA-256 over the task's columns of every split; equal only for equal rows in equal order.
        decisions: Choices made for the user, one sentence each.
        origins: By split, the source of its rows and their row numbers there.
    """

    train: Dataset
    validation: Dataset
    test: Dataset
    labels: tuple[str, ...]
    fingerprint: str
    decisions: tuple[str, ...] = ()
    origins: Mapping[str, tuple[str, Sequence[int]]] = field(default_factory=dict)

    def locate_row(self, split: str, row: int) -> str:
        """Return the source and the number there of a split's row."""
        source, numbers = self.origins[split]
        return f"{source} row {numbers[row]}"

    @property
    def rows(self) -> dict[str, Dataset]:
        """The three splits, by name."""
        return {"train": self.train, "validation": self.validation, "test": self.test}

    def describe(self) -> dict[str, Any]:
        """Return the data section of the run's report."""
        return {
            "fingerprint": self.fingerprint,
            "rows": {split: len(rows) for split, rows in self.rows.items()},
            "labels": list(self.labels),
            "decisions": list(self.decisions),
        }


def load_splits(config: DataConfig, task: Task) -> Splits:
    """Load the data, check every row, make missing splits, limit their sizes, and compute the fingerprint.

    Raises UserError for a missing file, split or column, or for the first invalid row.
    """
    found = find_splits(config, task)
    labels = task.find_labels(found["train"])
    if problems := find_row_problems(config, task, found, labels):
        more = f" (and {len(problems) - 1} more; peftkit check lists them)" if len(problems) > 1 else ""
        raise UserError(f"{problems[0]}{more}")
    return complete_splits(config, task, found, labels)


def reload_splits(config: DataConfig, task: Task, fingerprint: str, *, allow_remote: bool) -> Splits:
    """Load the data of a finished run again.

    A run folder may come from someone else: the query, database, Hub dataset or web address that it names is read
    only with `allow_remote`. Raises UserError for data that is remote, missing or changed.
    """
    if is_remote(config) and not allow_remote:
        kind = "a database" if config.sql is not None else "remote data"
        raise UserError(f"data.path: {format_path(config)}: the run folder names {kind}; pass --reload_data to read it")
    splits = load_splits(config, task)
    if splits.fingerprint != fingerprint:
        raise UserError(f"data.path: {format_path(config)}: the data has changed since training")
    return splits


def complete_splits(config: DataConfig, task: Task, found: Mapping[str, Dataset], labels: tuple[str, ...]) -> Splits:
    """Make the missing splits and limit the sizes of all. Raises UserError for a split without rows."""
    splits = dict(found)
    split_names = _name_splits(config)
    files = list_split_files(config)
    sources = {split: locate_split(config, split_names[split], files) for split in splits}
    for split, rows in splits.items():
        if not len(rows):
            raise UserError(f"data: {sources[split]} has no rows")
    decisions = [
        f"{split} is {describe_split_files(files[split_names[split]])}"
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

    def take(split: str, of: str, rows: Sequence[int]) -> None:
        source, numbers = origins[of]
        splits[split], origins[split] = splits[of].select(rows), (source, [numbers[row] for row in rows])

    for split in ("test", "validation"):
        if split not in splits:
            remaining, held_out, how = _hold_out(splits["train"], task, config.seed)
            take(split, "train", held_out)
            take("train", "train", remaining)
            decisions.append(
                f"no {split} split: {len(splits[split])} of {len(splits['train']) + len(splits[split])} training rows "
                f"held out ({how}, seed {config.seed})"
            )
    limits = {"train": config.max_train_samples, "validation": config.max_eval_samples, "test": config.max_eval_samples}
    for split, limit in limits.items():
        if limit is not None and limit < len(splits[split]):
            shuffled = Dataset.from_dict({"row": range(len(splits[split]))}).shuffle(seed=config.seed)
            take(split, split, shuffled["row"][:limit])
        if not len(splits[split]):
            raise UserError(f"data: {split} has no rows")
    fingerprint = compute_fingerprint(splits, (*task.columns.required, *task.columns.eval_only))
    return Splits(**splits, labels=labels, fingerprint=fingerprint, decisions=tuple(decisions), origins=origins)


def find_splits(config: DataConfig, task: Task) -> dict[str, Dataset]:
    """Load the splits that the data has, by purpose. Raises UserError for a missing split or column."""
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
    """Return the names that the splits have in the data, by purpose."""
    return {"train": config.train_split, "validation": config.validation_split, "test": config.test_split}


def find_row_problems(
    config: DataConfig, task: Task, splits: Mapping[str, Dataset], labels: Sequence[str]
) -> list[str]:
    """Return a line for each invalid row, with its file and number."""
    split_names, files = _name_splits(config), list_split_files(config)
    return [
        problem
        for split, rows in splits.items()
        for problem in task.validate(rows, labels, locate_split(config, split_names[split], files))
    ]


def _hold_out(train: Dataset, task: Task, seed: int) -> tuple[list[int], list[int], str]:
    """Divide the training rows in remaining and held-out ones, and describe how.

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
            how = "not stratified: some label has too few rows"
    if parts is None:
        if len(train) < 2:
            raise UserError(
                "data: train has 1 row, too few to hold out others; set data.validation_split and data.test_split"
            )
        parts = rows.train_test_split(test_size=HELD_OUT_SHARE, seed=seed)
    return parts["train"]["row"][:], parts["test"]["row"][:], how


def compute_fingerprint(splits: dict[str, Dataset], columns: tuple[str, ...]) -> str:
    """Return the SHA-256 of the columns of all splits, a row a line of JSON."""
    digest = hashlib.sha256()
    for split in sorted(splits):
        digest.update(f"{split} {len(splits[split])}\n".encode())
        present = [column for column in columns if column in splits[split].column_names]
        for batch in splits[split].select_columns(present).iter(batch_size=ROWS_PER_BATCH):
            for values in zip(*(batch[column] for column in present), strict=True):
                digest.update(json.dumps(values, ensure_ascii=False, default=str).encode())
                digest.update(b"\n")
    return digest.hexdigest()
