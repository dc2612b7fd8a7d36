"""Data sources: a Hub dataset, a local folder or file, a database query, or the demo data."""

import importlib.util
import os
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path

from datasets import Dataset, DatasetDict, concatenate_datasets, load_dataset, load_dataset_builder, load_from_disk
from datasets.data_files import DataFilesDict, get_data_patterns, sanitize_patterns
from datasets.exceptions import DataFilesNotFoundError, DatasetGenerationError, DatasetNotFoundError
from huggingface_hub import DatasetCard

from peftkit.data.demo.docstrings import load_docstrings
from peftkit.data.demo.entities import load_entities
from peftkit.data.demo.summaries import load_summaries
from peftkit.data.formats import find_format, read_dataset
from peftkit.errors import UserError
from peftkit.recipe.schema import DataConfig
from peftkit.system.files import redact_password
from peftkit.system.shipped_files import find_shipped_recipe_file

# A folder written by `save_to_disk` contains one of these files.
SAVED = ("dataset_dict.json", "state.json")
DEMOS: dict[str, Callable[[], DatasetDict]] = {
    "demo": load_docstrings,
    "demo-entities": load_entities,
    "demo-summaries": load_summaries,
}


def load_rows(config: DataConfig) -> DatasetDict:
    """Load the unchanged rows of each split; a single file is the training split.

    Raises UserError for rows that cannot be read.
    """
    if config.sql is not None and config.data_files is not None:
        raise UserError("data.sql: cannot be combined with data.data_files; remove one of them")
    if config.path in DEMOS and config.sql is None and config.data_files is None:
        return DEMOS[config.path]()
    path = locate_path(config.path)
    try:
        if config.sql is not None:
            return DatasetDict({config.train_split: _read_query(config.path, config.sql)})
        if config.data_files is not None:
            folder = path if path.is_dir() else Path()
            files = {split: folder / Path(file).expanduser() for split, file in config.data_files.items()}
            for split, file in files.items():
                if not file.is_file():
                    raise UserError(f"data.data_files.{split}: {file}: no such file; use an existing file")
            return DatasetDict({split: read_dataset(file) for split, file in files.items()})
        if path.is_file():
            return DatasetDict({config.train_split: read_dataset(path)})
        if path.is_dir():
            if any((path / name).exists() for name in SAVED):
                saved = load_from_disk(str(path))
                return saved if isinstance(saved, DatasetDict) else DatasetDict({config.train_split: saved})
            return _read_folder(str(path), config.name)
        if _is_local(config.path):
            raise UserError(f"data.path: {config.path}: no such file or folder; use an existing path")
        return load_dataset(config.path, config.name, revision=config.revision)
    except UserError:
        raise
    except StopIteration:
        raise UserError(f"data.path: {format_path(config)}: no rows; use another source") from None
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
        reason = redact_password(" ".join(str(cause).split())[:300])
        raise UserError(f"data.path: {format_path(config)}: cannot be read: {reason}") from error


def is_remote(config: DataConfig) -> bool:
    """Return whether loading runs a query or opens a connection to a database, the Hub or a URL."""
    if config.sql is not None:
        return True
    if config.data_files is not None or config.path in DEMOS:
        return False
    path = locate_path(config.path)
    if not path.is_dir():
        return not path.exists() and not _is_local(config.path)
    card = path / "README.md"
    # The metadata of a local folder may contain URLs of files.
    return card.is_file() and "://" in str(DatasetCard.load(card, ignore_metadata_errors=True).data.get("configs"))


def locate_path(path: str) -> Path:
    """Return the local path; of a missing file `recipes/NAME` the file of the package."""
    return find_shipped_recipe_file(path) or Path(path).expanduser()


def _is_local(path: str) -> bool:
    return path.startswith((".", "/", "~")) or find_format(path) is not None


def _read_folder(path: str, name: str | None) -> DatasetDict:
    """Read the splits of a folder, each alone, because their columns may differ."""
    files = _find_files(path, name)
    if not files:
        return load_dataset(path, name)

    def read_split(split: str, split_files: list[str]) -> Dataset:
        if all(map(_has_own_reader, split_files)):
            return concatenate_datasets([read_dataset(Path(file)) for file in split_files])
        return load_dataset(path, name, data_files={split: split_files}, split=split)

    return DatasetDict({split: read_split(split, split_files) for split, split_files in files.items()})


def _has_own_reader(file: str) -> bool:
    """Return whether peftkit reads the file's format, not `datasets`."""
    data_format = find_format(file)
    return data_format is not None and data_format.is_trainable and data_format.read is None and "://" not in file


def _find_files(path: str, name: str | None) -> dict[str, list[str]]:
    """Find the files of each split of a folder by file name, as `datasets` does."""
    try:
        files = load_dataset_builder(path, name).config.data_files or {}
    except DataFilesNotFoundError:
        # `datasets` supports none of the formats; a registered format may.
        found = DataFilesDict.from_patterns(sanitize_patterns(get_data_patterns(path)), base_path=path)
        files = {split: [file for file in paths if find_format(file) is not None] for split, paths in found.items()}
        files = {split: paths for split, paths in files.items() if paths}
        if not files:
            raise
    return {str(split): list(paths) for split, paths in files.items()}


def list_split_files(config: DataConfig) -> dict[str, list[str]]:
    """List the file names of each split, if the data is a folder."""
    path = locate_path(config.path)
    if config.sql is not None or config.data_files is not None or not path.is_dir():
        return {}
    if any((path / name).exists() for name in SAVED):
        return {}
    return {split: [Path(file).name for file in files] for split, files in _find_files(str(path), config.name).items()}


def locate_split(config: DataConfig, split: str, files: Mapping[str, Sequence[str]]) -> str:
    """Return the source of a split for messages: its only file, else path and split name.

    `files` comes from `list_split_files`.
    """
    if config.data_files is not None:
        source = config.data_files.get(split)
    elif config.path in DEMOS or (config.sql is None and locate_path(config.path).is_file()):
        source = config.path
    else:
        names = files.get(split, ())
        source = str(Path(config.path) / names[0]) if len(names) == 1 else None
    return source or f"{format_path(config)}, {split}"


def describe_split_files(names: Sequence[str]) -> str:
    """Return the number of files of a split and the first file names."""
    return f"{len(names)} files: {', '.join(names[:5])}" + (" and more" if len(names) > 5 else "")


def _read_query(path: str, sql: str) -> Dataset:
    """Run a query and return the rows, without a cache because a database may change.

    `path` is a SQLite file or the URL of a database.
    """
    import pandas

    file = Path(path).expanduser()
    try:
        if file.is_file():
            with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as connection:
                return Dataset.from_pandas(pandas.read_sql(sql, connection), preserve_index=False)
        if "://" not in path:
            raise UserError(
                f"data.path: {path}: no such SQLite file (expected a file or a URL such as postgresql://...)"
            )
        if redact_password(path) != path:
            raise UserError(
                "data.path: the password would be saved with the run; use an environment variable: user:$PASSWORD@host"
            )
        if importlib.util.find_spec("sqlalchemy") is None:
            raise UserError("data.path: a database URL needs SQLAlchemy; run pip install 'peftkit[sql]'")
        return Dataset.from_pandas(pandas.read_sql(sql, os.path.expandvars(path)), preserve_index=False)
    except UserError:
        raise
    except Exception as error:
        # Each database driver has its own error types.
        reason = redact_password(" ".join(str(error).split())[:300])
        raise UserError(f"data.sql: the query failed: {reason}") from error


def format_path(config: DataConfig) -> str:
    """Return the path without the password of a database URL."""
    return redact_password(config.path)
