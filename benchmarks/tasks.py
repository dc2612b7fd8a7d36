"""Compare peftkit with the plain Trainer for every task: full, LoRA and QLoRA on real data.

    python benchmarks/tasks.py --data FOLDER [--only trec,mrpc] [--table]

FOLDER contains one folder of JSON Lines files per data set. Subsets of at most 2,000 training and 1,000 test rows are
sampled with a seed. Trainer and peftkit run at the same time on one core each, so that other load slows both. A row in
benchmarks/results/tasks.json with the same settings and weights is not repeated: an interrupted benchmark continues.
`--table` only prints the stored rows.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from peftkit.models.demo import find_demo_model
from peftkit.system.environment import read_environment

HERE = Path(__file__).resolve().parent
RESULT = HERE / "results" / "tasks.json"
METHODS = ("full", "lora", "qlora")
DATA_SEED = 7


@dataclass(frozen=True, kw_only=True)
class Row:
    """One data set of the table."""

    files: dict[str, str]
    kind: str
    task: dict
    metrics: tuple[str, ...]
    epochs: int
    seeds: tuple[int, ...] = (1,)
    train: int = 1000
    test: int = 1000
    batch: int = 32
    model: str = "demo"
    learning_rate: dict[str, float] = field(default_factory=lambda: {"full": 5e-5, "lora": 1e-3, "qlora": 1e-3})


TEXT = {"text": "text", "label": "label", "max_length": 64}
PAIR = {"text": "sentence1", "text_pair": "sentence2", "max_length": 96}
THREE = {"train": "train.jsonl", "validation": "dev.jsonl", "test": "test.jsonl"}
TWO = {"train": "train.jsonl", "test": "test.jsonl"}
SEEDS = (1, 2, 3)
T5 = {"model": "demo-seq2seq", "batch": 16, "learning_rate": {"full": 1e-3, "lora": 3e-3, "qlora": 3e-3}}
ROWS = {
    "sst2_sentences": Row(
        files=THREE, kind="SequenceClassification", task=TEXT, metrics=("accuracy",), epochs=3, seeds=SEEDS
    ),
    "trec": Row(files=TWO, kind="SequenceClassification", task=TEXT, metrics=("accuracy",), epochs=3, seeds=SEEDS),
    "mrpc": Row(
        files=THREE, kind="SequenceClassification", task={**PAIR, "label": "label"}, metrics=("accuracy", "f1_macro"),
        epochs=3, seeds=SEEDS,
    ),
    "wnut17": Row(
        files=THREE, kind="TokenClassification", task={"tokens": "tokens", "tags": "ner_tags", "max_length": 96},
        metrics=("f1",), epochs=5, batch=16, seeds=SEEDS,
        # With 5e-5 full fine-tuning learns no entities in this number of steps.
        learning_rate={"full": 2e-4, "lora": 1e-3, "qlora": 1e-3},
    ),
    "banking77": Row(files=TWO, kind="SequenceClassification", task=TEXT, metrics=("accuracy",), epochs=8),
    "stsb": Row(
        files=THREE, kind="SequenceRegression", task={**PAIR, "label": "score"}, epochs=3,
        metrics=("pearson", "spearman"),
    ),
    "goemotions": Row(
        files=THREE, kind="MultiLabelClassification", task={**TEXT, "label": "labels"}, epochs=4, train=2000, batch=16,
        metrics=("f1_macro", "f1_micro"), learning_rate={"full": 2e-4, "lora": 1e-3, "qlora": 1e-3},
    ),
    "waimai10k": Row(
        files={"train": "all.jsonl"}, kind="SequenceClassification", task=TEXT, metrics=("accuracy",), epochs=2,
        model="minilm-zh",
    ),
    "e2e_nlg": Row(
        files=THREE, kind="Seq2Seq", metrics=("rougeL", "bleu"), epochs=3, **T5,
        task={"source": "source", "target": "target", "references_column": "targets", "max_source_length": 96,
              "max_target_length": 64},
    ),
    "dialogsum": Row(
        files=THREE, kind="Seq2Seq", metrics=("rougeL", "bleu"), epochs=2, test=500, **T5,
        task={"source": "source", "target": "target", "references_column": "targets",
              "source_prefix": "summarize: ", "max_source_length": 256, "max_target_length": 64},
    ),
    "multi30k": Row(
        files=THREE, kind="Seq2Seq", metrics=("rougeL", "bleu"), epochs=4, **T5,
        task={"source": "en", "target": "de", "max_source_length": 64, "max_target_length": 64},
    ),
}  # fmt: skip


def make_subset(name: str, row: Row, options: argparse.Namespace) -> Path:
    """Sample the rows of a data set with a seed and write three files, unless they exist."""
    folder = options.work / "data" / f"{name}-{row.train}-{row.test}"
    if folder.exists():
        return folder
    found = {
        split: (options.data / name / file).read_text(encoding="utf-8").splitlines()
        for split, file in row.files.items()
    }
    chance = random.Random(DATA_SEED)
    for lines in found.values():
        chance.shuffle(lines)
    for split, most in (("test", row.test), ("validation", 500)):
        if split not in found:
            found[split], found["train"] = found["train"][:most], found["train"][most:]
    folder.mkdir(parents=True)
    for split, most in (("train", row.train), ("validation", 500), ("test", row.test)):
        (folder / f"{split}.jsonl").write_text("\n".join(found[split][:most]) + "\n", encoding="utf-8")
    return folder


def make_chinese_model(options: argparse.Namespace) -> Path:
    """Make all-MiniLM-L6-v2 with the vocabulary of bert-base-chinese and random new embeddings."""
    folder = options.work / "minilm-zh"
    if not folder.exists():
        source = find_demo_model()
        vocabulary = options.data.parent / "tokenizers" / "bert-base-chinese"
        tokenizer, known = AutoTokenizer.from_pretrained(vocabulary), AutoTokenizer.from_pretrained(source).get_vocab()
        weights = load_file(source / "model.safetensors")
        name = next(name for name in weights if name.endswith("word_embeddings.weight"))
        old = weights[name]
        new = torch.randn(len(tokenizer), old.shape[1], generator=torch.Generator().manual_seed(0)) * old.std()
        for token, index in tokenizer.get_vocab().items():
            if token in known:
                new[index] = old[known[token]]
        folder.mkdir(parents=True)
        save_file({**weights, name: new}, folder / "model.safetensors", {"format": "pt"})
        config = json.loads((source / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "vocab_size": len(tokenizer)}))
        tokenizer.save_pretrained(folder)
    return folder


def find_model_folder(row: Row, options: argparse.Namespace) -> Path:
    """Return the folder with the weights of a row."""
    return make_chinese_model(options) if row.model == "minilm-zh" else find_demo_model(row.model)


def compute_digest(data: bytes) -> str:
    """Compute a short SHA-256 digest, unique for a few hundred values."""
    return hashlib.sha256(data).hexdigest()[:12]


def collect_settings(row: Row, options: argparse.Namespace) -> dict:
    """Collect the settings that identify a row: all fields except seeds and metrics."""
    found = {name: value for name, value in vars(row).items() if name not in ("seeds", "metrics")}
    return {**found, "weights": compute_digest((find_model_folder(row, options) / "model.safetensors").read_bytes())}


def make_commands(
    name: str, row: Row, method: str, seed: int, options: argparse.Namespace
) -> dict[str, tuple[list, Path]]:
    """Return command and result file of Trainer and peftkit."""
    model = str(find_model_folder(row, options))
    training = {
        "num_train_epochs": row.epochs, "per_device_train_batch_size": row.batch, "per_device_eval_batch_size": 64,
    }  # fmt: skip
    settings = {
        "data": str(make_subset(name, row, options)), "model": model, "kind": row.kind, "task": row.task,
        "training": training, "learning_rate": row.learning_rate,
    }  # fmt: skip
    # The digest separates files of different settings.
    run = f"{name}-{method}-{seed}-{compute_digest(json.dumps(collect_settings(row, options)).encode())}"
    file = options.work / f"{run}.json"
    file.write_text(json.dumps(settings))
    recipe = {
        "name": f"{name} {method}",
        "model": {"name_or_path": model},
        "data": {"path": settings["data"]},
        "task": {"class_path": f"peftkit.tasks.{row.kind}", "init_args": row.task},
        "method": {"name": method},
        "training": {
            **training, "learning_rate": row.learning_rate[method], "seed": seed, "logging_steps": 10,
            "disable_tqdm": True, "output_dir": str(options.work / "peftkit" / run),
        },
    }  # fmt: skip
    if method != "full":
        adapter = {"r": 8, "lora_alpha": 16, "target_modules": "all-linear"}
        recipe["method"]["peft"] = {"class_path": "peft.LoraConfig", "init_args": adapter}
    if method == "qlora":
        recipe["method"]["quantization"] = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
    recipe_file = options.work / f"{run}.yaml"
    recipe_file.write_text(json.dumps(recipe))
    result = options.work / "trainer" / f"{run}.json"
    plain = [sys.executable, HERE / "plain_trainer.py", file, "--method", method, "--seed", seed, "--output", result]
    return {
        "trainer": (plain, result),
        "peftkit": (
            [sys.executable, "-m", "peftkit", "train", recipe_file],
            Path(recipe["training"]["output_dir"]) / "report.json",
        ),
    }  # fmt: skip


def run_both(sides: dict[str, tuple[list, Path]], options: argparse.Namespace) -> None:
    """Run Trainer and peftkit in parallel on one core each, unless finished."""
    variables = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    running = []
    for side, (command, file) in sides.items():
        if not is_done(file):
            print("+", " ".join(map(str, command)), flush=True)
            log = (options.work / f"{side}.log").open("a")
            running.append(
                subprocess.Popen(
                    [str(argument) for argument in command], env=variables, stdout=log, stderr=subprocess.STDOUT
                )
            )
    if failed := [process.args for process in running if process.wait()]:
        sys.exit(f"failed: {failed[0]}; see {options.work}/*.log")


def is_done(file: Path) -> bool:
    """Whether the result file is complete."""
    return file.exists() and json.loads(file.read_text()).get("status", "complete") == "complete"


def read_result(file: Path) -> dict:
    """Read a result file; convert a report of peftkit to the fields of the plain Trainer."""
    found = json.loads(file.read_text())
    if "status" not in found:
        return found
    return {
        "metrics": {name: value for name, value in found["metrics"]["test"].items() if isinstance(value, float)},
        "process_peak": found["memory"]["process_peak"],
        "train_seconds": next(row["train_runtime"] for row in found["history"][::-1] if "train_runtime" in row),
        "steps": found["audit"]["end_step"],
        "trainable": found["parameters"]["trainable"],
        "rows": found["data"]["rows"],
    }


def format_table(rows: list[dict]) -> str:
    """Format means over seeds of peftkit and Trainer; time and memory are ratios of medians."""
    lines = [
        "| data | rows: train, test | metric | seeds | full | LoRA | QLoRA | plain: full | LoRA | QLoRA | train time "
        "| peak memory |",
        "| --- | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, row in ROWS.items():
        selected = [found for found in rows if found["data"] == name]
        for metric in row.metrics if selected else ():
            size = selected[0]["peftkit"]["rows"]
            seeds = {found["seed"] for found in selected}
            cells = [name, f"{size['train']:,}, {size['test']:,}", metric, str(len(seeds))]
            for side in ("peftkit", "trainer"):
                for method in METHODS:
                    values = [found[side]["metrics"][metric] for found in selected if found["method"] == method]
                    cells.append(format_values(values, percent=metric != "bleu"))
            for what in ("train_seconds", "process_peak"):
                medians = [
                    statistics.median(found[side][what] for found in selected) for side in ("peftkit", "trainer")
                ]
                cells.append(f"{medians[0] / medians[1]:.2f}")
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def format_values(values: list[float], *, percent: bool) -> str:
    """Format the mean, and for several seeds the standard deviation."""
    if not values:
        return ""
    values = [100 * value for value in values] if percent else values
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


def main() -> None:
    """Run the missing rows, write the result and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("runs/tasks"))
    parser.add_argument("--only", default=",".join(ROWS))
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    options.work = options.work.resolve()
    options.work.mkdir(parents=True, exist_ok=True)
    result = json.loads(RESULT.read_text()) if RESULT.exists() else {"environments": {}, "rows": []}
    # Run the first seed of every data set first, so that an early table has all data sets.
    for seed in SEEDS:
        for name in options.only.split(","):
            for method in METHODS if seed in ROWS[name].seeds and not options.table else ():
                row = {"data": name, "method": method, "seed": seed}
                settings = collect_settings(ROWS[name], options)
                others = [found for found in result["rows"] if any(found[part] != row[part] for part in row)]
                same = [found for found in result["rows"] if found not in others and found["settings"] == settings]
                if same:
                    continue
                sides = make_commands(name, ROWS[name], method, seed, options)
                started = time.monotonic()
                run_both(sides, options)
                where = read_environment()
                row |= {
                    "settings": settings, "environment": compute_digest(json.dumps(where).encode()),
                    "seconds": round(time.monotonic() - started),
                }  # fmt: skip
                result["environments"][row["environment"]] = where
                result["rows"] = [*others, {**row, **{side: read_result(file) for side, (_, file) in sides.items()}}]
                RESULT.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n")
                for _, file in sides.values():
                    shutil.rmtree(file.parent if file.name == "report.json" else file.with_suffix(""), True)
                    file.unlink(missing_ok=True)
    print("\n" + format_table(result["rows"]) + f"\n\nSaved {RESULT}")
    timed = [found["seconds"] for found in result["rows"] if found["seconds"] is not None]
    print(f"{len(result['rows'])} rows, of which {len(timed)} took {sum(timed) / 3600:.1f} hours")


if __name__ == "__main__":
    main()
