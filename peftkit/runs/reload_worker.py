"""What another program makes of a saved folder. Run by its path in a process of its own; imports no peftkit.

Each line of standard input is a question, a JSON object; each is answered by a child that starts from these imports
alone, and told of by a line of JSON on standard output: what went wrong as `error`, or null, and whether
`peftkit` was imported.

A question's fields: `folder`, `auto_class`, `inputs` (a safetensors file, the model's inputs by name), `output` (the
file to write, with `logits` in float32 and, where the folder brings generation settings, `generated` token ids),
`dtype`, `trust_remote_code`, and for an adapter `base`, `revision` and `quantization` (of BitsAndBytesConfig, or null).
"""

import json
import os
import subprocess
import sys
import tempfile
from typing import Any

import peft
import torch
import transformers
from safetensors.torch import load_file, save_file

SINGLE_REQUEST = "--one"


def load_plain_model(question: dict[str, Any]) -> Any:
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


def load_adapted_model(question: dict[str, Any]) -> Any:
    """The base model with the folder's adapter."""
    trust = {"trust_remote_code": question["trust_remote_code"]}
    config = transformers.AutoConfig.from_pretrained(question["folder"], **trust)
    auto_class = getattr(transformers, question["auto_class"])
    source, options = question["base"], {"dtype": question["dtype"], "revision": question["revision"], **trust}
    with tempfile.TemporaryDirectory() as scratch:
        of_base = transformers.AutoConfig.from_pretrained(source, revision=question["revision"], **trust)
        if config.model_type == "encoder-decoder" != of_base.model_type:
            both = {f"{part}_{name}": value for part in ("encoder", "decoder") for name, value in options.items()}
            twice = transformers.EncoderDecoderModel.from_encoder_decoder_pretrained(source, source, **both)
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
def compute_outputs(question: dict[str, Any]) -> None:
    """Load what the question names, ask it, write its outputs."""
    model = (load_adapted_model if question.get("base") else load_plain_model)(question)
    transformers.AutoTokenizer.from_pretrained(question["folder"], trust_remote_code=question["trust_remote_code"])
    model.eval()
    device = next(model.parameters()).device
    batch = {name: tensor.to(device) for name, tensor in load_file(question["inputs"]).items()}
    logits = model(**batch).logits
    found = {"logits": (logits[0] if isinstance(logits, (tuple, list)) else logits).float()}
    if os.path.exists(os.path.join(question["folder"], "generation_config.json")) and "decoder_input_ids" in batch:
        settings = transformers.GenerationConfig.from_pretrained(question["folder"])
        source = {name: tensor for name, tensor in batch.items() if not name.startswith("decoder_")}
        settings.do_sample = False
        found["generated"] = model.generate(**source, generation_config=settings)
        found["generated"][found["generated"] == settings.pad_token_id] = -1
    save_file({name: tensor.cpu().contiguous() for name, tensor in found.items()}, question["output"])


def handle_request(line: str) -> str:
    """Answer a question; the line to say of it."""
    try:
        compute_outputs(json.loads(line))
        error = None
    except Exception as problem:
        error = " ".join(f"{type(problem).__name__}: {problem}".split())[:500]
    return json.dumps({"error": error, "peftkit": "peftkit" in sys.modules})


def handle_in_child(line: str) -> str:
    """The same, by a child that has these imports alone: a fork, or where a GPU forbids that, a new program."""
    if not hasattr(os, "fork") or torch.cuda.is_available():
        words = [sys.executable, "-P", "-W", "ignore", __file__, SINGLE_REQUEST]
        done = subprocess.run(words, input=line, stdout=subprocess.PIPE, text=True)  # noqa: S603
        return done.stdout.strip() or json.dumps({"error": f"it ended with status {done.returncode}"})
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.close(read)
        with os.fdopen(write, "w") as pipe:
            pipe.write(handle_request(line))
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    return said or json.dumps({"error": f"it ended by signal or status {status}"})


def main() -> None:
    """Answer until standard input ends; with the word `--one` in this process, which is then the child."""
    transformers.utils.logging.disable_progress_bar()
    # What a library prints is no answer.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        answers.write((handle_request(line) if SINGLE_REQUEST in sys.argv else handle_in_child(line)) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
