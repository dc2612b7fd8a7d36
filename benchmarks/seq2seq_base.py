"""Train the small seq2seq base that peftkit ships: a T5 of 3.9 million weights, on text of installed packages.

    python benchmarks/seq2seq_base.py [--work FOLDER] [--max_steps N]

Vocabulary, random weights and rows are made here; peftkit's own full fine-tuning trains them. Two jobs are learned,
told by a prefix: `restore:` a text of which words are masked, and `summarize:` the body of a docstring. The result
lies in WORK/base; what is shipped is a copy of it, with a card, in peftkit/demo/seq2seq_base.
"""

import argparse
import ast
import json
import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from peftkit import DataConfig, ModelConfig, Recipe, Seq2Seq, full
from peftkit.data import load_splits
from peftkit.demo.docstrings import LIBRARIES, documented, modules, place_of, prose
from peftkit.demo.summaries import summaries
from peftkit.log import set_up_logging
from peftkit.metrics.text import text_metrics
from peftkit.run import run

# Installed with peftkit; the first seven are also the demo's, of which modules from 0.5 on are kept apart.
PACKAGES = [*LIBRARIES.values(), "matplotlib", "datasets", "peft", "accelerate", "sympy", "networkx", "jsonargparse"]
SEED = 11
VOCABULARY = 4096
FILES = 2000
MOST_WORDS = 24


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


def rows() -> list[dict[str, str]]:
    """Both jobs, on modules that the demo's data leaves alone."""
    chance = random.Random(SEED)
    found = []
    for module, body, summary in summaries(PACKAGES):
        if place_of(module) < 0.5:
            found.append({"source": f"summarize: {body}", "target": summary})
    for package in PACKAGES:
        for module, tree in modules(package, FILES):
            if place_of(module) < 0.5:
                for node in documented(tree):
                    text = " ".join(prose(ast.get_docstring(node) or "", masked=False).split()[:MOST_WORDS])
                    if len(text.split()) >= 4:
                        found.append({"source": f"restore: {masked(text, chance)}", "target": text})
    unique = list({row["target"]: row for row in found}.values())
    chance.shuffle(unique)
    return unique


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


def main() -> None:
    """Make rows, vocabulary and random weights, then train them by a recipe."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", type=Path, default=Path("runs/seq2seq_base"))
    parser.add_argument("--max_steps", type=int, default=5000)
    words = parser.parse_args()
    set_up_logging()
    words.work.mkdir(parents=True, exist_ok=True)
    found = rows()
    for split, part in (("train", found[1000:]), ("validation", found[500:1000]), ("test", found[:500])):
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in part)
        (words.work / f"{split}.jsonl").write_text(lines, encoding="utf-8")
    start = words.work / "start"
    tokenizer = vocabulary([row["target"] for row in found[1000:]])
    tokenizer.save_pretrained(start)
    torch.manual_seed(SEED)
    config = T5Config(
        vocab_size=len(tokenizer), d_model=192, d_kv=32, d_ff=768, num_layers=3, num_decoder_layers=3, num_heads=6,
        dropout_rate=0.0, pad_token_id=0, eos_token_id=1, decoder_start_token_id=0,
    )  # fmt: skip
    T5ForConditionalGeneration(config).save_pretrained(start)
    report = run(
        Recipe(
            name="seq2seq_base",
            model=ModelConfig(name_or_path=str(start)),
            data=DataConfig(path=str(words.work)),
            task=Seq2Seq(max_source_length=64, max_target_length=48),
            method=full(),
            training=dict(
                output_dir=str(words.work / "base"), max_steps=words.max_steps, per_device_train_batch_size=48,
                per_device_eval_batch_size=64, learning_rate=1e-3, warmup_steps=300, logging_steps=25, seed=SEED,
                train_sampling_strategy="group_by_length",
            ),
        )
    )  # fmt: skip
    answers = [json.loads(line) for line in (words.work / "base" / "predictions.jsonl").read_text().splitlines()]
    jobs = load_splits(DataConfig(path=str(words.work)), Seq2Seq()).test["source"]
    print(f"{len(found[1000:])} training rows, {report.data['rows']}")
    for job in ("restore", "summarize"):
        mine = [answer for answer, source in zip(answers, jobs, strict=True) if source.startswith(job)]
        scores = text_metrics([answer["text"] for answer in mine], [answer["reference"] for answer in mine])
        print(f"{job}: {len(mine)} test rows, " + ", ".join(f"{name} {value:.3f}" for name, value in scores.items()))


if __name__ == "__main__":
    main()
