"""LoRA for named entity recognition: a BIO tag for each word.

python recipes/lora_ner.py
deepspeed recipes/lora_ner.py --training.deepspeed ds_configs/zero2.json

The demo data tags code in docstrings with its type.
"""

from peftkit import DataConfig, ModelConfig, Recipe, TokenClassification, lora, main

recipe = Recipe(
    name="lora_ner",
    model=ModelConfig(name_or_path="demo"),  # any hub id or local folder
    data=DataConfig(path="demo-entities"),  # any hub id, local folder or data file
    task=TokenClassification(
        tokens="tokens",
        tags="ner_tags",
        max_length=128,  # longer texts are split into parts of at most 128 tokens
        stride=32,
    ),
    method=lora(
        r=8,  # a higher rank has more capacity, and a larger adapter and optimizer state
        lora_alpha=16,
        target_modules="all-linear",
    ),
    training=dict(
        num_train_epochs=3,
        learning_rate=1e-3,
        per_device_train_batch_size=32,  # a smaller batch needs less activation memory
        per_device_eval_batch_size=64,
        seed=1,
    ),
)

if __name__ == "__main__":
    main(recipe)
