"""Train the small T5 included in peftkit, with 3.9 million weights, on text of installed packages.

    python benchmarks/seq2seq_base.py [--work FOLDER] [--max_steps N]

Creates rows, vocabulary and random weights, unless WORK contains them, and trains with peftkit's full fine-tuning. A
prefix selects one of two tasks: `restore:` fills in masked words of a text, `summarize:` generates the summary line of
a docstring. WORK/base is the run. WORK/shipped is for peftkit/models/seq2seq_base, with a model card.
"""

import argparse
import ast
import json
import random
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from peftkit import DataConfig, ModelConfig, Recipe, Seq2Seq, full
from peftkit.data.demo.docstrings import LIBRARIES, extract_prose, hash_module, iterate_documentable, parse_modules
from peftkit.data.demo.summaries import extract_summaries
from peftkit.metrics.generation import score_texts
from peftkit.system.logging import set_up_logging
from peftkit.training.run import run

# Installed packages. The demo data uses modules of the first seven packages with a hash from 0.5.
PACKAGES = [
    *LIBRARIES.values(), "matplotlib", "datasets", "peft", "accelerate", "sympy", "networkx", "jsonargparse",
    "deepspeed", "huggingface_hub", "nltk", "sqlalchemy", "PIL", "fontTools", "aiohttp",
]  # fmt: skip
SEED = 11
VOCABULARY = 4096
FILES = 4000
# Number of differently masked copies of each text.
MASKINGS = 2
HELD_OUT = 2000
SPLITS = ("train", "validation", "test")


def mask(text: str, chance: random.Random) -> str:
    """Mask about a fifth of the words of a text, one to three words at a time."""
    words, result = text.split(), []
    place = 0
    while place < len(words):
        if chance.random() < 0.1:
            result.append("<mask>")
            place += chance.choice((1, 2, 3))
        else:
            result.append(words[place])
            place += 1
    return " ".join(result)


def list_texts() -> dict[str, list[str]]:
    """List paragraphs of docstrings; a summary line also has the docstring bodies that it summarizes."""
    found: dict[str, list[str]] = {}
    for package in PACKAGES:
        for module, tree in parse_modules(package, FILES):
            if package in LIBRARIES.values() and hash_module(module) >= 0.5:
                continue
            for node in iterate_documentable(tree):
                for paragraph in (ast.get_docstring(node) or "").split("\n\n"):
                    text = extract_prose(paragraph, is_masked=False)
                    if len(text.split()) >= 4:
                        found.setdefault(text, [])
    for module, body, summary in extract_summaries(PACKAGES):
        if hash_module(module) < 0.5:
            found.setdefault(summary, []).append(f"summarize: {body}")
    return found


def make_splits() -> dict[str, list[dict[str, str]]]:
    """Make the rows of both tasks; splits have no common targets."""
    chance = random.Random(SEED)
    found = list(list_texts().items())
    chance.shuffle(found)
    cut = {"test": found[:HELD_OUT], "validation": found[HELD_OUT : 2 * HELD_OUT], "train": found[2 * HELD_OUT :]}
    rows: dict[str, list[dict[str, str]]] = {}
    for split, part in cut.items():
        rows[split] = [
            {"source": source, "target": text}
            for text, bodies in part
            for source in [
                *(f"restore: {mask(text, chance)}" for _ in range(MASKINGS if split == "train" else 1)),
                *bodies,
            ]
        ]
        chance.shuffle(rows[split])
    return rows


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer, which encodes any text of any language."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
        ),
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", mask_token="<mask>",
        model_max_length=512,
    )  # fmt: skip


def prepare(work: Path) -> Path:
    """Create rows, vocabulary and random weights; return the folder of the weights."""
    start = work / "start"
    if start.exists():
        return start
    work.mkdir(parents=True, exist_ok=True)
    found = make_splits()
    for split, rows in found.items():
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (work / f"{split}.jsonl").write_text(lines, encoding="utf-8")
    tokenizer = train_tokenizer(sorted({row["target"] for row in found["train"]}))
    torch.manual_seed(SEED)
    config = T5Config(
        vocab_size=len(tokenizer), d_model=192, d_kv=32, d_ff=768, num_layers=3, num_decoder_layers=3, num_heads=6,
        dropout_rate=0.0, pad_token_id=0, eos_token_id=1, decoder_start_token_id=0,
    )  # fmt: skip
    T5ForConditionalGeneration(config).save_pretrained(start)
    tokenizer.save_pretrained(start)
    return start


def export_model(work: Path) -> None:
    """Save the trained model alone, in float16, with settings for further training in float32."""
    model = T5ForConditionalGeneration.from_pretrained(work / "base")
    model.config.update({"dropout_rate": 0.1, "use_cache": True})
    model.generation_config.max_new_tokens = None
    model.save_pretrained(work / "shipped")
    file = work / "shipped" / "model.safetensors"
    save_file({name: tensor.half() for name, tensor in load_file(file).items()}, file, metadata={"format": "pt"})
    AutoTokenizer.from_pretrained(work / "start").save_pretrained(work / "shipped")


def main() -> None:
    """Prepare the data, train from a recipe, export the model, and evaluate each task."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", type=Path, default=Path("runs/seq2seq_base"))
    parser.add_argument("--max_steps", type=int, default=11_000)
    options = parser.parse_args()
    set_up_logging()
    report = run(
        Recipe(
            name="seq2seq_base",
            model=ModelConfig(name_or_path=str(prepare(options.work))),
            data=DataConfig(data_files={split: str(options.work / f"{split}.jsonl") for split in SPLITS}),
            task=Seq2Seq(max_source_length=64, max_target_length=64),
            method=full(),
            training=dict(
                output_dir=str(options.work / "base"), max_steps=options.max_steps, per_device_train_batch_size=256,
                per_device_eval_batch_size=256, learning_rate=2e-3, warmup_steps=400, logging_steps=100, seed=SEED,
                dataloader_num_workers=4,
            ),
        )
    )  # fmt: skip
    export_model(options.work)
    predictions = [json.loads(line) for line in (options.work / "base" / "predictions.jsonl").read_text().splitlines()]
    rows = [json.loads(line) for line in (options.work / "test.jsonl").read_text().splitlines()]
    print(report.data["rows"], report.times, report.environment["gpus"] or report.environment["cpu"])
    for prefix in ("restore", "summarize"):
        pairs = zip(predictions, rows, strict=True)
        selected = [prediction for prediction, row in pairs if row["source"].startswith(prefix)]
        scores = score_texts([one["text"] for one in selected], [one["reference"] for one in selected])
        print(
            f"{prefix}: {len(selected)} test rows, "
            + ", ".join(f"{name} {value:.3f}" for name, value in scores.items())
        )


if __name__ == "__main__":
    main()
