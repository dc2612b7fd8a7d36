"""Train with the plain Trainer and plain peft, without peftkit; write one JSON file per run.

    python benchmarks/plain_trainer.py SETTINGS.json --method lora --seed 1 --output result.json

The settings file has the data folder, the task with columns and lengths, and training arguments, equal to the settings
of peftkit in a benchmark.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from datasets import load_dataset
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from rouge_score import rouge_scorer
from sacrebleu.metrics import BLEU
from scipy.stats import pearsonr, spearmanr
from seqeval.metrics import f1_score as entity_f1
from sklearn.metrics import f1_score
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
    DataCollatorForSeq2Seq,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainingArguments,
    set_seed,
)


def list_text_columns(task):
    """List the column of the text, or both columns of a pair."""
    return [task["text"]] + ([task["text_pair"]] if task.get("text_pair") else [])


def prepare_classifier(kind, task, data, tokenizer):
    """Return encoded rows, keywords of the head, and a metric function, for labels or a number."""
    if kind == "MultiLabelClassification":
        names = sorted({name for row in data["train"][task["label"]] for name in row})
        head = {"num_labels": len(names), "problem_type": "multi_label_classification"}

        def label(value):
            return [float(name in value) for name in names]

        def score(logits, right):
            predicted = logits > 0
            seen = (predicted.any(0)) | (right.any(0))
            return {
                "f1_macro": f1_score(right[:, seen], predicted[:, seen], average="macro", zero_division=0),
                "f1_micro": f1_score(right, predicted, average="micro", zero_division=0),
            }
    elif kind == "SequenceRegression":
        head, label = {"num_labels": 1, "problem_type": "regression"}, float

        def score(logits, right):
            return {
                "pearson": pearsonr(logits[:, 0], right).statistic,
                "spearman": spearmanr(logits[:, 0], right).statistic,
            }
    else:
        names = sorted(data["train"].unique(task["label"]))
        head = {"num_labels": len(names)}
        label = names.index

        def score(logits, right):
            found = logits.argmax(-1)
            return {"accuracy": np.mean(found == right), "f1_macro": f1_score(right, found, average="macro")}

    # Rename the column: a new column `labels` would be cast to the integers of the old column.
    data = data.rename_column(task["label"], "right")

    def encode(batch):
        texts = (batch[column] for column in list_text_columns(task))
        encoded = tokenizer(*texts, truncation=True, max_length=task["max_length"])
        return {**encoded, "labels": [label(value) for value in batch["right"]]}

    encoded = data.map(encode, batched=True, remove_columns=data["train"].column_names)
    return encoded, head, lambda predictions: score(predictions.predictions, predictions.label_ids)


def prepare_tagger(task, data, tokenizer):
    """Prepare BIO tags like `prepare_classifier`, at the first token of a word; truncate long texts."""
    kinds = sorted({tag[2:] for row in data["train"][task["tags"]] for tag in row if tag != "O"})
    names = ["O", *(f"{place}-{kind}" for kind in kinds for place in "BI")]

    def encode(batch):
        encoded = tokenizer(
            batch[task["tokens"]], is_split_into_words=True, truncation=True, max_length=task["max_length"]
        )
        labels = []
        for row, tags in enumerate(batch[task["tags"]]):
            places, before = encoded.word_ids(row), None
            labels.append([])
            for place in places:
                labels[-1].append(-100 if place is None or place == before else names.index(tags[place]))
                before = place
        return {**encoded, "labels": labels}

    def score(predictions):
        found, right = predictions.predictions.argmax(-1), predictions.label_ids
        pairs = [(tags[gold != -100], gold[gold != -100]) for tags, gold in zip(found, right, strict=True)]
        return {
            "f1": entity_f1(
                [[names[i] for i in gold] for _, gold in pairs], [[names[i] for i in tags] for tags, _ in pairs]
            )
        }

    encoded = data.map(encode, batched=True, remove_columns=data["train"].column_names)
    return encoded, {"num_labels": len(names)}, score


def prepare_generator(task, data, tokenizer):
    """Prepare target texts like `prepare_classifier`, with metrics of generated text."""

    def encode(batch):
        sources = [task.get("source_prefix", "") + text for text in batch[task["source"]]]
        encoded = tokenizer(sources, truncation=True, max_length=task["max_source_length"], return_token_type_ids=False)
        targets = tokenizer(text_target=batch[task["target"]], truncation=True, max_length=task["max_target_length"])
        return {**encoded, "labels": targets["input_ids"]}

    def score(predictions):
        ids = np.where(predictions.predictions == -100, tokenizer.pad_token_id, predictions.predictions)
        texts = [text.strip() for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]
        rows = data["test"]
        several = task.get("references_column")
        right = list(rows[several]) if several in rows.column_names else [[one] for one in rows[task["target"]]]
        rouge = rouge_scorer.RougeScorer(["rougeL"])
        most = max(map(len, right))
        streams = [[row[place] if place < len(row) else None for row in right] for place in range(most)]
        return {
            "rougeL": np.mean([rouge.score_multi(r, s)["rougeL"].fmeasure for r, s in zip(right, texts, strict=True)]),
            "bleu": BLEU().corpus_score(texts, streams).score,
        }

    encoded = {split: rows.map(encode, batched=True, remove_columns=rows.column_names) for split, rows in data.items()}
    return encoded, {}, score


def main() -> None:
    """Train, evaluate on test, write the result."""
    parser = argparse.ArgumentParser()
    parser.add_argument("settings", type=Path)
    parser.add_argument("--method", choices=("full", "lora", "qlora"), required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    settings = json.loads(options.settings.read_text())
    kind, task, folder = settings["kind"], settings["task"], Path(settings["data"])

    seq2seq = kind == "Seq2Seq"
    trainer_class = Seq2SeqTrainer if seq2seq else Trainer
    arguments_class = Seq2SeqTrainingArguments if seq2seq else TrainingArguments
    arguments = arguments_class(
        output_dir=str(options.output.with_suffix("")), learning_rate=settings["learning_rate"][options.method],
        seed=options.seed, report_to="none", save_strategy="no", logging_steps=10, disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(), **({"predict_with_generate": True} if seq2seq else {}),
        **settings["training"],
    )  # fmt: skip
    set_seed(options.seed)
    data = load_dataset(str(folder)) if not seq2seq else {
        split: load_dataset("json", data_files=str(folder / f"{split}.jsonl"), split="train")
        for split in ("train", "validation", "test")
    }  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(settings["model"])
    auto = AutoModelForSequenceClassification
    if kind == "TokenClassification":
        encoded, head, score = prepare_tagger(task, data, tokenizer)
        auto, collator, task_type, skipped = AutoModelForTokenClassification, DataCollatorForTokenClassification(tokenizer), "TOKEN_CLS", ["classifier"]  # fmt: skip  # noqa: E501
    elif seq2seq:
        encoded, head, score = prepare_generator(task, data, tokenizer)
        auto, collator, task_type, skipped = AutoModelForSeq2SeqLM, None, "SEQ_2_SEQ_LM", ["lm_head"]
    else:
        encoded, head, score = prepare_classifier(kind, task, data, tokenizer)
        collator, task_type, skipped = DataCollatorWithPadding(tokenizer), "SEQ_CLS", ["classifier"]
    quantization = None
    if options.method == "qlora":
        compute = torch.bfloat16 if torch.cuda.is_available() else torch.float32
        quantization = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=compute, llm_int8_skip_modules=skipped,
        )  # fmt: skip
    model = auto.from_pretrained(settings["model"], quantization_config=quantization, dtype=torch.float32, **head)
    if seq2seq:
        model.generation_config.max_new_tokens = task["max_target_length"]
    if quantization is not None:
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    if options.method != "full":
        # For token classification peft adapts the head as a linear layer and then cannot train it: exclude the head.
        excluded = skipped if kind == "TokenClassification" else None
        config = LoraConfig(
            task_type=task_type, r=8, lora_alpha=16, target_modules="all-linear", exclude_modules=excluded
        )
        model = get_peft_model(model, config)
    trainer = trainer_class(
        model=model, args=arguments, train_dataset=encoded["train"], eval_dataset=encoded["validation"],
        data_collator=collator or DataCollatorForSeq2Seq(tokenizer, model=model), processing_class=tokenizer,
    )  # fmt: skip
    trained = trainer.train().metrics
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    result = {
        "metrics": {name: float(value) for name, value in score(trainer.predict(encoded["test"])).items()},
        "process_peak": int(peak.split()[1]) * 1024,
        "train_seconds": trained["train_runtime"],
        "steps": trainer.state.global_step,
    }
    if torch.cuda.is_available():
        result["allocated_peak"] = torch.cuda.max_memory_allocated()
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
