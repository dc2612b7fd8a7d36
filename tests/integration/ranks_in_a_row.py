"""Trains several recipes in a row in one process group: a launch costs more than training. Of test_token_loss.py."""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from peftkit.data.splits import load_splits
from peftkit.distributed.process_group import leave_process_group, wait_for_ranks
from peftkit.models import adapters
from peftkit.models.loading import load_base, load_tokenizer
from peftkit.recipe.parser import read_recipe
from peftkit.system.logging import is_rank_zero, set_up_logging
from peftkit.training.arguments import build_training_arguments
from peftkit.training.trainer import build_trainer


def trained(recipe, folder):
    """Loss and gradient norm of each step, and the trainable weights, in `folder`; no more of a run than training."""
    arguments = build_training_arguments(recipe, folder)
    torch.manual_seed(arguments.seed)
    splits = load_splits(recipe.data, recipe.task)
    tokenizer = load_tokenizer(recipe.model, recipe.task)
    encoded = {name: recipe.task.encode(rows, tokenizer, splits.labels) for name, rows in splits.rows.items()}
    base = load_base(recipe.model, recipe.task, tokenizer, splits.labels, recipe.method.quantization)
    model = adapters.apply_method(recipe.method, base.model, base.head, recipe.task.model.peft_task_type, base.unused)
    trainer = build_trainer(recipe, model, arguments, tokenizer, encoded, splits.labels, lambda _: {}, [])
    trainer.train()
    learned = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if any(hasattr(parameter, "ds_id") for parameter in learned.values()):
        import deepspeed

        with deepspeed.zero.GatheredParameters(list(learned.values())):
            learned = {name: parameter.detach().clone() for name, parameter in learned.items()}
    if is_rank_zero():
        folder.mkdir(parents=True, exist_ok=True)
        save_file(
            {name: parameter.detach().contiguous() for name, parameter in learned.items()},
            folder / "learned.safetensors",
        )
        rows = [row for row in trainer.state.log_history if "loss" in row]
        (folder / "history.json").write_text(
            json.dumps([[float(row["loss"]), float(row["grad_norm"])] for row in rows])
        )


if __name__ == "__main__":
    set_up_logging()
    for path in sys.argv[2:]:
        trained(read_recipe(Path(path)), Path(sys.argv[1]) / Path(path).stem)
    wait_for_ranks()
    leave_process_group()
