"""The plan beside what one GPU allocated: `python benchmarks/planned_gpu.py --data FOLDER`; see benchmarks/README.md.

Takes the recipes and peaks of results/h200.json and plans each for its longest row. FOLDER holds the data sets by name.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

from peftkit.data import load_splits
from peftkit.distributed import deepspeed_config
from peftkit.memory_trace import trace
from peftkit.model import load_tokenizer
from peftkit.parsing import dict_to_recipe
from peftkit.plan import arguments_of, read_config
from peftkit.run_plan import longest
from peftkit.zero_memory import placement_of, rank_memory

MEASURED = Path(__file__).resolve().parent / "results" / "h200.json"
# What ds_configs/zero2.json left to DeepSpeed when this was measured.
BUCKET_THEN = 500_000_000


def planned(row: dict, data: Path) -> int:
    """Bytes that the plan gives a measured run at its peak."""
    recipe = dict_to_recipe(row["recipe"])
    model = "demo-seq2seq" if row["run"].startswith("seq2seq") else "demo"
    place = row["data"] if row["data"].startswith("demo") else str(data / row["data"])
    recipe = replace(
        recipe, model=replace(recipe.model, name_or_path=model), data=replace(recipe.data, path=place)
    )  # fmt: skip
    splits = load_splits(recipe.data, recipe.task)
    encoded = recipe.task.encode(splits.train, load_tokenizer(recipe.model, recipe.task), splits.labels)
    config = recipe.training.get("deepspeed")
    arguments = arguments_of(recipe)
    memory = trace(
        read_config(recipe.model), replace(recipe.task, **longest(recipe, encoded)), recipe.method, arguments,
        labels=splits.labels, dtype=recipe.model.dtype, rows=(arguments.per_device_train_batch_size,), on_gpu=True,
        deepspeed=config is not None,
    )  # fmt: skip
    placement = placement_of(None if config is None else deepspeed_config(config))
    if placement.stage == 2:
        placement = replace(placement, bucket=BUCKET_THEN)
    return rank_memory(memory, memory.steps[0], placement, 1).peak


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    words = parser.parse_args()
    print("| run | planned | measured | error |\n| --- | ---: | ---: | ---: |")
    for row in json.loads(MEASURED.read_text())["rows"]:
        plan, measured = planned(row, words.data), row["memory"]["allocated_peak"]
        print(f"| {row['run']} | {plan / 2**20:,.0f} MiB | {measured / 2**20:,.0f} MiB | {plan / measured - 1:+.1%} |")


if __name__ == "__main__":
    main()
