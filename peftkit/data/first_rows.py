"""The first training rows of any source, and the label names that it declares."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset, Features
from pyarrow import ipc, parquet

from peftkit.data.formats import BadRow, DataFormat, find_format, iterate_rows, read_dataset
from peftkit.data.formats.base import describe_bad_row
from peftkit.data.sources import DEMOS, load_rows, locate_path
from peftkit.errors import UserError
from peftkit.recipe.schema import DataConfig


@dataclass(frozen=True, kw_only=True)
class FirstRows:
    """The first rows of the training split.

    Attributes:
        rows: The rows.
        is_whole: Whether there are no more rows.
        splits: Names of the splits of the source.
        train_split: Name of the split of the rows.
        label_names: By column, the names that the source declares for numbers.
    """

    rows: Sequence[Mapping[str, Any]]
    is_whole: bool
    splits: tuple[str, ...] = ("train",)
    train_split: str = "train"
    label_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def read_first_rows(path: str, limit: int) -> FirstRows:
    """Read at most `limit` training rows of a file, folder, Hub dataset or demo data. Raises UserError.

    Of a file no more rows are read; other sources are loaded as for training.
    """
    file = locate_path(path)
    if path not in DEMOS and file.is_file():
        data_format = find_format(file)
        if data_format is None or not data_format.is_trainable:
            # Raises the error for the unknown format.
            read_dataset(file)
        assert data_format is not None
        rows = list(islice(_iterate_good_rows(data_format, file), limit + 1))
        if not rows:
            raise UserError(f"{path}: has no rows")
        return FirstRows(rows=rows[:limit], is_whole=len(rows) <= limit, label_names=_read_declared_names(file))
    splits = load_rows(DataConfig(path=path))
    name = "train" if "train" in splits else max(splits, key=lambda split: len(splits[split]))
    train: Dataset = splits[name]
    return FirstRows(
        rows=train.select(range(min(limit, len(train)))).to_list(), is_whole=len(train) <= limit,
        splits=tuple(splits), train_split=name, label_names=_get_names(train.features),
    )  # fmt: skip


def _iterate_good_rows(data_format: DataFormat, file: Path) -> Iterator[Mapping[str, Any]]:
    for number, row in enumerate(iterate_rows(data_format, file)):
        if isinstance(row, BadRow):
            raise UserError(describe_bad_row(file, number, row))
        yield row


def _read_declared_names(file: Path) -> dict[str, tuple[str, ...]]:
    """Read the label names in the schema of a Parquet or Arrow file; none of other files."""
    if file.suffix.lower() == ".parquet":
        return _get_names(Features.from_arrow_schema(parquet.read_schema(file)))
    if file.suffix.lower() != ".arrow":
        return {}
    with file.open("rb") as binary:
        is_file = binary.read(6) == b"ARROW1"
        binary.seek(0)
        schema = ipc.open_file(binary).schema if is_file else ipc.open_stream(binary).schema
        return _get_names(Features.from_arrow_schema(schema))


def _get_names(features: Features) -> dict[str, tuple[str, ...]]:
    items = {name: getattr(feature, "feature", feature) for name, feature in features.items()}
    return {name: tuple(item.names) for name, item in items.items() if isinstance(item, ClassLabel)}
