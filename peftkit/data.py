"""Labelled data to splits: a hub id, a local folder, a file, a query, or the embedded docstrings."""

import hashlib
import importlib.util
import json
import os
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas
from datasets import Dataset, DatasetDict, load_dataset, load_dataset_builder, load_from_disk
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

from peftkit.demo.docstrings import load_docstrings
from peftkit.demo.entities import load_entities
from peftkit.demo.summaries import load_summaries
from peftkit.errors import UserError
from peftkit.files import without_password
from peftkit.recipe import DataConfig
from peftkit.tasks import Task

# File name ending -> builder of `datasets` and its arguments.
FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    ".csv": ("csv", {}),
    ".tsv": ("csv", {"sep": "\t"}),
    ".json": ("json", {}),
    ".jsonl": ("json", {}),
    ".parquet": ("parquet", {}),
    ".arrow": ("arrow", {}),
}
HELD_OUT_SHARE = 0.15
DEMOS: dict[str, Callable[[], DatasetDict]] = {
    "demo": load_docstrings,
    "demo-entities": load_entities,
    "demo-summaries": load_summaries,
}


@dataclass(frozen=True, kw_only=True)
class Splits:
    """The data of one run.

    Attributes:
        train, validation, test: The rows, with the task's columns among theirs.
        labels: Names in the order of their ids.
        fingerprint: SHA-256 over the task's columns of every split; equal only for equal rows in equal order.
        decisions: What was decided on the user's behalf, a sentence each.
    """

    train: Dataset
    validation: Dataset
    test: Dataset
    labels: tuple[str, ...]
    fingerprint: str
    decisions: tuple[str, ...] = ()

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
    splits = find_splits(config, task)
    labels = task.find_labels(splits["train"])
    if problems := row_problems(config, task, splits, labels):
        more = f" (and {len(problems) - 1} more; peftkit check lists them)" if len(problems) > 1 else ""
        raise UserError(f"{problems[0]}{more}")
    names = {"validation": config.validation_split, "test": config.test_split}
    decisions = [
        f"{split} is {name}, the training rows: its scores tell only how well they were learned"
        for split, name in names.items()
        if name == config.train_split
    ]
    for split in ("test", "validation"):
        if split not in splits:
            splits["train"], splits[split], how = _hold_out(splits["train"], task, config.seed)
            decisions.append(
                f"no {split} split: {len(splits[split])} of {len(splits['train']) + len(splits[split])} training rows "
                f"held out ({how}, seed {config.seed})"
            )
    limits = {"train": config.max_train_samples, "validation": config.max_eval_samples, "test": config.max_eval_samples}
    for split, limit in limits.items():
        if limit is not None and limit < len(splits[split]):
            splits[split] = splits[split].shuffle(seed=config.seed).select(range(limit))
        if not len(splits[split]):
            raise UserError(f"data: {split} has no rows")
    fingerprint = _fingerprint(splits, task.columns)
    return Splits(**splits, labels=labels, fingerprint=fingerprint, decisions=tuple(decisions))


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
                words = " or ".join(f"--task.{word}" for word in task.column_fields)
                raise UserError(
                    f"data.path: {where(config, split)} has no column '{column}' among "
                    f"{', '.join(rows.column_names)}; name the right one with {words}"
                )
    return splits


def row_problems(config: DataConfig, task: Task, splits: Mapping[str, Dataset], labels: Sequence[str]) -> list[str]:
    """A line for each row that can't be used, with its file and number."""
    return [problem for split, rows in splits.items() for problem in task.problems(rows, labels, where(config, split))]


def where(config: DataConfig, split: str) -> str:
    """What a split is called in an error: its file where it has one of its own."""
    name = {"validation": config.validation_split, "test": config.test_split}.get(split, config.train_split)
    if config.data_files is not None and name in config.data_files:
        return config.data_files[name]
    alone = config.path in DEMOS or Path(config.path).expanduser().is_file()
    return shown_path(config) if alone else f"{shown_path(config)}, {name}"


def shown_path(config: DataConfig) -> str:
    """The path without the password that a database's address may hold."""
    return without_password(config.path)


def load_rows(config: DataConfig) -> DatasetDict:
    """The rows as they are, by split; a single file is a split `train`. Raises UserError when they can't be had."""
    if config.path in DEMOS:
        return DEMOS[config.path]()
    path = Path(config.path).expanduser()
    try:
        if config.sql is not None:
            return DatasetDict({config.train_split: _query(config.path, config.sql)})
        if config.data_files is not None:
            folder = path if path.is_dir() else Path()
            files = {split: folder / Path(file).expanduser() for split, file in config.data_files.items()}
            for split, file in files.items():
                if not file.is_file():
                    raise UserError(f"data.data_files.{split}: {file}: no such file")
            return DatasetDict({split: _file(file, split) for split, file in files.items()})
        if path.is_file():
            return DatasetDict({config.train_split: _file(path, config.train_split)})
        if path.is_dir():
            if (path / "dataset_dict.json").exists():
                return load_from_disk(str(path))
            return _folder(str(path), config.name)
        if config.path.startswith((".", "/", "~")) or path.suffix in FORMATS:
            raise UserError(f"data.path: {config.path}: no such file or folder")
        return load_dataset(config.path, config.name, revision=config.revision)
    except (DatasetGenerationError, DatasetNotFoundError, OSError, ValueError, RuntimeError, ImportError) as error:
        cause = error.__cause__ or error
        said = without_password(" ".join(str(cause).split())[:300])
        raise UserError(f"data.path: {shown_path(config)}: can't be read: {said}") from error


def _file(path: Path, split: str) -> Dataset:
    builder, options = _format(path)
    return load_dataset(builder, data_files={split: str(path)}, split=split, **options)


def _folder(path: str, name: str | None) -> DatasetDict:
    """The splits of a folder; each with the columns that it has, which need not be the same."""
    files = load_dataset_builder(path, name).config.data_files
    if not files:
        return load_dataset(path, name)
    return DatasetDict(
        {split: load_dataset(path, name, data_files={split: of}, split=split) for split, of in files.items()}
    )


def _query(path: str, sql: str) -> Dataset:
    """The rows of a query, read anew each time: a database changes. `path` is a SQLite file or a database's address."""
    file = Path(path).expanduser()
    try:
        if file.is_file():
            with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as connection:
                return Dataset.from_pandas(pandas.read_sql(sql, connection), preserve_index=False)
        if "://" not in path:
            raise UserError(
                f"data.path: {path}: no such SQLite file, nor a database's address such as postgresql://..."
            )
        if without_password(path) != path:
            raise UserError("data.path: a password would be saved; put it into the environment: user:$PASSWORD@host")
        if importlib.util.find_spec("sqlalchemy") is None:
            raise UserError("data.path: a database's address needs SQLAlchemy; run: pip install 'peftkit[sql]'")
        return Dataset.from_pandas(pandas.read_sql(sql, os.path.expandvars(path)), preserve_index=False)
    except UserError:
        raise
    except Exception as error:
        # Each driver has errors of its own.
        said = without_password(" ".join(str(error).split())[:300])
        raise UserError(f"data.sql: the query failed: {said}") from error


def with_files(config: DataConfig, file: Path) -> DataConfig:
    """The same columns, read from one file."""
    return replace(config, path=str(file), data_files=None, name=None, revision=None)


def _format(path: Path) -> tuple[str, dict[str, Any]]:
    try:
        return FORMATS[path.suffix.lower()]
    except KeyError:
        raise UserError(f"{path.name}: unknown file format '{path.suffix}'; one of {' '.join(FORMATS)}") from None


def _hold_out(train: Dataset, task: Task, seed: int) -> tuple[Dataset, Dataset, str]:
    """Hold out a share of the rows, stratified by label where the task has one and every label has rows enough."""
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
    return train.select(parts["train"]["row"][:]), train.select(parts["test"]["row"][:]), how


def _fingerprint(splits: dict[str, Dataset], columns: tuple[str, ...]) -> str:
    digest = hashlib.sha256()
    for split in sorted(splits):
        digest.update(f"{split} {len(splits[split])}\n".encode())
        for row in splits[split].select_columns(list(columns)):
            digest.update(json.dumps([row[column] for column in columns], ensure_ascii=False, default=str).encode())
            digest.update(b"\n")
    return digest.hexdigest()
