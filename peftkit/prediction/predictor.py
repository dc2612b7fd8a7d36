"""Predictor: a run, an export or any other Transformers model, loaded for predictions."""

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

# Maximum length if neither the recipe nor the tokenizer sets one.
DEFAULT_MAX_LENGTH = 512


@dataclass(frozen=True, kw_only=True)
class Predictor:
    """A loaded model with task, tokenizer and labels.

    Attributes:
        model: The model in evaluation mode, on the accelerator if there is one.
        tokenizer: The tokenizer of training.
        task: The task with input columns and calibrated settings.
        labels: Label names in the order of their ids.
        manifest: The manifest of the folder; None for a model that peftkit did not train.
    """

    model: Any
    tokenizer: PreTrainedTokenizerBase
    task: Task
    labels: tuple[str, ...]
    manifest: Mapping[str, Any] | None = None

    def __call__(self, inputs: Sequence[Any], *, top_k: int | None = None) -> list[dict[str, Any]]:
        """Predict texts, pairs of texts (tuples), lists of words, or rows (mappings by column).

        `top_k` limits the probabilities to the most probable labels, in descending order. Raises UserError for invalid
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
            raise UserError("inputs: mixed types in one column; pass values of one type") from None
        for column in self.task.columns.inputs:
            if column not in dataset.column_names:
                columns_found = ", ".join(dataset.column_names)
                raise UserError(f"inputs: missing column '{column}' (columns: {columns_found}); add it to each row")
        if problem := next(self.task.validate(dataset, None, "inputs"), None):
            raise UserError(problem)
        return self.predict(dataset, top_k=top_k)

    def predict(self, rows: Dataset, *, top_k: int | None = None) -> list[dict[str, Any]]:
        """Predict checked rows, in order."""
        predictions = predict_rows(self.model, self.task, rows, self.tokenizer, self.labels)
        return [_limit_labels(prediction, top_k) for prediction in predictions]


def _limit_labels(prediction: Mapping[str, Any], top_k: int | None) -> dict[str, Any]:
    if top_k is None or "probabilities" not in prediction:
        return dict(prediction)
    ranked = sorted(prediction["probabilities"].items(), key=lambda pair: pair[1], reverse=True)
    return {**prediction, "probabilities": dict(ranked[:top_k])}


@dataclass(frozen=True, kw_only=True)
class ModelFolder:
    """A model folder before loading the weights; the other fields are as in `Predictor`.

    Attributes:
        load_weights: Loads and returns the model.
    """

    tokenizer: PreTrainedTokenizerBase
    task: Task
    labels: tuple[str, ...]
    manifest: Mapping[str, Any] | None
    load_weights: Callable[[], Any]


def load(folder: str | Path, *, columns: Mapping[str, str] | None = None, trust_remote_code: bool = False) -> Predictor:
    """Load a model for predictions: `peftkit.load("my-model")(["Return the mean."])`.

    `folder` is a run, an export, or any model folder of transformers. `columns` maps the task's input fields (`text`,
    `text_pair`, `tokens`, `source`) to columns with other names than in training. Raises UserError if the folder
    contains no model, or files that do not match.
    """
    found = read_model_folder(Path(folder), trust_remote_code=trust_remote_code)
    for name in columns or {}:
        if name not in found.task.columns.input_fields:
            raise UserError(f"--{name}: not an input of {type(found.task).__name__}; remove the option")
    return load_predictor(replace(found, task=replace_columns(found.task, columns or {})))


def read_model_folder(folder: Path, *, trust_remote_code: bool = False) -> ModelFolder:
    """Read a model folder without weights. Raises UserError for missing or mismatched files."""
    if (folder / RECIPE).is_file():
        run = read_run(folder, trust_remote_code=trust_remote_code)
        return ModelFolder(
            tokenizer=run.tokenizer, task=run.task, labels=run.labels, manifest=run.manifest,
            load_weights=partial(load_model, run),
        )  # fmt: skip
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: not a run or a model (no config.json); use another folder")
    manifest = read_manifest(folder)
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    labels = read_label_names(config)
    if manifest is None:
        tokenizer = ensure_padding(tokenizer, str(folder))
        task = _infer_task(config, min(tokenizer.model_max_length, DEFAULT_MAX_LENGTH), folder)
    else:
        labels = labels if manifest["labels"] else ()
        check_labels(folder, manifest, labels)
        check_tokenizer(folder, manifest, tokenizer)
        task = _read_task(manifest, folder)
    if (folder / FILE).is_file():
        if task.output_kind == "text":
            raise UserError(f"{folder}: an ONNX export cannot generate text; use the run or a model export")
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
    """Load the weights of a model folder in evaluation mode, on the accelerator if there is one."""
    model, task = folder.load_weights(), folder.task
    if isinstance(model, torch.nn.Module):
        model.eval()
        # A model in 4 bits is already on the device.
        if torch.accelerator.is_available() and not getattr(model, "is_loaded_in_4bit", False):
            cast(Any, model).to(torch.accelerator.current_accelerator())
        if folder.manifest is None:
            task = limit_length(task, cast(PreTrainedModel, model))
    return Predictor(model=model, tokenizer=folder.tokenizer, task=task, labels=folder.labels, manifest=folder.manifest)


def make_row(columns: ColumnSpec, value: Any) -> dict[str, Any]:
    """Make a row from a text, a pair of texts or a list of words. Raises UserError."""
    if columns.has_words:
        if not isinstance(value, str):
            return {columns.inputs[0]: list(value)}
        return {columns.inputs[0]: [value[start:end] for start, end in find_word_spans(value)], INPUT_TEXT: value}
    texts = value if isinstance(value, list | tuple) else [value]
    if len(texts) != len(columns.inputs):
        names = ", ".join(columns.inputs)
        raise UserError(f"inputs: expected {len(columns.inputs)} texts ({names}) per row, got {len(texts)}")
    return dict(zip(columns.inputs, texts, strict=True))


def replace_columns(task: Any, columns: Mapping[str, str]) -> Task:
    """Return the task with other input columns; ignore fields of other tasks."""
    return replace(task, **{name: column for name, column in columns.items() if name in task.columns.input_fields})


def _read_task(manifest: Mapping[str, Any], folder: Path) -> Task:
    """Return the task of a manifest. Raises UserError for an unknown class: a manifest may be untrusted."""
    path = manifest["task"].get("class_path")
    if path not in map(get_task_path, TASKS):
        raise UserError(f"{folder}: unknown task {path} in the manifest; pass the --plugin that registers it")
    return dict_to_recipe({"task": manifest["task"]}).task


def _infer_task(config: Any, length: int, folder: Path) -> Task:
    for kind in TASKS:
        if (fields := kind().model.match(config, length)) is not None:
            return kind(**fields)
    raise UserError(f"{folder}: no peftkit task supports {', '.join(config.architectures or ())}; use another model")


def limit_length(task: Any, model: PreTrainedModel) -> Task:
    """Limit the task's length to the number of positions of the model; a tokenizer may allow more."""
    field, limit = task.columns.length_field, find_position_limit(model)
    return task if limit is None or getattr(task, field) <= limit else replace(task, **{field: limit})
