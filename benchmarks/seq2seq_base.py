"""Train the small seq2seq base that peftkit ships: a T5 of 3.9 million weights, on text of installed packages.

    python benchmarks/seq2seq_base.py [--work FOLDER] [--max_steps N]

Rows, vocabulary and random weights are made first, unless WORK has them; peftkit's own full fine-tuning trains them.
Two jobs are learned, told by a prefix: `restore:` a text of which words are masked, and `summarize:` the body of a
docstring. WORK/base is the run; WORK/shipped goes, with a card, to peftkit/models/seq2seq_base.
"""

import argparse
import ast
import json
import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from peftkit import DataConfig, ModelConfig, Recipe, Seq2Seq, full
from peftkit.data.demo.docstrings import LIBRARIES, extract_prose, hash_module, iterate_documentable, parse_modules
from peftkit.data.demo.summaries import extract_summaries
from peftkit.metrics.generation import score_texts
from peftkit.system.logging import set_up_logging
from peftkit.training.run import run

# Installed with peftkit; of the first seven, modules from 0.5 on are left to the demo's data.
PACKAGES = [
    *LIBRARIES.values(), "matplotlib", "datasets", "peft", "accelerate", "sympy", "networkx", "jsonargparse",
    "deepspeed", "huggingface_hub", "nltk", "sqlalchemy", "PIL", "fontTools", "aiohttp",
]  # fmt: skip
SEED = 11
VOCABULARY = 4096
FILES = 4000
# Each text is to be restored so many times, behind other masks.
MASKINGS = 2
HELD_OUT = 2000
SPLITS = ("train", "validation", "test")


def masked(text: str, chance: random.Random) -> str:
    """The text with about a fifth of its words, one to three at a time, behind a mask."""
    words, kept = text.split(), []
    place = 0
    while place < len(words):
        if chance.random() < 0.1:
            kept.append("<mask>")
            place += chance.choice((1, 2, 3))
        else:
            kept.append(words[place])
            place += 1
    return " ".join(kept)


def texts() -> dict[str, list[str]]:
    """Paragraphs of docstrings, and to those that are a summary line the bodies that they sum up."""
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


def splits() -> dict[str, list[dict[str, str]]]:
    """Rows of both jobs; no target of one split is in another."""
    chance = random.Random(SEED)
    found = list(texts().items())
    chance.shuffle(found)
    cut = {"test": found[:HELD_OUT], "validation": found[HELD_OUT : 2 * HELD_OUT], "train": found[2 * HELD_OUT :]}
    rows: dict[str, list[dict[str, str]]] = {}
    for split, part in cut.items():
        rows[split] = [
            {"source": source, "target": text}
            for text, bodies in part
            for source in [
                *(f"restore: {masked(text, chance)}" for _ in range(MASKINGS if split == "train" else 1)),
                *bodies,
            ]
        ]
        chance.shuffle(rows[split])
    return rows


def vocabulary(texts: list[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE: any text of any language can be written, if at length."""
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
    """Rows, vocabulary and random weights; the folder of the last."""
    start = work / "start"
    if start.exists():
        return start
    work.mkdir(parents=True, exist_ok=True)
    found = splits()
    for split, rows in found.items():
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (work / f"{split}.jsonl").write_text(lines, encoding="utf-8")
    tokenizer = vocabulary(sorted({row["target"] for row in found["train"]}))
    torch.manual_seed(SEED)
    config = T5Config(
        vocab_size=len(tokenizer), d_model=192, d_kv=32, d_ff=768, num_layers=3, num_decoder_layers=3, num_heads=6,
        dropout_rate=0.0, pad_token_id=0, eos_token_id=1, decoder_start_token_id=0,
    )  # fmt: skip
    T5ForConditionalGeneration(config).save_pretrained(start)
    tokenizer.save_pretrained(start)
    return start


def ship(work: Path) -> None:
    """The trained model alone, with the settings of one that is to be trained further."""
    model = T5ForConditionalGeneration.from_pretrained(work / "base")
    model.config.update({"dropout_rate": 0.1, "use_cache": True})
    model.generation_config.max_new_tokens = None
    model.save_pretrained(work / "shipped")
    AutoTokenizer.from_pretrained(work / "start").save_pretrained(work / "shipped")


def main() -> None:
    """Make what is not there, then train by a recipe, score each job on its own, and copy what is shipped."""
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
    ship(options.work)
    answers = [json.loads(line) for line in (options.work / "base" / "predictions.jsonl").read_text().splitlines()]
    rows = [json.loads(line) for line in (options.work / "test.jsonl").read_text().splitlines()]
    print(report.data["rows"], report.times, report.environment["gpus"] or report.environment["cpu"])
    for job in ("restore", "summarize"):
        mine = [answer for answer, row in zip(answers, rows, strict=True) if row["source"].startswith(job)]
        scores = score_texts([answer["text"] for answer in mine], [answer["reference"] for answer in mine])
        print(f"{job}: {len(mine)} test rows, " + ", ".join(f"{name} {value:.3f}" for name, value in scores.items()))


if __name__ == "__main__":
    main()
