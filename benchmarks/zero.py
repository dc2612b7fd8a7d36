"""The LoRA recipe under `deepspeed` with 2 ranks and ZeRO 1, 2, 3, beside one process with several seeds.

    python benchmarks/zero.py --data FOLDER [--seeds 1,2,3] [--stages 1,2,3]

The same global batch of 32. What is done already stands in WORK and is not done again. Writes
benchmarks/results/zero_NAME.json and prints the table.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
RECIPE = HERE.parent / "recipes" / "lora_cls.py"


def run(launcher: list, folder: Path, threads: int, options: list) -> dict:
    """Train once, or read what was trained."""
    if not (folder / "report.json").exists():
        command = [*launcher, RECIPE, *options, "--training.output_dir", folder]
        print("+", " ".join(map(str, command)), flush=True)
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
        subprocess.run([str(word) for word in command], check=True, env=environment)
    report = json.loads((folder / "report.json").read_text())
    return {
        "accuracy": report["metrics"]["test"]["accuracy"],
        "loss": report["metrics"]["test"]["loss"],
        "first_loss": next(row["loss"] for row in report["history"] if "loss" in row),
        "process_peak": report["memory"]["process_peak"],
        "train_seconds": next(row["train_runtime"] for row in report["history"][::-1] if "train_runtime" in row),
        "processes": report["environment"]["processes"],
        "seed": report["seed"],
        "environment": report["environment"],
    }


def main() -> None:
    """Run both sides and write the result."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--stages", default="1,2,3")
    parser.add_argument("--work", type=Path, default=Path("runs/against_trainer"))
    options = parser.parse_args()
    data = ["--data.path", options.data]
    alone = [
        run([sys.executable], options.work / f"peftkit-lora-{seed}", 2, [*data, "--training.seed", seed])
        for seed in options.seeds.split(",")
    ]
    deepspeed = [Path(sys.executable).with_name("deepspeed"), "--num_accelerators", 2]
    half = [*data, "--training.per_device_train_batch_size", 16]
    stages = {
        stage: run(
            deepspeed,
            options.work / f"zero{stage}",
            1,
            [*half, "--training.deepspeed", HERE.parent / "ds_configs" / f"zero{stage}.json"],
        )
        for stage in options.stages.split(",")
    }
    name = options.data.resolve().name
    environment = alone[0]["environment"]
    for row in [*alone, *stages.values()]:
        del row["environment"]
    output = HERE / "results" / f"zero_{name}.json"
    result = {"data": name, "environment": environment, "one_process": alone, "two_ranks": stages}
    output.write_text(json.dumps(result, indent=2) + "\n")
    accuracies = [row["accuracy"] for row in alone]
    print("\n| run | test accuracy | test loss | loss of the first 10 steps |\n| --- | ---: | ---: | ---: |")
    for row in alone:
        print(f"| one process, seed {row['seed']} | {row['accuracy']:.4f} | {row['loss']:.4f} | {row['first_loss']} |")
    for stage, row in stages.items():
        print(f"| 2 ranks, ZeRO-{stage} | {row['accuracy']:.4f} | {row['loss']:.4f} | {row['first_loss']} |")
    mean, spread = statistics.mean(accuracies), statistics.stdev(accuracies)
    print(f"\none process: mean {mean:.4f}, standard deviation over seeds {spread:.4f}\n\nwritten: {output}")


if __name__ == "__main__":
    main()
