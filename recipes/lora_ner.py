"""LoRA: named entities, a BIO tag for each word.

python recipes/lora_ner.py
deepspeed recipes/lora_ner.py --training.deepspeed ds_configs/zero2.json

Without other data: which words of a docstring are code, and of what kind?
"""

from peftkit import DataConfig, ModelConfig, Recipe, TokenClassification, lora, main

recipe = Recipe(
    name="lora_ner",
    model=ModelConfig(name_or_path="demo"),  # any hub id or local folder
    data=DataConfig(path="demo-entities"),  # any hub id, local folder or data file
    task=TokenClassification(
        tokens="tokens",
        tags="ner_tags",
        max_length=128,  # longer texts are read in parts of so many tokens
        stride=32,
    ),
    method=lora(
        r=8,  # more ranks: more capacity, adapter and optimizer grow in proportion
        lora_alpha=16,
        target_modules="all-linear",
    ),
    training=dict(
        num_train_epochs=3,
        learning_rate=1e-3,
        per_device_train_batch_size=32,  # fewer: less memory for activations
        per_device_eval_batch_size=64,
        seed=1,
    ),
)

if __name__ == "__main__":
    main(recipe)
