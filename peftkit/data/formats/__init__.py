"""File formats: one module per family of formats, read alike for training and for prediction.

A new built-in format is a `DataFormat` in a module here and a name in `BUILT_IN`; a user's own file registers one with
`peftkit.register_data_format`. Compressed files and other encodings belong here too.
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
from peftkit.data.formats.json_lines import JSON, JSONL
from peftkit.data.formats.tables import CSV, TSV
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
