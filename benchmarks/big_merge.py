"""Measure the peak memory of exporting a large merged model, relative to the size of the model.

    python benchmarks/big_merge.py [--layers 20] [--hidden 2048] [--methods lora,qlora]

A BERT with random weights is trained for 3 short steps with each method, and exported in a separate process, whose peak
resident memory is measured. For comparison, another process merges with `merge_and_unload` and `save_pretrained`.
Writes benchmarks/results/big_merge.json.
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from transformers import AutoModel, AutoTokenizer, BertConfig

from peftkit.models.demo import find_demo_model
from peftkit.system.environment import read_environment

RESULT = Path(__file__).resolve().parent / "results" / "big_merge.json"
# Code that prints the peak memory at the end of the measured process.
PEAK = "; import peftkit.system.environment; print('peak', peftkit.system.environment.read_process_peak_bytes())"
EXPORT_CODE = (
    "from pathlib import Path; from peftkit.system.logging import set_up_logging; set_up_logging(); "
    "from peftkit.export.exporter import export; export(Path({run!r}), Path({out!r}))"
)
PLAIN_CODE = (
    "from transformers import AutoModelForSequenceClassification as M; from peft import PeftModel; "
    "base = M.from_pretrained({base!r}, num_labels=7, ignore_mismatched_sizes=True); "
    "PeftModel.from_pretrained(base, {run!r}).merge_and_unload().save_pretrained({out!r})"
)


def measure_peak(code: str, out: Path) -> int:
    """Run the code in a new process and return the peak resident memory in bytes."""
    shutil.rmtree(out, ignore_errors=True)
    done = subprocess.run([sys.executable, "-c", code + PEAK], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    shutil.rmtree(out, ignore_errors=True)
    return int(next(line for line in done.stdout.splitlines() if line.startswith("peak")).split()[1])


def main() -> None:
    """Build the model, train, export, and write the measurements."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--layers", type=int, default=20)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--methods", default="lora,qlora")
    parser.add_argument("--work", type=Path, default=Path("runs/big_merge"))
    options = parser.parse_args()
    base = options.work / "base"
    if not base.exists():
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=30522, hidden_size=options.hidden, num_hidden_layers=options.layers, num_attention_heads=16,
            intermediate_size=4 * options.hidden,
        )  # fmt: skip
        AutoModel.from_config(config).save_pretrained(base)
        AutoTokenizer.from_pretrained(find_demo_model()).save_pretrained(base)
    size = sum(path.stat().st_size for path in base.glob("*.safetensors"))
    rows = []
    for method in options.methods.split(","):
        run, out = options.work / method, options.work / "out"
        if not (run / "report.json").exists():
            recipe = Path(__file__).resolve().parent.parent / "recipes" / f"{method}_cls.py"
            training = {
                "max_steps": 3, "per_device_train_batch_size": 2, "per_device_eval_batch_size": 4, "output_dir": run,
                "disable_tqdm": "true",
            }  # fmt: skip
            command = [sys.executable, recipe, "--model.name_or_path", base, "--task.max_length", 16]
            command += ["--data.max_train_samples", 64, "--data.max_eval_samples", 32]
            command += [part for name, value in training.items() for part in (f"--training.{name}", value)]
            subprocess.run([str(argument) for argument in command], check=True)
        peak = measure_peak(EXPORT_CODE.format(run=str(run), out=str(out)), out)
        row = {"method": method, "base_bytes": size, "ours": peak}
        if method == "lora":
            row["usual"] = measure_peak(PLAIN_CODE.format(base=str(base), run=str(run), out=str(out)), out)
        rows.append(row)
        shares = {name: round(row[name] / size, 3) for name in ("ours", "usual") if name in row}
        print(method, f"{size / 1e9:.2f} GB", shares, flush=True)
        RESULT.write_text(json.dumps({"rows": rows, "environment": read_environment()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
