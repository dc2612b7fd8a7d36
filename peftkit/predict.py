"""Answers for a file of texts, by a run or by any finished model."""

import csv
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import torch
from datasets import Dataset
from tqdm.auto import tqdm
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel

from peftkit.errors import UserError
from peftkit.files import writing
from peftkit.log import logger
from peftkit.model import load_finished, make_paddable, position_limit
from peftkit.parsing import dict_to_recipe
from peftkit.recipe import DataConfig, Recipe
from peftkit.run_folder import RECEIPT, RECIPE, Trained, label_names, load_run
from peftkit.sources import load_rows
from peftkit.tasks import TASKS, Task

BATCH_SIZE = 32
# Where neither a recipe nor the tokenizer says how many the model reads.
MOST_TOKENS = 512


def predict(
    source: Path,
    file: Path,
    output: Path | None = None,
    *,
    columns: Mapping[str, str] | None = None,
    trust_remote_code: bool = False,
) -> Path:
    """Write a line for each row of `file`: its number, and the task's answer.

    `source` is a run's folder, an export, or any folder that transformers loads; `columns` names, by the task's own
    fields (`text`, `text_pair`, `tokens`, `source`), columns other than those trained on. `output` ends in .jsonl or
    .csv. Raises UserError.
    """
    output = output or Path(f"{file.stem}.predictions.jsonl")
    if output.suffix not in (".jsonl", ".csv"):
        raise UserError(f"--output {output}: must end in .jsonl or .csv")
    if output.exists():
        raise UserError(f"--output {output}: already exists; name another file or remove it")
    trained = _load(source, columns or {}, trust_remote_code)
    rows = next(iter(load_rows(DataConfig(path=str(file))).values()))
    for column in trained.task.inputs:
        if column not in rows.column_names:
            words = " or ".join(f"--{name}" for name in trained.task.input_fields if getattr(trained.task, name))
            raise UserError(f"{file}: no column '{column}' among {', '.join(rows.column_names)}; name it with {words}")
    if problem := next(trained.task.input_problems(rows, str(file)), None):
        raise UserError(problem)
    if not len(rows):
        raise UserError(f"{file}: has no rows")
    with writing(output) as text:
        for start in tqdm(range(0, len(rows), BATCH_SIZE), desc="predict", unit="batch"):
            answers = _answers(trained, rows.select(range(start, min(start + BATCH_SIZE, len(rows)))))
            (_write_csv if output.suffix == ".csv" else _write_jsonl)(text, answers, start)
    logger.info("%d rows predicted: %s", len(rows), output)
    return output


def within_positions(task: Any, model: PreTrainedModel) -> Task:
    """The task, reading no more tokens than the model has positions for; a tokenizer may promise more."""
    field, limit = task.length_fields[0], position_limit(model)
    return task if limit is None or getattr(task, field) <= limit else replace(task, **{field: limit})


def _load(source: Path, columns: Mapping[str, str], trust_remote_code: bool) -> Trained:
    if (source / RECIPE).exists():
        trained = load_run(source, trust_remote_code=trust_remote_code)
    else:
        if not (source / "config.json").is_file():
            raise UserError(f"{source}: neither a run nor a model; it has no config.json")
        tokenizer = make_paddable(
            AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code), str(source)
        )
        config = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
        if (source / RECEIPT).exists():
            recipe = dict_to_recipe(json.loads((source / RECEIPT).read_text())["recipe"])
        else:
            length = min(tokenizer.model_max_length, MOST_TOKENS)
            kinds = (kind.of_model(config, length) for kind in TASKS)
            task = next((kind for kind in kinds if kind is not None), None)
            if task is None:
                raise UserError(f"{source}: {', '.join(config.architectures or ())} is a model of no task of peftkit's")
            recipe = Recipe(task=task)
        model = load_finished(source, recipe.task, trust_remote_code=trust_remote_code)
        model.config.pad_token_id = tokenizer.pad_token_id
        recipe = replace(recipe, task=within_positions(recipe.task, model))
        model.eval()
        trained = Trained(
            model=model,
            tokenizer=tokenizer,
            recipe=recipe,
            task=recipe.task.restored(config),
            labels=label_names(config),
        )
    for name in columns:
        if name not in trained.task.input_fields:
            raise UserError(f"--{name}: a model of {type(trained.task).__name__} reads no {name}")
    fitted: Any = trained.task
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    if not getattr(trained.model, "is_loaded_in_4bit", False):  # which was loaded where it is to be
        cast(Any, trained.model).to(device)
    return replace(trained, task=replace(fitted, **columns))


@torch.no_grad()
def _answers(trained: Trained, rows: Dataset) -> list[Mapping[str, Any]]:
    """The task's answers to a few rows, which may be more encoded ones."""
    task, model = trained.task, cast(Any, trained.model)
    encoded = task.encode_inputs(rows, trained.tokenizer)
    collator = task.collator(trained.tokenizer, model)
    kept = []
    for start in range(0, len(encoded), BATCH_SIZE):
        batch = collator([encoded[row] for row in range(start, min(start + BATCH_SIZE, len(encoded)))])
        inputs = {name: tensor.to(model.device) for name, tensor in batch.items() if tensor is not None}
        kept += list(task.infer(model, inputs).cpu().numpy())
    widest = max(np.shape(row)[-1] if np.ndim(row) else 0 for row in kept)
    padded = [np.pad(row, (0, widest - len(row)), constant_values=-100) if np.ndim(row) else row for row in kept]
    return task.answer(np.stack(padded), encoded, rows, trained.tokenizer, trained.labels)


def _write_jsonl(file: IO[str], answers: list[Mapping[str, Any]], start: int) -> None:
    for row, one in enumerate(answers, start):
        file.write(json.dumps({"row": row, **one}, ensure_ascii=False) + "\n")


def _write_csv(file: IO[str], answers: list[Mapping[str, Any]], start: int) -> None:
    """A column a value; a probability a label; a space between tags, a comma between labels, entities as JSON."""
    names = list(answers[0].get("probabilities", ()))
    plain = [name for name in answers[0] if name != "probabilities"]
    writer = csv.writer(file, lineterminator="\n")
    if start == 0:
        writer.writerow(["row", *plain, *(f"probability of {name}" for name in names)])
    for row, one in enumerate(answers, start):
        values = [_cell(name, one[name]) for name in plain]
        writer.writerow([row, *values, *(one["probabilities"][name] for name in names)])


def _cell(name: str, value: Any) -> Any:
    if not isinstance(value, list):
        return value
    if name == "entities":
        return json.dumps(value, ensure_ascii=False)
    return (" " if name == "tags" else ",").join(value)
