"""Labels and probabilities for a file of texts, by a run or by any finished model."""

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import AutoTokenizer

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
# Where neither a recipe nor the tokenizer says how many the model reads.
MOST_TOKENS = 512


def predict(
    source: Path, file: Path, output: Path | None = None, *, text: str | None = None, trust_remote_code: bool = False
) -> Path:
    """Write a line for each row of `file`: its number, its label, the probability of every label.

    `source` is a run's folder, an export, or any folder that transformers loads; `text` names the column when it is
    not the one that was trained on. `output` ends in .jsonl or .csv. Raises UserError.
    """
    output = output or Path(f"{file.stem}.predictions.jsonl")
    if output.suffix not in (".jsonl", ".csv"):
        raise UserError(f"--output {output}: must end in .jsonl or .csv")
    trained = _load(source, text, trust_remote_code)
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


def _load(source: Path, text: str | None, trust_remote_code: bool) -> Trained:
    if (source / RECIPE).exists():
        trained = load_run(source, trust_remote_code=trust_remote_code)
    else:
        if not (source / "config.json").is_file():
            raise UserError(f"{source}: neither a run nor a model; it has no config.json")
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
        if (source / RECEIPT).exists():
            recipe = dict_to_recipe(json.loads((source / RECEIPT).read_text())["recipe"])
        else:
            recipe = Recipe(task=SequenceClassification(max_length=min(tokenizer.model_max_length, MOST_TOKENS)))
        model = load_finished(source, recipe.task, trust_remote_code=trust_remote_code)
        model.eval()
        labels = label_names(model.config)
        trained = Trained(model=model, tokenizer=tokenizer, recipe=recipe, labels=labels)
    if text is None:
        return trained
    task: Any = replace(cast(SequenceClassification, trained.recipe.task), text=text)
    return replace(trained, recipe=replace(trained.recipe, task=task))


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
