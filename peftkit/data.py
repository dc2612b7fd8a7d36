"""Labelled data to splits: a hub id, a local folder, a file, or the embedded docstrings."""

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset, DatasetDict, load_dataset, load_from_disk
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

from peftkit.demo.docstrings import load_docstrings
from peftkit.errors import UserError
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

    def describe(self) -> dict[str, Any]:
        """The part of the report that tells of the data."""
        return {
            "fingerprint": self.fingerprint,
            "rows": {"train": len(self.train), "validation": len(self.validation), "test": len(self.test)},
            "labels": list(self.labels),
            "decisions": list(self.decisions),
        }


def load_splits(config: DataConfig, task: Task, seed: int) -> Splits:
    """Load, make the splits that are absent, cut to the asked size, and fingerprint.

    Raises UserError naming what is wrong: a missing file, split or column, an unreadable row.
    """
    found = load_rows(config)
    decisions: list[str] = []
    if config.train_split not in found:
        raise UserError(f"data.train_split: no split '{config.train_split}' among {', '.join(found)}")
    train = found[config.train_split]
    splits = {"train": train}
    for split, name in (("validation", config.validation_split), ("test", config.test_split)):
        if name in found:
            splits[split] = found[name]
        elif name != split:
            raise UserError(f"data.{split}_split: no split '{name}' among {', '.join(found)}")
    for split, rows in splits.items():
        for column in task.columns:
            if column not in rows.column_names:
                raise UserError(
                    f"data.path: {config.path}: {split} has no column '{column}' among {', '.join(rows.column_names)}; "
                    "name the right one with --task.text or --task.label"
                )
    for split in ("test", "validation"):
        if split not in splits:
            splits["train"], splits[split], how = _hold_out(splits["train"], task, seed)
            decisions.append(
                f"no {split} split: {len(splits[split])} of {len(splits['train']) + len(splits[split])} training rows "
                f"held out ({how}, seed {seed})"
            )
    limits = {"train": config.max_train_samples, "validation": config.max_eval_samples, "test": config.max_eval_samples}
    for split, limit in limits.items():
        if limit is not None and limit < len(splits[split]):
            splits[split] = splits[split].shuffle(seed=seed).select(range(limit))
        if not len(splits[split]):
            raise UserError(f"data: {split} has no rows")
    return Splits(
        **splits,
        labels=task.label_names(found[config.train_split]),
        fingerprint=_fingerprint(splits, task.columns),
        decisions=tuple(decisions),
    )


def load_rows(config: DataConfig) -> DatasetDict:
    """The rows as they are, by split; a single file is a split `train`. Raises UserError when they can't be had."""
    if config.path == "demo":
        return load_docstrings()
    path = Path(config.path).expanduser()
    try:
        if config.data_files is not None:
            folder = path if path.is_dir() else Path()
            files = {split: str(folder / Path(file).expanduser()) for split, file in config.data_files.items()}
            for split, file in files.items():
                if not Path(file).is_file():
                    raise UserError(f"data.data_files.{split}: {file}: no such file")
            builder, options = _format(Path(next(iter(files.values()))))
            return load_dataset(builder, data_files=files, **options)
        if path.is_file():
            builder, options = _format(path)
            return load_dataset(builder, data_files={config.train_split: str(path)}, **options)
        if path.is_dir():
            if (path / "dataset_dict.json").exists():
                return load_from_disk(str(path))
            return load_dataset(str(path), config.name)
        if config.path.startswith((".", "/", "~")) or path.suffix in FORMATS:
            raise UserError(f"data.path: {config.path}: no such file or folder")
        return load_dataset(config.path, config.name, revision=config.revision)
    except (DatasetGenerationError, DatasetNotFoundError, OSError, ValueError, RuntimeError, ImportError) as error:
        cause = error.__cause__ or error
        raise UserError(f"data.path: {config.path}: can't be read: {' '.join(str(cause).split())[:300]}") from error


def with_files(config: DataConfig, file: Path) -> DataConfig:
    """The same columns, read from one file."""
    return replace(config, path=str(file), data_files=None, name=None, revision=None)


def _format(path: Path) -> tuple[str, dict[str, Any]]:
    try:
        return FORMATS[path.suffix.lower()]
    except KeyError:
        raise UserError(f"{path.name}: unknown file format '{path.suffix}'; one of {' '.join(FORMATS)}") from None


def _hold_out(train: Dataset, task: Task, seed: int) -> tuple[Dataset, Dataset, str]:
    """Hold out a share of the rows, stratified by label where every label has rows enough."""
    label = task.columns[-1]
    encoded = train if isinstance(train.features[label], ClassLabel) else train.class_encode_column(label)
    try:
        parts = encoded.train_test_split(test_size=HELD_OUT_SHARE, stratify_by_column=label, seed=seed)
        how = "stratified"
    except ValueError:
        parts = encoded.train_test_split(test_size=HELD_OUT_SHARE, seed=seed)
        how = "not stratified: some label has too few rows"
    return parts["train"].cast(encoded.features), parts["test"].cast(encoded.features), how


def _fingerprint(splits: dict[str, Dataset], columns: tuple[str, ...]) -> str:
    digest = hashlib.sha256()
    for split in sorted(splits):
        digest.update(f"{split} {len(splits[split])}\n".encode())
        for row in splits[split].select_columns(list(columns)):
            digest.update(json.dumps([row[column] for column in columns], ensure_ascii=False, default=str).encode())
            digest.update(b"\n")
    return digest.hexdigest()
