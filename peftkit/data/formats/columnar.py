"""Parquet and Arrow.

For training `datasets` reads the file and maps the columns from disk. For prediction rows are read in slices.
"""

from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

import pyarrow
from datasets import Dataset, load_dataset
from pyarrow import ipc, parquet

from peftkit.data.formats.base import DataFormat, Row
from peftkit.data.formats.text import NOT_UTF8

# Rows converted to Python objects at a time.
ROWS_PER_SLICE = 1000


def stream_parquet(path: Path) -> Iterator[Row]:
    """Yield the rows of a Parquet file, without prefetching row groups."""
    with parquet.ParquetFile(path, pre_buffer=False, buffer_size=2**16) as file:
        for batch in file.iter_batches(ROWS_PER_SLICE, use_threads=False):
            yield from _split_batch(batch)


def stream_arrow(path: Path) -> Iterator[Row]:
    """Yield the rows of an Arrow file, in the stream or the file format."""
    with pyarrow.memory_map(str(path)) as mapped:
        try:
            batches: Iterable[pyarrow.RecordBatch] = ipc.open_stream(mapped)
        except pyarrow.ArrowInvalid:
            file = ipc.open_file(mapped)
            batches = (file.get_batch(number) for number in range(file.num_record_batches))
        for batch in batches:
            for start in range(0, batch.num_rows, ROWS_PER_SLICE):
                yield from _split_batch(batch.slice(start, ROWS_PER_SLICE))


def _split_batch(batch: pyarrow.RecordBatch) -> Iterator[Row]:
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:
        yield from (_read_row(batch.slice(index, 1)) for index in range(batch.num_rows))


def _read_row(batch: pyarrow.RecordBatch) -> Row:
    try:
        return batch.to_pylist()[0]
    except UnicodeDecodeError:
        return NOT_UTF8


def _read(builder: str, path: Path) -> Dataset:
    return load_dataset(builder, data_files=str(path), split="train")


PARQUET = DataFormat(
    name="parquet", extensions=(".parquet",), stream=stream_parquet, read=partial(_read, "parquet"), needs_path=True
)
ARROW = DataFormat(
    name="arrow", extensions=(".arrow",), stream=stream_arrow, read=partial(_read, "arrow"), needs_path=True
)
