"""The peer: the plain Trainer with plain peft, no peftkit code. One run, one JSON.

python benchmarks/plain_trainer.py --method lora --data FOLDER --model FOLDER --seed 1 --output result.json
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from datasets import load_dataset
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    set_seed,
)

LEARNING_RATES = {"full": 5e-5, "lora": 1e-3, "qlora": 1e-3}


def main() -> None:
    """Train, test, write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--method", choices=LEARNING_RATES, required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--max_steps", type=int, default=-1)
    words = parser.parse_args()

    arguments = TrainingArguments(
        output_dir=str(words.output.with_suffix("")), num_train_epochs=1, learning_rate=LEARNING_RATES[words.method],
        per_device_train_batch_size=32, per_device_eval_batch_size=64, seed=words.seed, report_to="none",
        save_strategy="no", logging_steps=10, max_steps=words.max_steps, use_cpu=not torch.cuda.is_available(),
    )  # fmt: skip
    set_seed(words.seed)
    data = load_dataset(words.data)
    labels = sorted(data["train"].unique("label"))
    tokenizer = AutoTokenizer.from_pretrained(words.model)
    encoded = data.map(
        lambda batch: {**tokenizer(batch["text"], truncation=True, max_length=128), "labels": batch["label"]},
        batched=True, remove_columns=data["train"].column_names,
    )  # fmt: skip
    quantization = None
    if words.method == "qlora":
        compute = torch.bfloat16 if torch.cuda.is_available() else torch.float32
        quantization = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=compute, llm_int8_skip_modules=["classifier"],
        )  # fmt: skip
    model = AutoModelForSequenceClassification.from_pretrained(
        words.model, num_labels=len(labels), quantization_config=quantization, dtype=torch.float32
    )
    if quantization is not None:
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    if words.method != "full":
        config = LoraConfig(task_type="SEQ_CLS", r=8, lora_alpha=16, target_modules="all-linear")
        model = get_peft_model(model, config)
    trainer = Trainer(
        model=model, args=arguments, train_dataset=encoded["train"], eval_dataset=encoded["validation"],
        data_collator=DataCollatorWithPadding(tokenizer), processing_class=tokenizer,
    )  # fmt: skip
    trained = trainer.train().metrics
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    predictions = trainer.predict(encoded["test"])
    accuracy = float(np.mean(predictions.predictions.argmax(-1) == predictions.label_ids))
    result = {
        "accuracy": accuracy,
        "process_peak": int(peak.split()[1]) * 1024,
        "train_seconds": trained["train_runtime"],
        "steps": trainer.state.global_step,
    }
    if torch.cuda.is_available():
        result["allocated_peak"] = torch.cuda.max_memory_allocated()
    words.output.parent.mkdir(parents=True, exist_ok=True)
    words.output.write_text(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
