"""Prediction for the rows of a file or standard input, with one or several models."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import Dataset
from tqdm.auto import tqdm

from peftkit.errors import UserError
from peftkit.prediction.readers import MIXED_TYPE_ERRORS, StreamedRow, stream_rows
from peftkit.prediction.writers import check_output, check_top_k, open_writer
from peftkit.system.files import redact_home
from peftkit.system.logging import logger

# These modules import torch, which checking the arguments does not need.
if TYPE_CHECKING:
    from peftkit.prediction.predictor import ModelFolder, Predictor
    from peftkit.tasks import Task

# Number of rows in memory at a time: enough to batch rows of similar length.
CHUNK = 2048


def predict(
    folders: Sequence[Path],
    file: Path | None,
    output: Path | None = None,
    *,
    columns: Mapping[str, str] | None = None,
    input_format: str | None = None,
    top_k: int | None = None,
    trust_remote_code: bool = False,
) -> Path | None:
    """Write a prediction with the row number for each row of `file`, or of standard input (None).

    Several folders must be adapters of one base model; each prediction is then under the folder name. A row that cannot
    be read has an `error` instead of a prediction. `columns` maps the task's input fields to columns with other names
    than in training. `top_k` limits the probabilities to the most probable labels. `output` ends in .jsonl, .csv or
    .parquet; the default is NAME.predictions.jsonl for a file, and standard output for standard input. Returns the
    output file. Raises UserError; arguments are checked before weights are loaded.
    """
    check_top_k("--top_k", top_k)
    if output is None and file is not None:
        output = Path(f"{file.stem}.predictions.jsonl")
    check_output(output)
    rows = stream_rows(file, input_format)
    models = _read_models(folders, columns or {}, trust_remote_code)
    where = "standard input" if file is None else redact_home(file)
    chunks = _split_in_chunks(rows, [model.task for model in models.values()], where)
    if file is not None:
        # Check the first rows before loading weights; not for standard input, which may be slow.
        chunks = chain([next(chunks)], chunks)
    predictors = _load_predictors(models)
    unread = total = 0
    with open_writer(output, is_ranked=top_k is not None) as write, tqdm(desc="predict", unit="row") as progress:
        for chunk in chunks:
            predictions = _predict_chunk(chunk, predictors, where, top_k)
            write(predictions)
            total += len(chunk)
            progress.update(len(chunk))
            for prediction in predictions:
                if "error" in prediction:
                    unread += 1
                    if unread == 1:
                        logger.warning("%s", prediction["error"])
        if unread == total:
            raise UserError(f"{where}: none of {total} rows can be read; fix the first error above")
    if unread:
        logger.warning("%d of %d rows cannot be read; these rows have an error instead of a prediction", unread, total)
    logger.info("predicted %d rows%s", total - unread, "" if output is None else f" to {output}")
    return output


def _read_models(
    folders: Sequence[Path], columns: Mapping[str, str], trust_remote_code: bool
) -> dict[str, "ModelFolder"]:
    """Read model folders without weights, by name in the output; a single model has an empty name."""
    names = [folder.resolve().name for folder in folders] if len(folders) > 1 else [""]
    if duplicates := [name for name, count in Counter(names).items() if count > 1]:
        raise UserError(f"two folders have the name {duplicates[0]}, which identifies the predictions; rename one")

    from peftkit.prediction.predictor import read_model_folder, replace_columns
    from peftkit.prediction.shared_base import check_shared_base

    models = {
        name: read_model_folder(folder, trust_remote_code=trust_remote_code)
        for name, folder in zip(names, folders, strict=True)
    }
    if unused := set(columns) - {field for model in models.values() for field in model.task.columns.input_fields}:
        tasks = " or ".join(dict.fromkeys(type(model.task).__name__ for model in models.values()))
        raise UserError(f"--{min(unused)}: not an input of {tasks}; remove the option")
    if len(models) > 1:
        check_shared_base({name: model.manifest for name, model in models.items()})
    return {name: replace(model, task=replace_columns(model.task, columns)) for name, model in models.items()}


def _load_predictors(models: Mapping[str, "ModelFolder"]) -> dict[str, "Predictor"]:
    from peftkit.prediction.predictor import load_predictor
    from peftkit.prediction.shared_base import share_base

    if len(models) == 1:
        return {name: load_predictor(model) for name, model in models.items()}
    return share_base((name, load_predictor(model)) for name, model in models.items())


def _split_in_chunks(rows: Iterator[StreamedRow], tasks: Sequence["Task"], where: str) -> Iterator[list[StreamedRow]]:
    """Yield the rows in chunks. Raises UserError without rows, or if the first row lacks a column."""
    is_first = True
    while chunk := list(islice(rows, CHUNK)):
        if is_first:
            _check_columns(next((row for row in chunk if row.problem is None), None), tasks, where)
            is_first = False
        yield chunk
    if is_first:
        raise UserError(f"{where}: no rows; use another input")


def _check_columns(row: StreamedRow | None, tasks: Sequence["Task"], where: str) -> None:
    """Raise UserError if the first row lacks a column: the column option is wrong, not the row."""
    for task in tasks if row is not None else ():
        for column in task.columns.inputs:
            if row is not None and column not in row.values:
                options = " or ".join(f"--{name}" for name in task.columns.input_fields if getattr(task, name))
                raise UserError(
                    f"{where}: no column '{column}' (columns: {', '.join(row.values)}); set the column with {options}"
                )


def _predict_chunk(
    chunk: Sequence[StreamedRow], predictors: Mapping[str, "Predictor"], where: str, top_k: int | None
) -> list[dict[str, Any]]:
    tasks = [predictor.task for predictor in predictors.values()]
    rows = {row.number: _select_inputs(row.values, tasks) for row in chunk if row.problem is None}
    columns = dict.fromkeys(name for row in rows.values() for name in row)
    rows = {number: {name: row.get(name) for name in columns} for number, row in rows.items()}
    errors = {row.number: f"{where}, row {row.number} (from 0): {row.problem}" for row in chunk if row.problem}
    for number, problem in _find_problems(rows, tasks, where):
        errors.setdefault(number, problem)
    good = {number: row for number, row in rows.items() if number not in errors}
    found: dict[int, dict[str, Any]] = {number: {"row": number} for number in good}
    dataset = Dataset.from_list(list(good.values()))
    for name, predictor in predictors.items() if good else ():
        for number, prediction in zip(good, predictor.predict(dataset, top_k=top_k), strict=True):
            found[number] |= {name: prediction} if name else prediction
    return [found.get(row.number) or {"row": row.number, "error": errors[row.number]} for row in chunk]


def _select_inputs(values: Mapping[str, Any], tasks: Sequence["Task"]) -> dict[str, Any]:
    """Return the model inputs of a row; split a text into words if the task needs a list of words."""
    from peftkit.prediction.predictor import make_row

    inputs: dict[str, Any] = {}
    for task in tasks:
        columns = task.columns
        selected = {name: values.get(name) for name in columns.inputs}
        single = selected[columns.inputs[0]] if len(columns.inputs) == 1 else None
        inputs |= make_row(columns, single) if isinstance(single, str) else selected
    return inputs


def _find_problems(
    rows: Mapping[int, Mapping[str, Any]], tasks: Sequence["Task"], where: str
) -> Iterator[tuple[int, str]]:
    """Yield row number and problem of each invalid row; check rows one by one only if one is invalid."""
    try:
        all_rows = Dataset.from_list([dict(row) for row in rows.values()])
        if not any(next(task.validate(all_rows, None, where), None) for task in tasks if rows):
            return
    except MIXED_TYPE_ERRORS:
        # The loop below checks each row alone.
        pass
    for number, row in rows.items():
        try:
            single = Dataset.from_list([dict(row)])
        except MIXED_TYPE_ERRORS as error:
            reason = " ".join(str(error).split())[:100]
            yield number, f"{where}, row {number} (from 0): {reason}; correct it or remove the row"
            continue
        for task in tasks:
            if problem := next(task.validate(single, None, where, number), None):
                yield number, problem
