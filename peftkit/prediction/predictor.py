"""Predictor: a run, an export or a model trained elsewhere, loaded to predict lists of inputs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from datasets import Dataset
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from peftkit.errors import UserError
from peftkit.models.inference import predict_rows
from peftkit.models.loading import ensure_padding, load_finished_model
from peftkit.models.onnx import FILE, OnnxModel
from peftkit.models.positions import find_position_limit
from peftkit.prediction.readers import MIXED_TYPE_ERRORS
from peftkit.prediction.writers import check_top_k
from peftkit.recipe.parser import dict_to_recipe
from peftkit.runs.manifest import RECIPE, check_labels, check_tokenizer, read_manifest
from peftkit.runs.saved import load_model, read_label_names, read_run
from peftkit.tasks import TASKS, ColumnSpec, Task, get_task_path, restore_settings
from peftkit.tasks.word_alignment import INPUT_TEXT, find_word_spans

# The length when neither a recipe nor the tokenizer sets one.
MOST_TOKENS = 512


@dataclass(frozen=True, kw_only=True)
class Predictor:
    """A loaded model with the task, tokenizer and labels for its predictions.

    Attributes:
        model: In evaluation mode, on the accelerator if there is one.
        tokenizer: The tokenizer that it was trained with.
        task: With the input columns, and the values calibrated on validation.
        labels: Label names, by label id.
        manifest: The manifest of the folder; None for a model trained elsewhere.
    """

    model: Any
    tokenizer: PreTrainedTokenizerBase
    task: Task
    labels: tuple[str, ...]
    manifest: Mapping[str, Any] | None = None

    def __call__(self, inputs: Sequence[Any], *, top_k: int | None = None) -> list[dict[str, Any]]:
        """Predict texts, pairs of texts (tuples), lists of words, or rows (mappings by column).

        With `top_k` only the most probable labels are returned, the most probable first. Raises UserError for invalid
        inputs.
        """
        if isinstance(inputs, str):
            raise UserError("inputs: expected a list of texts, got a string; pass ['...']")
        check_top_k("top_k", top_k)
        rows = [dict(one) if isinstance(one, Mapping) else make_row(self.task.columns, one) for one in inputs]
        if not rows:
            return []
        columns = dict.fromkeys(name for row in rows for name in row)
        try:
            dataset = Dataset.from_list([{name: row.get(name) for name in columns} for row in rows])
        except MIXED_TYPE_ERRORS:
            raise UserError("inputs: values of several types in one column; pass only texts, or rows alike") from None
        for column in self.task.columns.inputs:
            if column not in dataset.column_names:
                raise UserError(f"inputs: a row has no '{column}' (columns: {', '.join(dataset.column_names)})")
        if problem := next(self.task.validate(dataset, None, "inputs"), None):
            raise UserError(problem)
        return self.predict(dataset, top_k=top_k)

    def predict(self, rows: Dataset, *, top_k: int | None = None) -> list[dict[str, Any]]:
        """Predict rows that were checked before, in order."""
        predictions = predict_rows(self.model, self.task, rows, self.tokenizer, self.labels)
        return [_limit_labels(prediction, top_k) for prediction in predictions]


def _limit_labels(prediction: Mapping[str, Any], top_k: int | None) -> dict[str, Any]:
    if top_k is None or "probabilities" not in prediction:
        return dict(prediction)
    ranked = sorted(prediction["probabilities"].items(), key=lambda pair: pair[1], reverse=True)
    return {**prediction, "probabilities": dict(ranked[:top_k])}


@dataclass(frozen=True, kw_only=True)
class ModelFolder:
    """A folder with a model whose weights are not loaded yet; otherwise as a `Predictor`.

    Attributes:
        load_weights: Returns the model.
    """

    tokenizer: PreTrainedTokenizerBase
    task: Task
    labels: tuple[str, ...]
    manifest: Mapping[str, Any] | None
    load_weights: Callable[[], Any]


def load(folder: str | Path, *, columns: Mapping[str, str] | None = None, trust_remote_code: bool = False) -> Predictor:
    """Load a model for predictions: `peftkit.load("my-model")(["Return the mean."])`.

    `folder` is a run, an export, or any model folder of transformers. `columns` maps the task's input fields (`text`,
    `text_pair`, `tokens`, `source`) to columns that differ from those in training. Raises UserError if the folder has
    no model, or if its parts don't match.
    """
    found = read_model_folder(Path(folder), trust_remote_code=trust_remote_code)
    for name in columns or {}:
        if name not in found.task.columns.input_fields:
            raise UserError(f"--{name}: not an input of {type(found.task).__name__}; remove the option")
    return load_predictor(replace(found, task=replace_columns(found.task, columns or {})))


def read_model_folder(folder: Path, *, trust_remote_code: bool = False) -> ModelFolder:
    """Read everything but the weights. Raises UserError if the folder has no model, or if its parts don't match."""
    if (folder / RECIPE).is_file():
        run = read_run(folder, trust_remote_code=trust_remote_code)
        return ModelFolder(
            tokenizer=run.tokenizer, task=run.task, labels=run.labels, manifest=run.manifest,
            load_weights=partial(load_model, run),
        )  # fmt: skip
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: neither a run nor a model; it has no config.json")
    manifest = read_manifest(folder)
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    labels = read_label_names(config)
    if manifest is None:
        tokenizer = ensure_padding(tokenizer, str(folder))
        task = _infer_task(config, min(tokenizer.model_max_length, MOST_TOKENS), folder)
    else:
        labels = labels if manifest["labels"] else ()
        check_labels(folder, manifest, labels)
        check_tokenizer(folder, manifest, tokenizer)
        task = _read_task(manifest, folder)
    if (folder / FILE).is_file():
        if task.output_kind == "text":
            raise UserError(f"{folder}: ONNX exports generate no text; use the run or a model export")
        load_weights: Callable[[], Any] = partial(OnnxModel, folder)
    else:
        dtype = None if manifest is None else "auto"
        load_weights = partial(_load_weights, folder, task, tokenizer, dtype, trust_remote_code)
        task = restore_settings(task, config)
    return ModelFolder(tokenizer=tokenizer, task=task, labels=labels, manifest=manifest, load_weights=load_weights)


def _load_weights(
    folder: Path, task: Task, tokenizer: PreTrainedTokenizerBase, dtype: str | None, trust_remote_code: bool
) -> PreTrainedModel:
    model = load_finished_model(folder, task, dtype=dtype, trust_remote_code=trust_remote_code)
    model.config.pad_token_id = tokenizer.pad_token_id
    return model


def load_predictor(folder: ModelFolder) -> Predictor:
    """Load the weights of a model folder, in evaluation mode, on the accelerator if there is one."""
    model, task = folder.load_weights(), folder.task
    if isinstance(model, torch.nn.Module):
        model.eval()
        # A model in 4 bits is on its device already.
        if torch.accelerator.is_available() and not getattr(model, "is_loaded_in_4bit", False):
            cast(Any, model).to(torch.accelerator.current_accelerator())
        if folder.manifest is None:
            task = limit_length(task, cast(PreTrainedModel, model))
    return Predictor(model=model, tokenizer=folder.tokenizer, task=task, labels=folder.labels, manifest=folder.manifest)


def make_row(columns: ColumnSpec, value: Any) -> dict[str, Any]:
    """Return the row of a bare text, a pair of texts or a list of words. Raises UserError for a wrong number."""
    if columns.has_words:
        if not isinstance(value, str):
            return {columns.inputs[0]: list(value)}
        return {columns.inputs[0]: [value[start:end] for start, end in find_word_spans(value)], INPUT_TEXT: value}
    texts = value if isinstance(value, list | tuple) else [value]
    if len(texts) != len(columns.inputs):
        raise UserError(f"expected {len(columns.inputs)} texts ({', '.join(columns.inputs)}), got {len(texts)}")
    return dict(zip(columns.inputs, texts, strict=True))


def replace_columns(task: Any, columns: Mapping[str, str]) -> Task:
    """Return the task with other input columns; fields that it does not have are ignored."""
    return replace(task, **{name: column for name, column in columns.items() if name in task.columns.input_fields})


def _read_task(manifest: Mapping[str, Any], folder: Path) -> Task:
    """Return the task of a manifest. Raises UserError for any other class, since a manifest may be someone else's."""
    path = manifest["task"].get("class_path")
    if path not in map(get_task_path, TASKS):
        raise UserError(f"{folder}: its manifest names the task {path}, which is not a task of peftkit")
    return dict_to_recipe({"task": manifest["task"]}).task


def _infer_task(config: Any, length: int, folder: Path) -> Task:
    for kind in TASKS:
        if (fields := kind().model.match(config, length)) is not None:
            return kind(**fields)
    raise UserError(f"{folder}: {', '.join(config.architectures or ())} is not a model of any task of peftkit")


def limit_length(task: Any, model: PreTrainedModel) -> Task:
    """Return the task with a length of at most the model's positions; a tokenizer may allow more."""
    field, limit = task.columns.length_field, find_position_limit(model)
    return task if limit is None or getattr(task, field) <= limit else replace(task, **{field: limit})
