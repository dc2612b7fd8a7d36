"""Batched inference; rows are grouped by length, outputs keep the input order."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from peftkit.tasks import EncodedSplit, Task
from peftkit.tasks.default import IGNORED, get_first_output

BATCH_SIZE = 32
# Limits of a held-out batch of generated text, because logits over a vocabulary are large.
HELD_OUT_ROWS = 4
HELD_OUT_NUMBERS = 2_000_000


def predict_rows(
    model: Any, task: Task, rows: Dataset, tokenizer: PreTrainedTokenizerBase, labels: Sequence[str]
) -> list[Mapping[str, Any]]:
    """Return the task's detailed prediction for each row."""
    encoded = task.encode(rows, tokenizer, None)
    outputs = infer_rows(model, task, encoded, tokenizer, detail=True)
    split = EncodedSplit(outputs=outputs, encoded=encoded, rows=rows, tokenizer=tokenizer, labels=labels)
    return task.decode(split, detail=True)


@torch.no_grad()
def infer_rows(
    model: Any, task: Task, encoded: Dataset, tokenizer: PreTrainedTokenizerBase, *, detail: bool = False
) -> np.ndarray:
    """Run the model on all encoded rows and return the task's outputs in the order of the rows."""
    collator = task.collator(tokenizer, model)
    outputs: list[Any] = [None] * len(encoded)
    inputs = encoded.remove_columns("labels") if "labels" in encoded.column_names else encoded
    for indices in _group_by_length(encoded):
        batch = _move_inputs(collator([inputs[index] for index in indices]), model.device)
        found = model.generate(**batch) if task.output_kind == "text" else get_first_output(model(**batch).logits)
        for index, output in zip(indices, task.postprocess(found, detail=detail).cpu().numpy(), strict=True):
            outputs[index] = output
    return _stack_rows(outputs)


def _group_by_length(encoded: Dataset) -> Iterator[list[int]]:
    lengths = [len(ids) for ids in encoded["input_ids"]]
    order = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
    for start in range(0, len(order), BATCH_SIZE):
        yield order[start : start + BATCH_SIZE]


def _move_inputs(batch: Mapping[str, Any], device: torch.device) -> dict[str, torch.Tensor]:
    return {name: tensor.to(device) for name, tensor in batch.items() if tensor is not None}


def _stack_rows(outputs: list[Any]) -> np.ndarray:
    """Stack rows into one array, padding those with fewer tokens."""
    longest = max(len(row) if np.ndim(row) else 0 for row in outputs)
    return np.stack(
        [
            np.pad(row, [(0, longest - len(row)), *[(0, 0)] * (row.ndim - 1)], constant_values=IGNORED)
            if np.ndim(row)
            else row
            for row in outputs
        ]
    )


def select_inputs(
    task: Task, batch: Mapping[str, Any], config: Any
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Select the inputs for comparing models, and `counted`, the mask of target tokens without padding."""
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels" and tensor is not None}
    if task.output_kind == "text":
        vocabulary = config.get_text_config(decoder=True).vocab_size
        tokens = max(1, HELD_OUT_NUMBERS // (HELD_OUT_ROWS * vocabulary))
        inputs = {
            name: tensor[:HELD_OUT_ROWS, :tokens] if name.startswith("decoder_") else tensor[:HELD_OUT_ROWS]
            for name, tensor in inputs.items()
        }
    if "decoder_input_ids" not in inputs:
        return inputs, {}
    rows, tokens = inputs["decoder_input_ids"].shape
    return inputs, {"counted": batch["labels"][:rows, :tokens] != IGNORED}


@torch.no_grad()
def compute_logits(model: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Compute logits and return them in float32 on the CPU."""
    return get_first_output(model(**_move_inputs(batch, model.device)).logits).float().cpu()


@torch.no_grad()
def compute_outputs(
    model: Any, batch: Mapping[str, torch.Tensor], device: torch.device | None = None, **options: Any
) -> dict[str, torch.Tensor]:
    """Compute `logits` and, if possible, the token ids `generated` without sampling, padded by -1.

    `device` is the device of the computation if the weights are on another one; `options` are keywords of `generate`.
    """
    batch = _move_inputs(batch, device or model.device)
    found = {"logits": get_first_output(model(**batch).logits).float().cpu()}
    if "decoder_input_ids" in batch and hasattr(model, "generate"):
        source = {name: tensor for name, tensor in batch.items() if not name.startswith("decoder_")}
        found["generated"] = model.generate(**source, do_sample=False, **options).cpu()
        found["generated"][found["generated"] == model.generation_config.pad_token_id] = -1
    return found
