"""Labels and probabilities for a file of texts, by a run or by any finished model."""

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import AutoConfig, AutoTokenizer

from peftkit.data import load_rows
from peftkit.errors import UserError
from peftkit.files import write_text
from peftkit.log import logger
from peftkit.model import load_finished
from peftkit.parsing import dict_to_recipe
from peftkit.recipe import DataConfig, Recipe
from peftkit.run_folder import RECEIPT, RECIPE, Trained, label_names, load_run
from peftkit.tasks import SequenceClassification
from peftkit.training import first_output

BATCH_SIZE = 32


def predict(source: Path, file: Path, output: Path | None = None, *, text: str | None = None) -> Path:
    """Write a line for each row of `file`: its number, its label, the probability of every label.

    `source` is a run's folder, an export, or any folder that transformers loads; `text` names the column when it is
    not the one that was trained on. `output` ends in .jsonl or .csv. Raises UserError.
    """
    output = output or Path(f"{file.stem}.predictions.jsonl")
    if output.suffix not in (".jsonl", ".csv"):
        raise UserError(f"--output {output}: must end in .jsonl or .csv")
    trained = _load(source, text)
    task: Any = trained.recipe.task
    splits = load_rows(DataConfig(path=str(file)))
    rows = next(iter(splits.values()))
    if task.text not in rows.column_names:
        raise UserError(f"{file}: no column '{task.text}' among {', '.join(rows.column_names)}; name it with --text")
    encoded = task.encode_inputs(rows, trained.tokenizer, str(file))
    found = task.predictions(_logits(trained, encoded), trained.labels)
    write_text(output, _csv(found) if output.suffix == ".csv" else _jsonl(found))
    logger.info("%d rows predicted: %s", len(found), output)
    return output


def _load(source: Path, text: str | None) -> Trained:
    if (source / RECIPE).exists():
        trained = load_run(source)
        recipe = trained.recipe
    else:
        if not (source / "config.json").is_file():
            raise UserError(f"{source}: neither a run nor a model; it has no config.json")
        receipt = source / RECEIPT
        recipe = dict_to_recipe(json.loads(receipt.read_text())["recipe"]) if receipt.exists() else Recipe()
        model = load_finished(source, recipe.task)
        model.eval()
        tokenizer = AutoTokenizer.from_pretrained(source)
        labels = label_names(AutoConfig.from_pretrained(source))
        trained = Trained(model=model, tokenizer=tokenizer, recipe=recipe, labels=labels)
    task = recipe.task
    if text is not None and isinstance(task, SequenceClassification):
        task = SequenceClassification(text=text, label=task.label, max_length=task.max_length)
    recipe = Recipe(name=recipe.name, model=recipe.model, task=task, method=recipe.method)
    return Trained(model=trained.model, tokenizer=trained.tokenizer, recipe=recipe, labels=trained.labels)


@torch.no_grad()
def _logits(trained: Trained, encoded: Any) -> np.ndarray:
    """Logits of every row, float32, of shape (rows, labels)."""
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    model: Any = trained.model
    if not getattr(model, "is_loaded_in_4bit", False):  # which was loaded where it is to be
        model.to(device)
    collator = trained.recipe.task.collator(trained.tokenizer)
    parts = []
    for start in tqdm(range(0, len(encoded), BATCH_SIZE), desc="predict", unit="batch"):
        batch = collator([encoded[row] for row in range(start, min(start + BATCH_SIZE, len(encoded)))])
        output = model(**{name: tensor.to(device) for name, tensor in batch.items()})
        parts.append(first_output(output.logits).float().cpu().numpy())
    return np.concatenate(parts)


def _jsonl(found: list[Mapping[str, Any]]) -> str:
    return "".join(json.dumps({"row": row, **one}, ensure_ascii=False) + "\n" for row, one in enumerate(found))


def _csv(found: list[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    names = list(found[0]["probabilities"])
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["row", "label", *(f"probability of {name}" for name in names)])
    for row, one in enumerate(found):
        writer.writerow([row, one["label"], *(one["probabilities"][name] for name in names)])
    return text.getvalue()
