"""LoRA for text to text: summarization, translation, data to text.

python recipes/lora_seq2seq.py
deepspeed recipes/lora_seq2seq.py --training.deepspeed ds_configs/zero2.json

The demo generates the first line of a docstring from the other lines, with a very small T5 included in peftkit.
"""

from peftkit import DataConfig, ModelConfig, Recipe, Seq2Seq, lora, main

recipe = Recipe(
    name="lora_seq2seq",
    model=ModelConfig(name_or_path="demo-seq2seq"),  # any T5, BART, other encoder-decoder, or BERT
    data=DataConfig(path="demo-summaries"),  # any hub id, local folder or data file
    task=Seq2Seq(
        source="source",
        target="target",
        source_prefix="summarize: ",
        max_source_length=96,  # activation memory grows with this length
        max_target_length=32,
        generation=dict(num_beams=1),  # more beams often give better text; time grows with the number of beams
    ),
    method=lora(
        r=8,  # a higher rank has more capacity, and a larger adapter and optimizer state
        lora_alpha=16,
        target_modules="all-linear",
    ),
    training=dict(
        num_train_epochs=2,
        learning_rate=3e-3,
        per_device_train_batch_size=32,  # a smaller batch needs less activation memory
        per_device_eval_batch_size=64,
        seed=1,
    ),
)

if __name__ == "__main__":
    main(recipe)
