"""LoRA: a text becomes another text; summarization, translation, data to text.

python recipes/lora_seq2seq.py
deepspeed recipes/lora_seq2seq.py --training.deepspeed ds_configs/zero2.json

Without other data: the first line of a docstring from the rest of it, by the very small T5 that peftkit brings.
"""

from peftkit import DataConfig, ModelConfig, Recipe, Seq2Seq, lora, main

recipe = Recipe(
    name="lora_seq2seq",
    model=ModelConfig(name_or_path="demo-seq2seq"),  # any T5, BART or other encoder-decoder; a BERT becomes one
    data=DataConfig(path="demo-summaries"),  # any hub id, local folder or data file
    task=Seq2Seq(
        source="source",
        target="target",
        source_prefix="summarize: ",
        max_source_length=96,  # memory of activations grows with it
        max_target_length=32,
        generation=dict(num_beams=1),  # more beams: often better text, as many times the work
    ),
    method=lora(
        r=8,  # more ranks: more capacity, adapter and optimizer grow in proportion
        lora_alpha=16,
        target_modules="all-linear",
    ),
    training=dict(
        num_train_epochs=2,
        learning_rate=3e-3,
        per_device_train_batch_size=32,  # fewer: less memory for activations
        per_device_eval_batch_size=64,
        seed=1,
    ),
)

if __name__ == "__main__":
    main(recipe)
