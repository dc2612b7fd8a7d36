"""File formats: one module per family of formats, for training and prediction.

A new built-in format is a `DataFormat` in a module of this package and an entry of `BUILT_IN`. A plug-in registers a
format with `peftkit.register_data_format`.
"""

from peftkit.data.formats.base import (
    BadRow,
    DataFormat,
    Row,
    find_format,
    get_format,
    iterate_rows,
    list_format_names,
    read_dataset,
    register_data_format,
)
from peftkit.data.formats.columnar import ARROW, PARQUET
from peftkit.data.formats.delimited import CSV, TSV
from peftkit.data.formats.json_lines import JSON, JSONL
from peftkit.data.formats.text import TEXT

BUILT_IN = (JSONL, JSON, CSV, TSV, PARQUET, ARROW, TEXT)
for _format in BUILT_IN:
    register_data_format(_format)

__all__ = [
    "BUILT_IN",
    "BadRow",
    "DataFormat",
    "Row",
    "find_format",
    "get_format",
    "iterate_rows",
    "list_format_names",
    "read_dataset",
    "register_data_format",
]  # fmt: skip
