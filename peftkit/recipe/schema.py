"""The recipe of a run: model, data, task, method and training arguments."""

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from peftkit.errors import UserError
from peftkit.recipe.method import Method
from peftkit.tasks import SequenceClassification, Task

# Bytes in UTF-8. File systems allow 255, and a second run gets a number after its name.
MAX_NAME_BYTES = 200


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The pretrained model; names as in `from_pretrained`.

    Args:
        name_or_path: A hub id, a local folder, `demo`: the small BERT that the extra `demo` installs, or
            `demo-seq2seq`: a very small T5 included in peftkit.
        revision: Branch, tag or commit on the hub.
        dtype: Dtype of the loaded weights: `float32`, `bfloat16`, `float16`, or `auto` for that of the checkpoint.
        trust_remote_code: Run code from the checkpoint. Use it only for a source that you trust. Accepted from the
            command line and from Python, not from a YAML file.
    """

    name_or_path: str = "demo"
    revision: str | None = None
    dtype: str = "float32"
    trust_remote_code: bool = False


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Labelled data; names as in `datasets.load_dataset`.

    Args:
        path: A hub id, a local folder, a file (csv, tsv, json, jsonl, parquet, arrow), a SQLite file or a database's
            URL with `sql`, or the text of installed packages: `demo` (docstrings and their library),
            `demo-entities` (code in docstrings) or `demo-summaries` (docstrings and their first line).
        name: Configuration of the dataset on the hub.
        revision: Branch, tag or commit on the hub.
        data_files: Files by split, such as `{train: a.jsonl, test: b.jsonl}`, relative to `path` when it is a folder.
        train_split: Name of the training split.
        validation_split: Name of the validation split; split off train if missing.
        test_split: Name of the test split; split off train if missing.
        sql: A query, for data in a database.
        seed: Seed for splitting and sampling rows; independent of the training seed.
        max_train_samples: Maximum number of training rows, sampled with `seed`.
        max_eval_samples: Maximum number of validation rows and of test rows.
    """

    path: str = "demo"
    name: str | None = None
    revision: str | None = None
    data_files: dict[str, str] | None = None
    train_split: str = "train"
    validation_split: str = "validation"
    test_split: str = "test"
    sql: str | None = None
    seed: int = 1
    max_train_samples: int | None = None
    max_eval_samples: int | None = None


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The definition of a run.

    Args:
        name: Name of the run folder and of the run in tables.
        model: The pretrained model.
        data: The labelled data.
        task: The task; a data class of `peftkit.tasks`.
        method: The fine-tuning method.
        training: Arguments of `transformers.TrainingArguments`.
    """

    name: str = "run"
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    task: Task = field(default_factory=SequenceClassification)
    method: Method = field(default_factory=Method)
    training: Mapping[str, Any] = field(default_factory=dict)


def check_name(name: str) -> None:
    """Raise UserError for a name that is not a folder name: a run is saved in `runs/NAME`."""
    bad = [char for char in name if char in "/\\" or unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp")]
    if bad:
        raise UserError(f"name: contains {bad[0]!a} (expected a folder name); use another name")
    if not name.strip() or name in (".", ".."):
        raise UserError(f"name: '{name}' is not the name of a folder; use another name")
    if (length := len(name.encode())) > MAX_NAME_BYTES:
        raise UserError(
            f"name: is too long (expected at most {MAX_NAME_BYTES} bytes, got {length}); use a shorter name"
        )
