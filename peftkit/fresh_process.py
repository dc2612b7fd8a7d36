"""What another program makes of a saved folder. Run by its path in a process of its own; imports no peftkit.

Each line of standard input is a question, a JSON object; each is answered by a child that starts from these imports
alone, and told of by a line of JSON on standard output: `{"error": null}`, or what went wrong.

A question's fields: `folder`, `auto_class`, `inputs` (a safetensors file, the model's inputs by name), `output` (the
file to write, with `logits` in float32 and, where the folder brings generation settings, `generated` token ids),
`dtype`, `trust_remote_code`, and for an adapter `base`, `revision` and `quantization` (of BitsAndBytesConfig, or null).
"""

import json
import os
import sys
import tempfile
from typing import Any

import peft
import torch
import transformers
from safetensors.torch import load_file, save_file


def plain_model(question: dict[str, Any]) -> Any:
    """The model of a folder that holds all its weights."""
    model, info = getattr(transformers, question["auto_class"]).from_pretrained(
        question["folder"],
        output_loading_info=True,
        dtype=question["dtype"],
        trust_remote_code=question["trust_remote_code"],
    )
    if lacking := sorted(info["missing_keys"]):
        raise ValueError(f"the saved model lacks {', '.join(lacking)}")
    return model


def adapted_model(question: dict[str, Any]) -> Any:
    """The base model with the folder's adapter."""
    trust = {"trust_remote_code": question["trust_remote_code"]}
    config = transformers.AutoConfig.from_pretrained(question["folder"], **trust)
    auto_class = getattr(transformers, question["auto_class"])
    source, options = question["base"], {"dtype": question["dtype"], "revision": question["revision"], **trust}
    with tempfile.TemporaryDirectory() as scratch:
        of_base = transformers.AutoConfig.from_pretrained(source, revision=question["revision"], **trust)
        if config.model_type == "encoder-decoder" != of_base.model_type:
            twice = transformers.EncoderDecoderModel.from_encoder_decoder_pretrained(source, source)
            twice.save_pretrained(scratch)
            source, options["revision"] = scratch, None
        if question["quantization"] is not None:
            quantization = transformers.BitsAndBytesConfig(**question["quantization"])
            options["quantization_config"] = quantization
        model = auto_class.from_pretrained(source, config=config, ignore_mismatched_sizes=True, **options)
    if question["quantization"] is not None:
        model = peft.prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
        for module in model.modules():
            # With it a 4-bit layer computes in another way than the one it was trained in.
            module.support_avx512bf16_for_cpu = False
    return peft.PeftModel.from_pretrained(model, question["folder"])


@torch.no_grad()
def answer(question: dict[str, Any]) -> None:
    """Load what the question names, ask it, write its outputs."""
    model = (adapted_model if question.get("base") else plain_model)(question)
    transformers.AutoTokenizer.from_pretrained(question["folder"], trust_remote_code=question["trust_remote_code"])
    model.eval()
    device = next(model.parameters()).device
    batch = {name: tensor.to(device) for name, tensor in load_file(question["inputs"]).items()}
    logits = model(**batch).logits
    found = {"logits": (logits[0] if isinstance(logits, (tuple, list)) else logits).float()}
    if os.path.exists(os.path.join(question["folder"], "generation_config.json")) and "decoder_input_ids" in batch:
        settings = transformers.GenerationConfig.from_pretrained(question["folder"])
        source = {name: tensor for name, tensor in batch.items() if not name.startswith("decoder_")}
        found["generated"] = model.generate(**source, generation_config=settings)
    save_file({name: tensor.cpu().contiguous() for name, tensor in found.items()}, question["output"])


def main() -> None:
    """Answer until standard input ends."""
    transformers.utils.logging.disable_progress_bar()
    # What a library prints is no answer.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        child = os.fork() if hasattr(os, "fork") else 0
        if child:
            _, status = os.waitpid(child, 0)
            if status:
                answers.write(json.dumps({"error": f"it ended by signal or status {status}"}) + "\n")
                answers.flush()
            continue
        try:
            answer(json.loads(line))
            told = None
        except Exception as error:
            told = " ".join(f"{type(error).__name__}: {error}".split())[:500]
        answers.write(json.dumps({"error": told, "peftkit": "peftkit" in sys.modules}) + "\n")
        answers.flush()
        if hasattr(os, "fork"):
            os._exit(0)


if __name__ == "__main__":
    main()
