"""Compare three ways to merge QLoRA runs by validation metrics on real data.

    python benchmarks/merges.py --data FOLDER [--only trec,wnut17] [--table]

Trains the QLoRA rows of benchmarks/tasks.py with the same settings and subsets, and exports with `--merge 4bit`, which
evaluates all three merges. Finished rows are stored in benchmarks/results/merges.json and are not repeated.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

from tasks import HERE, ROWS, make_commands

from peftkit.system.environment import read_environment

RESULT = HERE / "results" / "merges.json"
NAMES = ("sst2_sentences", "trec", "mrpc", "wnut17", "stsb", "e2e_nlg")


def measure(name: str, seed: int, options: argparse.Namespace) -> list[dict]:
    """Train and export one run; return the metrics of the merges."""
    command, report = make_commands(name, ROWS[name], "qlora", seed, options)["peftkit"]
    run, out = report.parent, options.work / "export"
    if not report.exists():
        subprocess.run([str(argument) for argument in command], check=True)
    shutil.rmtree(out, ignore_errors=True)
    export = [sys.executable, "-m", "peftkit", "export", run, out, "--merge", "4bit"]
    subprocess.run([str(argument) for argument in export], check=True)
    receipt = json.loads((out / "receipt.json").read_text())
    return receipt["forms"]


def format_table(rows: list[dict]) -> str:
    """Format means over seeds, one line per data set and merge."""
    lines = [
        "| data | metric | seeds | form | score on validation | change | same predictions | divergence |",
        "| --- | --- | ---: | --- | ---: | ---: | ---: | ---: |",
    ]
    for name in dict.fromkeys(row["data"] for row in rows):
        selected = [row for row in rows if row["data"] == name]
        metric = ROWS[name].metrics[0]
        for place, form in enumerate(selected[0]["forms"]):
            every = [row["forms"][place] for row in selected]
            scores = [one["scores"][metric] for one in every]
            changes = [s - row["forms"][0]["scores"][metric] for s, row in zip(scores, selected, strict=True)]
            means = [statistics.mean(one[what] for one in every) for what in ("label_agreement", "divergence")]
            lines.append(
                f"| {name} | {metric} | {len(selected)} | {form['form']} | {statistics.mean(scores):.4f} "
                f"| {statistics.mean(changes):+.4f} | {means[0]:.4f} | {means[1]:.2g} |"
            )
    return "\n".join(lines)


def main() -> None:
    """Run the missing rows and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path)
    parser.add_argument("--work", type=Path, default=Path("runs/merges"))
    parser.add_argument("--only", default=",".join(NAMES))
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    found = json.loads(RESULT.read_text()) if RESULT.exists() else {"rows": []}
    options.work.mkdir(parents=True, exist_ok=True)
    for name in () if options.table else options.only.split(","):
        for seed in ROWS[name].seeds:
            if not any((row["data"], row["seed"]) == (name, seed) for row in found["rows"]):
                forms = measure(name, seed, options)
                found["rows"].append({"data": name, "seed": seed, "forms": forms})
                found["environment"] = read_environment()
                RESULT.write_text(json.dumps(found, indent=1) + "\n")
    print(format_table(found["rows"]))


if __name__ == "__main__":
    main()
