"""Compare planned and allocated memory on one GPU: `python benchmarks/planned_gpu.py --data FOLDER`.

Reads recipes and peaks from results/h200.json and plans each recipe for the longest row. FOLDER contains the data sets
by name. See benchmarks/README.md.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

from peftkit.data.splits import load_splits
from peftkit.models.loading import load_tokenizer
from peftkit.planning.planner import make_arguments, read_config
from peftkit.planning.tracing import trace
from peftkit.planning.zero import estimate_rank_memory, parse_placement
from peftkit.recipe.parser import dict_to_recipe
from peftkit.training.report_builder import measure_longest_rows

RESULTS = Path(__file__).resolve().parent / "results"
# DeepSpeed's default bucket size, which ds_configs/zero2.json used at the time of the measurement.
MEASURED_BUCKET = 500_000_000


def plan_peak(row: dict, data: Path) -> int:
    """Return the planned peak of a measured run in bytes."""
    recipe = dict_to_recipe(row["recipe"])
    if not recipe.data.path.startswith("demo"):
        recipe = replace(recipe, data=replace(recipe.data, path=str(data / row["data"])))
    splits = load_splits(recipe.data, recipe.task)
    encoded = recipe.task.encode(splits.train, load_tokenizer(recipe.model, recipe.task), splits.labels)
    config = recipe.training.get("deepspeed")
    arguments = make_arguments(recipe)
    memory = trace(
        read_config(recipe.model), replace(recipe.task, **measure_longest_rows(recipe.task, encoded)), recipe.method,
        arguments,
        labels=splits.labels, dtype=recipe.model.dtype, rows=(arguments.per_device_train_batch_size,), on_gpu=True,
        deepspeed=config is not None,
    )  # fmt: skip
    placement = parse_placement(config)
    if placement.stage == 2:
        placement = replace(placement, bucket=MEASURED_BUCKET)
    return estimate_rank_memory(memory, memory.steps[0], placement, 1).peak


def main() -> None:
    """Write the result and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    options = parser.parse_args()
    rows = [
        {"run": row["run"], "planned": plan_peak(row, options.data), "measured": row["memory"]["allocated_peak"]}
        for row in json.loads((RESULTS / "h200.json").read_text())["rows"]
    ]
    (RESULTS / "planned_gpu.json").write_text(json.dumps({"rows": rows}, indent=2) + "\n")
    print("| run | planned | measured | error |\n| --- | ---: | ---: | ---: |")
    for row in rows:
        plan, measured = row["planned"], row["measured"]
        print(f"| {row['run']} | {plan / 2**20:,.0f} MiB | {measured / 2**20:,.0f} MiB | {plan / measured - 1:+.1%} |")


if __name__ == "__main__":
    main()
