"""All tasks, in the order in which they are tried."""

from typing import Any

from peftkit.tasks.multi_label_classification import MultiLabelClassification
from peftkit.tasks.seq2seq import Seq2Seq
from peftkit.tasks.sequence_classification import SequenceClassification
from peftkit.tasks.sequence_regression import SequenceRegression
from peftkit.tasks.token_classification import TokenClassification

TASKS: tuple[Any, ...] = (
    SequenceClassification,
    MultiLabelClassification,
    SequenceRegression,
    TokenClassification,
    Seq2Seq,
)
