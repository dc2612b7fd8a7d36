"""Compare the LoRA recipe under `deepspeed` (2 ranks, ZeRO-1, 2, 3) with one process.

    python benchmarks/zero.py --data FOLDER [--seeds 1,2,3] [--stages 1,2,3]

The global batch is always 32 rows. Finished runs are stored in WORK and are not repeated. Writes
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
    """Train, or read the stored run."""
    if not (folder / "report.json").exists():
        command = [*launcher, RECIPE, *options, "--training.output_dir", folder]
        print("+", " ".join(map(str, command)), flush=True)
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
        subprocess.run([str(argument) for argument in command], check=True, env=environment)
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
    """Run all cases and write the result."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--stages", default="1,2,3")
    parser.add_argument("--work", type=Path, default=Path("runs/against_trainer"))
    options = parser.parse_args()
    data = ["--data.path", options.data]
    single = [
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
    environment = single[0]["environment"]
    for row in [*single, *stages.values()]:
        del row["environment"]
    output = HERE / "results" / f"zero_{name}.json"
    result = {"data": name, "environment": environment, "one_process": single, "two_ranks": stages}
    output.write_text(json.dumps(result, indent=2) + "\n")
    accuracies = [row["accuracy"] for row in single]
    print("\n| run | test accuracy | test loss | mean loss of the first 10 steps |\n| --- | ---: | ---: | ---: |")
    for row in single:
        print(f"| one process, seed {row['seed']} | {row['accuracy']:.4f} | {row['loss']:.4f} | {row['first_loss']} |")
    for stage, row in stages.items():
        print(f"| 2 ranks, ZeRO-{stage} | {row['accuracy']:.4f} | {row['loss']:.4f} | {row['first_loss']} |")
    mean, spread = statistics.mean(accuracies), statistics.stdev(accuracies)
    print(f"\none process: mean {mean:.4f}, standard deviation over seeds {spread:.4f}\n\nSaved {output}")


if __name__ == "__main__":
    main()
