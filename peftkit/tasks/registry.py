"""All tasks, built-in and registered, in the order in which a checkpoint is matched."""

import dataclasses
from typing import Any

from peftkit.errors import UserError
from peftkit.tasks.multi_label_classification import MultiLabelClassification
from peftkit.tasks.seq2seq import Seq2Seq
from peftkit.tasks.sequence_classification import SequenceClassification
from peftkit.tasks.sequence_regression import SequenceRegression
from peftkit.tasks.token_classification import TokenClassification

TASKS: list[Any] = [
    SequenceClassification,
    MultiLabelClassification,
    SequenceRegression,
    TokenClassification,
    Seq2Seq,
]


def register_task(task: Any) -> Any:
    """Register a task for recipes and saved runs, and return the task; also a class decorator.

    The task is a frozen data class that implements `peftkit.tasks.Task`, with a default for every field. Saved recipes
    contain `module.qualname` of the class, so its module must be imported before a recipe is read. Registering a path
    again replaces the class. Raises UserError for an invalid class or a duplicate name.
    """
    fields = dataclasses.fields(task) if hasattr(task, "__dataclass_fields__") else None
    if fields is None or any(one.init and one.default is one.default_factory is dataclasses.MISSING for one in fields):
        raise UserError(f"register_task: {task!r} is not a data class with a default for every field; add defaults")
    path, name = get_task_path(task), str(task.__name__)
    others = [known for known in TASKS if get_task_path(known) != path]
    if any(known.__name__ == name for known in others):
        raise UserError(f"register_task: another task is named '{name}'; rename the class")
    TASKS[:] = [*others, task]
    return task


def get_task_path(task: Any) -> str:
    """Return the path of a task's class in saved recipes; `peftkit.tasks.NAME` for a built-in task."""
    own = task.__module__.partition(".")[0] == "peftkit"
    return f"{'peftkit.tasks' if own else task.__module__}.{task.__qualname__}"
