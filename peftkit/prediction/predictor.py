"""A saved model ready to be asked: a run, an export in any form, or a model that was trained elsewhere."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import pyarrow
import torch
from datasets import Dataset
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from peftkit.errors import UserError
from peftkit.models.inference import predict_rows
from peftkit.models.loading import ensure_padding, load_finished_model
from peftkit.models.onnx import FILE, OnnxModel
from peftkit.models.positions import find_position_limit
from peftkit.recipe.parser import dict_to_recipe
from peftkit.runs.manifest import RECIPE, check_labels, check_tokenizer, read_manifest
from peftkit.runs.saved import load_model, read_label_names, read_run
from peftkit.tasks import TASKS, Task

# Where neither a recipe nor the tokenizer says how many the model reads.
MOST_TOKENS = 512
# What pyarrow raises for values that share no type.
NOT_OF_ONE_KIND = (pyarrow.ArrowException, OverflowError, TypeError)


@dataclass(frozen=True, kw_only=True)
class Predictor:
    """A model, and how it is asked.

    Attributes:
        model: In evaluation mode, on the accelerator where there is one.
        tokenizer: As it was trained with.
        task: With the columns that it reads, and what was learned from validation.
        labels: Names in the order of their ids.
        contract: Of the folder; None for a model that was trained elsewhere.
    """

    model: Any
    tokenizer: PreTrainedTokenizerBase
    task: Task
    labels: tuple[str, ...]
    contract: Mapping[str, Any] | None = None

    def __call__(self, given: Sequence[Any], *, top_k: int | None = None) -> list[dict[str, Any]]:
        """The answer to each text, pair of texts (a tuple), list of words, or row (a mapping by column).

        With `top_k` only so many labels keep their probability, the most probable first. Raises UserError for what
        can't be read.
        """
        if isinstance(given, str):
            raise UserError("a list of texts is asked for; put the text in one: ['...']")
        if top_k is not None and top_k < 1:
            raise UserError(f"top_k {top_k}: 1 is the least")
        found = [dict(one) if isinstance(one, Mapping) else dict(self.task.row_of(one)) for one in given]
        if not found:
            return []
        columns = dict.fromkeys(name for row in found for name in row)
        try:
            dataset = Dataset.from_list([{name: row.get(name) for name in columns} for row in found])
        except NOT_OF_ONE_KIND:
            raise UserError(
                "what was given: values of several kinds in one column; give texts, or rows alike"
            ) from None
        for column in self.task.inputs:
            if column not in dataset.column_names:
                raise UserError(f"a row has no '{column}' among {', '.join(dataset.column_names)}")
        if problem := next(self.task.input_problems(dataset, "what was given"), None):
            raise UserError(problem)
        return self.answers(dataset, top_k=top_k)

    def with_columns(self, columns: Mapping[str, str]) -> "Predictor":
        """The same, reading the columns named, of those that its task reads."""
        fitted: Any = self.task
        mine = {name: column for name, column in columns.items() if name in fitted.input_fields}
        return replace(self, task=replace(fitted, **mine))

    def answers(self, rows: Dataset, *, top_k: int | None = None) -> list[dict[str, Any]]:
        """The answer to each row, whose columns have been looked at."""
        found = predict_rows(self.model, self.task, rows, self.tokenizer, self.labels)
        return [_most_probable(answer, top_k) for answer in found]


def _most_probable(answer: Mapping[str, Any], top_k: int | None) -> dict[str, Any]:
    if top_k is None or "probabilities" not in answer:
        return dict(answer)
    ranked = sorted(answer["probabilities"].items(), key=lambda pair: pair[1], reverse=True)
    return {**answer, "probabilities": dict(ranked[:top_k])}


def load(folder: str | Path, *, columns: Mapping[str, str] | None = None, trust_remote_code: bool = False) -> Predictor:
    """What answers a list of texts: `peftkit.load("my-model")(["Return the mean."])`.

    `folder` is a run's, an export in any form, or any that transformers loads. `columns` names, by the task's own
    fields (`text`, `text_pair`, `tokens`, `source`), columns other than those trained on. Raises UserError when the
    folder holds no model, or parts that don't belong together.
    """
    folder = Path(folder)
    if (folder / RECIPE).is_file():
        saved = read_run(folder, trust_remote_code=trust_remote_code)
        found = Predictor(
            model=load_model(saved), tokenizer=saved.tokenizer, task=saved.task, labels=saved.labels,
            contract=saved.manifest,
        )  # fmt: skip
    elif not (folder / "config.json").is_file():
        raise UserError(f"{folder}: neither a run nor a model; it has no config.json")
    else:
        found = _load_model_folder(folder, trust_remote_code)
    if isinstance(found.model, torch.nn.Module):
        found.model.eval()
        # In 4 bits it was loaded where it is to be.
        if torch.accelerator.is_available() and not getattr(found.model, "is_loaded_in_4bit", False):
            cast(Any, found.model).to(torch.accelerator.current_accelerator())
    for name in columns or {}:
        if name not in found.task.input_fields:
            raise UserError(f"--{name}: a model of {type(found.task).__name__} reads no {name}")
    return found.with_columns(columns or {})


def _load_model_folder(folder: Path, trust_remote_code: bool) -> Predictor:
    contract = read_manifest(folder)
    trust = {"trust_remote_code": trust_remote_code}
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, **trust)
    config = AutoConfig.from_pretrained(folder, **trust)
    labels = read_label_names(config)
    if contract is None:
        tokenizer = ensure_padding(tokenizer, str(folder))
        task = _task_of(config, min(tokenizer.model_max_length, MOST_TOKENS), folder)
    else:
        labels = labels if contract["labels"] else ()
        check_labels(folder, contract, labels)
        check_tokenizer(folder, contract, tokenizer)
        task = _task_in(contract, folder)
    if (folder / FILE).is_file():
        if task.task_type == "SEQ_2_SEQ_LM":
            raise UserError(f"{folder}: peftkit generates no text from ONNX; predict with the run or a model export")
        return Predictor(model=OnnxModel(folder), tokenizer=tokenizer, task=task, labels=labels, contract=contract)
    model = load_finished_model(folder, task, dtype="auto" if contract else None, **trust)
    model.config.pad_token_id = tokenizer.pad_token_id
    if contract is None:
        task = within_positions(task, model)
    return Predictor(model=model, tokenizer=tokenizer, task=task.restored(config), labels=labels, contract=contract)


def _task_in(contract: Mapping[str, Any], folder: Path) -> Task:
    """The task of a contract. Raises UserError for what is none: a contract names no other class."""
    path = contract["task"].get("class_path")
    if path not in [f"peftkit.tasks.{kind.__name__}" for kind in TASKS]:
        raise UserError(f"{folder}: its contract names the task {path}, which is none of peftkit's")
    return dict_to_recipe({"task": contract["task"]}).task


def _task_of(config: Any, length: int, folder: Path) -> Task:
    kinds = (kind.of_model(config, length) for kind in TASKS)
    task = next((kind for kind in kinds if kind is not None), None)
    if task is None:
        raise UserError(f"{folder}: {', '.join(config.architectures or ())} is a model of no task of peftkit's")
    return task


def within_positions(task: Any, model: PreTrainedModel) -> Task:
    """The task, reading no more tokens than the model has positions for; a tokenizer may promise more."""
    field, limit = task.length_fields[0], find_position_limit(model)
    return task if limit is None or getattr(task, field) <= limit else replace(task, **{field: limit})
