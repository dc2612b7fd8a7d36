"""Compare planned and measured memory of training: `python benchmarks/planned_memory.py`.

Each case is a process that trains two steps with the Trainer, random weights and random tokens. PyTorch's profiler
counts every allocation of CPU tensors. Another process traces the plan of the same recipe. See benchmarks/README.md.
"""

import argparse
import dataclasses
import gc
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RESULT = HERE / "results" / "planned_memory.json"
BERT = {"tiny": (384, 6, 12, 1536), "base": (768, 12, 12, 3072), "large": (1024, 24, 16, 4096)}
T5 = {"small": (512, 6, 8, 2048), "base": (768, 12, 12, 3072)}
MODELS = ["bert-tiny", "bert-base", "bert-large", "roberta-base", "t5-small", "t5-base"]
METHODS = ["full", "lora", "qlora"]
SHAPES = [(32, 32), (8, 128), (2, 512)]


def make_config(model: str) -> Any:
    """Make the config of a model, for random weights."""
    from transformers import BertConfig, RobertaConfig, T5Config

    kind, _, size = model.partition("-")
    if kind == "t5":
        width, layers, heads, inner = T5[size]
        return T5Config(
            vocab_size=32128, d_model=width, num_layers=layers, num_heads=heads, d_kv=width // heads, d_ff=inner,
            pad_token_id=0, eos_token_id=1, decoder_start_token_id=0,
        )  # fmt: skip
    width, layers, heads, inner = BERT[size]
    common = {
        "hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads, "intermediate_size": inner,
    }  # fmt: skip
    if kind == "roberta":
        return RobertaConfig(vocab_size=50265, max_position_embeddings=514, **common)
    return BertConfig(**common)


def make_recipe(model: str, method: str, rows: int, length: int, folder: str, place: str) -> Any:
    """Make the recipe of a case."""
    from peftkit import ModelConfig, Recipe, Seq2Seq, SequenceClassification, full, lora, qlora

    seq2seq = model.startswith("t5")
    task = (
        Seq2Seq(max_source_length=length, max_target_length=length // 4)
        if seq2seq
        else SequenceClassification(max_length=length)
    )
    return Recipe(
        name="planned", model=ModelConfig(name_or_path=place), task=task,
        method={"full": full, "lora": lora, "qlora": qlora}[method](),
        training={
            "output_dir": folder, "per_device_train_batch_size": rows, "max_steps": 2, "report_to": "none",
            "disable_tqdm": True, "use_cpu": True,
        },
    )  # fmt: skip


def measure(recipe: Any) -> dict[str, int]:
    """Measure the bytes of weights and optimizer state, and the peak of two training steps."""
    from datasets import Dataset
    from torch.profiler import ProfilerActivity, profile

    from peftkit.models import adapters
    from peftkit.models.loading import load_base, load_tokenizer
    from peftkit.planning.dummy_batch import make_dummy_batch
    from peftkit.planning.meta_model import sum_model_bytes
    from peftkit.system.environment import count_optimizer_bytes
    from peftkit.training.arguments import build_training_arguments
    from peftkit.training.trainer import build_trainer

    tokenizer = load_tokenizer(recipe.model, recipe.task)
    labels = ("a", "b")
    base = load_base(recipe.model, recipe.task, tokenizer, labels, recipe.method.quantization)
    model = adapters.apply_method(recipe.method, base.model, base.head, recipe.task.model.peft_task_type)
    arguments = build_training_arguments(recipe, Path(recipe.training["output_dir"]))
    batch = make_dummy_batch(recipe.task, 2 * recipe.training["per_device_train_batch_size"], len(labels))
    rows = Dataset.from_dict({name: tensor.tolist() for name, tensor in batch.items()})
    trainer = build_trainer(
        recipe, model, arguments, tokenizer, {"train": rows, "validation": rows}, labels, lambda _: {}, []
    )
    start = sum_model_bytes(model)
    # Free memory before counting: a later release would be counted as negative.
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        trainer.train()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return {"weights": start, "optimizer": count_optimizer_bytes(trainer.optimizer), "peak": start + peak}


def plan(recipe: Any, model: str) -> dict[str, int]:
    """Return the planned memory."""
    from peftkit.planning.planner import make_arguments
    from peftkit.planning.tracing import trace
    from peftkit.planning.zero import PLACEMENTS, estimate_rank_memory

    arguments = make_arguments(recipe)
    rows = [recipe.training["per_device_train_batch_size"]]
    found = trace(
        make_config(model), recipe.task, recipe.method, arguments, labels=("a", "b"), dtype="float32", rows=rows,
        on_gpu=False,
    )  # fmt: skip
    return dataclasses.asdict(estimate_rank_memory(found, found.steps[0], PLACEMENTS[0], 1))


def run_case(options: argparse.Namespace) -> None:
    """Run one case in this process and print the result as JSON."""
    with tempfile.TemporaryDirectory() as folder:
        recipe = make_recipe(options.model, options.method, options.rows, options.length, folder, options.place)
        found = plan(recipe, options.model) if options.case == "plan" else measure(recipe)
    print(json.dumps(found))


def make_checkpoint(model: str, place: Path) -> Path:
    """Make a folder with random weights of the model and a tokenizer, unless it exists."""
    from transformers import AutoModel, AutoModelForSeq2SeqLM

    from peftkit import ModelConfig, SequenceClassification
    from peftkit.models.loading import load_tokenizer

    folder = place / model
    if not folder.exists():
        kind = AutoModelForSeq2SeqLM if model.startswith("t5") else AutoModel
        kind.from_config(make_config(model)).save_pretrained(folder)
        load_tokenizer(ModelConfig(), SequenceClassification()).save_pretrained(folder)
    return folder


def main() -> None:
    """Run every case that the result file lacks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", choices=("plan", "measure"), help=argparse.SUPPRESS)
    for name in ("model", "method", "place"):
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    for name in ("rows", "length"):
        parser.add_argument(f"--{name}", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--checkpoints", type=Path, default=Path("runs/planned_memory"))
    parser.add_argument("--result", type=Path, default=RESULT)
    options = parser.parse_args()
    if options.case:
        run_case(options)
        return
    from peftkit.system.environment import read_environment
    from peftkit.system.files import write_json

    found = json.loads(options.result.read_text()) if options.result.exists() else {"cases": []}
    found["environment"] = read_environment()
    done = {(one["model"], one["method"], one["rows"], one["length"]) for one in found["cases"]}
    for model in options.models.split(","):
        place = make_checkpoint(model, options.checkpoints)
        for method in METHODS:
            for rows, length in SHAPES:
                if (model, method, rows, length) in done:
                    continue
                case: dict[str, Any] = {"model": model, "method": method, "rows": rows, "length": length}
                for what in ("plan", "measure"):
                    command = [sys.executable, __file__, "--case", what, "--place", str(place)]
                    command += [part for name, value in case.items() if name in ("model", "method", "rows", "length")
                                for part in (f"--{name}", str(value))]  # fmt: skip
                    process = subprocess.run(command, capture_output=True, text=True, check=True)
                    case[what] = json.loads(process.stdout.splitlines()[-1])
                case["error"] = case["plan"]["peak"] / case["measure"]["peak"] - 1
                print(model, method, rows, length, f"{case['error']:+.2%}", flush=True)
                found["cases"].append(case)
                write_json(options.result, found)


if __name__ == "__main__":
    main()
