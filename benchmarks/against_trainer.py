"""Compare peftkit's recipes with the plain Trainer and plain peft on the same data and settings.

    python benchmarks/against_trainer.py --data FOLDER [--seeds 1,2,3] [--methods full,lora,qlora]

Trainer and peftkit run alternately, each in a separate process, so that other load slows both. Finished runs are stored
in WORK and are not repeated. Writes benchmarks/results/trainer_NAME.json and prints the table.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path

from peftkit.models.demo import find_demo_model
from peftkit.system.environment import read_environment

HERE = Path(__file__).resolve().parent


def run_trainer(method: str, seed: int, options: argparse.Namespace) -> dict:
    """Run the plain Trainer, or read the stored result."""
    output = options.work / f"trainer-{method}-{seed}.json"
    if not output.exists():
        settings = {
            "data": str(options.data.resolve()), "model": str(find_demo_model()), "kind": "SequenceClassification",
            "task": {"text": "text", "label": "label", "max_length": 128},
            "learning_rate": {"full": 5e-5, "lora": 1e-3, "qlora": 1e-3},
            "training": {
                "num_train_epochs": 1, "max_steps": options.max_steps, "per_device_train_batch_size": 32,
                "per_device_eval_batch_size": 64,
            },
        }  # fmt: skip
        file = options.work / "settings.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(settings))
        script = [sys.executable, HERE / "plain_trainer.py", file, "--method", method, "--seed", seed]
        _run([*script, "--output", output])
    found = json.loads(output.read_text())
    return {"accuracy": found.pop("metrics")["accuracy"], **found}


def run_peftkit(method: str, seed: int, options: argparse.Namespace) -> dict:
    """Run peftkit's recipe, or read the stored result."""
    folder = options.work / f"peftkit-{method}-{seed}"
    if not (folder / "report.json").exists():
        recipe = HERE.parent / "recipes" / f"{method}_cls.py"
        where = ["--data.path", options.data, "--training.output_dir", folder]
        _run([sys.executable, recipe, *where, "--training.seed", seed, "--training.max_steps", options.max_steps])
    report = json.loads((folder / "report.json").read_text())
    return {
        "accuracy": report["metrics"]["test"]["accuracy"],
        "process_peak": report["memory"]["process_peak"],
        "train_seconds": next(row["train_runtime"] for row in report["history"][::-1] if "train_runtime" in row),
        "steps": report["audit"]["end_step"],
    }


def _run(command: list) -> None:
    print("+", " ".join(map(str, command)), flush=True)
    subprocess.run([str(argument) for argument in command], check=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})


def main() -> None:
    """Run Trainer and peftkit alternately and write the result."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", default="1")
    parser.add_argument("--methods", default="full,lora,qlora")
    parser.add_argument("--max_steps", type=int, default=-1)
    parser.add_argument("--work", type=Path, default=Path("runs/against_trainer"))
    options = parser.parse_args()
    rows = []
    for seed in map(int, options.seeds.split(",")):
        for method in options.methods.split(","):
            row = {"method": method, "seed": seed}
            rows.append({**row, "trainer": run_trainer(method, seed, options)})
            rows[-1]["peftkit"] = run_peftkit(method, seed, options)
    name = options.data.resolve().name
    result = {"data": name, "environment": {**read_environment(), "node": platform.machine()}, "rows": rows}
    output = HERE / "results" / f"trainer_{name}.json"
    output.parent.mkdir(exist_ok=True)
    output.write_text(json.dumps(result, indent=2) + "\n")
    print(f"\n{name}: median over seeds {options.seeds}; time and memory are ratios, peftkit / Trainer\n")
    print("| method | Trainer accuracy | peftkit accuracy | train time | peak memory |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for method in options.methods.split(","):
        selected = [row for row in rows if row["method"] == method]
        median = {
            (side, what): statistics.median(row[side][what] for row in selected)
            for side in ("trainer", "peftkit")
            for what in ("accuracy", "process_peak", "train_seconds")
        }
        print(
            f"| {method} | {median['trainer', 'accuracy']:.4f} | {median['peftkit', 'accuracy']:.4f} "
            f"| {median['peftkit', 'train_seconds'] / median['trainer', 'train_seconds']:.2f} "
            f"| {median['peftkit', 'process_peak'] / median['trainer', 'process_peak']:.2f} |"
        )
    print(f"\nSaved {output}")


if __name__ == "__main__":
    main()
