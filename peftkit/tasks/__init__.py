"""Tasks: columns, model head, tokenization, predictions and metrics of each task.

`base` defines the Task protocol, `registry` the list of tasks. Recipes and manifests contain `peftkit.tasks.NAME`, so
that name must stay importable.
"""

from peftkit.tasks.base import (
    ColumnSpec,
    EncodedSplit,
    ModelSpec,
    Task,
    TrainerSpec,
    collect_settings,
    restore_settings,
)
from peftkit.tasks.multi_label_classification import MultiLabelClassification
from peftkit.tasks.registry import TASKS, get_task_path, register_task
from peftkit.tasks.seq2seq import Seq2Seq
from peftkit.tasks.sequence_classification import SequenceClassification
from peftkit.tasks.sequence_regression import SequenceRegression
from peftkit.tasks.token_classification import TokenClassification

__all__ = [
    "TASKS",
    "ColumnSpec",
    "EncodedSplit",
    "ModelSpec",
    "MultiLabelClassification",
    "Seq2Seq",
    "SequenceClassification",
    "SequenceRegression",
    "Task",
    "TokenClassification",
    "TrainerSpec",
    "collect_settings",
    "get_task_path",
    "register_task",
    "restore_settings",
]
