"""Rows from where they lie: a hub id, a local folder, a file, a query, or the embedded text."""

import csv
import importlib.util
import os
import sqlite3
import warnings
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pandas
from datasets import Dataset, DatasetDict, concatenate_datasets, load_dataset, load_dataset_builder, load_from_disk
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError
from huggingface_hub import DatasetCard

from peftkit.data.demo.docstrings import load_docstrings
from peftkit.data.demo.entities import load_entities
from peftkit.data.demo.summaries import load_summaries
from peftkit.errors import UserError
from peftkit.recipe.schema import DataConfig
from peftkit.system.files import redact_password

# File name ending -> arguments of pandas. A quotation mark in a TSV is one of the text's.
TABLES: dict[str, dict[str, Any]] = {".csv": {}, ".tsv": {"sep": "\t", "quoting": csv.QUOTE_NONE}}
# File name ending -> builder of `datasets`.
# What `datasets` leaves in a folder that it saved.
SAVED = ("dataset_dict.json", "state.json")
BUILDERS = {".json": "json", ".jsonl": "json", ".parquet": "parquet", ".arrow": "arrow"}
DEMOS: dict[str, Callable[[], DatasetDict]] = {
    "demo": load_docstrings,
    "demo-entities": load_entities,
    "demo-summaries": load_summaries,
}


def load_rows(config: DataConfig) -> DatasetDict:
    """The rows as they are, by split; a single file is a split `train`. Raises UserError when they can't be had."""
    if config.sql is not None and config.data_files is not None:
        raise UserError("data.sql: excludes data.data_files; leave one of them out")
    if config.path in DEMOS and config.sql is None and config.data_files is None:
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
            if any((path / name).exists() for name in SAVED):
                saved = load_from_disk(str(path))
                return saved if isinstance(saved, DatasetDict) else DatasetDict({config.train_split: saved})
            return _folder(str(path), config.name)
        if _is_local(config.path):
            raise UserError(f"data.path: {config.path}: no such file or folder")
        return load_dataset(config.path, config.name, revision=config.revision)
    except UserError:
        raise
    except StopIteration:
        raise UserError(f"data.path: {shown_path(config)}: has no rows") from None
    except (
        DatasetGenerationError,
        DatasetNotFoundError,
        OSError,
        ValueError,
        RuntimeError,
        ImportError,
        Warning,
    ) as error:
        cause = error.__cause__ or error
        said = redact_password(" ".join(str(cause).split())[:300])
        raise UserError(f"data.path: {shown_path(config)}: can't be read: {said}") from error


def is_remote(config: DataConfig) -> bool:
    """Whether reading the rows runs a query, or opens a connection: to a database, the Hub or an address."""
    if config.sql is not None:
        return True
    if config.data_files is not None or config.path in DEMOS:
        return False
    path = Path(config.path).expanduser()
    if not path.is_dir():
        return not path.exists() and not _is_local(config.path)
    card = path / "README.md"
    # The metadata of a local folder may list files by their address.
    return card.is_file() and "://" in str(DatasetCard.load(card, ignore_metadata_errors=True).data.get("configs"))


def _is_local(path: str) -> bool:
    return path.startswith((".", "/", "~")) or Path(path).suffix in (*TABLES, *BUILDERS)


def _file(path: Path, split: str) -> Dataset:
    suffix = path.suffix.lower()
    if suffix in TABLES:
        return _table(path)
    if suffix not in BUILDERS:
        known = " ".join((*TABLES, *BUILDERS))
        raise UserError(f"{path}: unknown file format '{path.suffix}'; one of {known}, or a database with data.sql")
    return load_dataset(BUILDERS[suffix], data_files={split: str(path)}, split=split)


def _table(path: Path) -> Dataset:
    """What a cell holds is text: 01 is not 1, and "NA" and "None" are words."""
    options = {"dtype": str, "keep_default_na": False, "index_col": False, "skip_blank_lines": False}
    with warnings.catch_warnings(action="error", category=pandas.errors.ParserWarning):
        try:
            rows = pandas.read_csv(path, **options, **TABLES[path.suffix.lower()])
        except pandas.errors.EmptyDataError:
            raise UserError(f"{path}: has no rows") from None
    # A blank line between rows is one; at the end of a file it is none.
    filled = rows.fillna("").map(str.strip).any(axis=1)
    return Dataset.from_pandas(rows[: filled[::-1].idxmax() + 1 if filled.any() else 0], preserve_index=False)


def _folder(path: str, name: str | None) -> DatasetDict:
    """The splits of a folder; each with the columns that it has, which need not be the same."""
    files = _files(path, name)
    if not files:
        return load_dataset(path, name)

    def rows(split: str, of: list[str]) -> Dataset:
        if all(Path(file).suffix.lower() in TABLES for file in of):
            return concatenate_datasets([_table(Path(file)) for file in of])
        return load_dataset(path, name, data_files={split: of}, split=split)

    return DatasetDict({split: rows(split, of) for split, of in files.items()})


def _files(path: str, name: str | None) -> dict[str, list[str]]:
    """The files of each split of a folder, as `datasets` finds them by their names."""
    return {str(split): list(of) for split, of in (load_dataset_builder(path, name).config.data_files or {}).items()}


def split_file(config: DataConfig, split: str) -> str | None:
    """The one file that a split is read from, as the user would name it; None where there is none, or are several."""
    if config.data_files is not None:
        return config.data_files.get(split)
    if config.sql is None and Path(config.path).expanduser().is_file():
        return config.path
    names = _names_in_folder(config, split)
    return str(Path(config.path) / names[0]) if len(names) == 1 else None


def several_files(config: DataConfig, split: str) -> str | None:
    """The names of the files of a folder that make up a split, where they are more than one."""
    names = _names_in_folder(config, split)
    if len(names) < 2:
        return None
    return f"{len(names)} files: {', '.join(names[:5])}" + (" and more" if len(names) > 5 else "")


def _names_in_folder(config: DataConfig, split: str) -> list[str]:
    path = Path(config.path).expanduser()
    told = config.sql is not None or config.data_files is not None or not path.is_dir()
    if told or any((path / name).exists() for name in SAVED):
        return []
    return [Path(file).name for file in _files(str(path), config.name).get(split, [])]


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
        if redact_password(path) != path:
            raise UserError("data.path: a password would be saved; put it into the environment: user:$PASSWORD@host")
        if importlib.util.find_spec("sqlalchemy") is None:
            raise UserError("data.path: a database's address needs SQLAlchemy; run: pip install 'peftkit[sql]'")
        return Dataset.from_pandas(pandas.read_sql(sql, os.path.expandvars(path)), preserve_index=False)
    except UserError:
        raise
    except Exception as error:
        # Each driver has errors of its own.
        said = redact_password(" ".join(str(error).split())[:300])
        raise UserError(f"data.sql: the query failed: {said}") from error


def shown_path(config: DataConfig) -> str:
    """The path without the password that a database's address may hold."""
    return redact_password(config.path)
