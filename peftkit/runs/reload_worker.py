"""Compute the outputs of a saved folder with only transformers and peft. A script; imports no peftkit.

Each line of standard input is a request, a JSON object. A child process that shares the imports handles the request.
Each reply is a line of JSON on standard output: `error`, a message or null, and `peftkit`, whether peftkit is imported.

Fields of a request: `folder`, `auto_class`, `inputs` (a safetensors file of model inputs by name), `output` (the
file to write, with `logits` in float32 and, if the folder has generation settings, `generated` token ids),
`dtype`, `trust_remote_code`, and for an adapter `base`, `revision` and `quantization` (of BitsAndBytesConfig, or null).
"""

import contextlib
import importlib
import json
import os
import subprocess
import sys
import tempfile
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file

SINGLE_REQUEST = "--one"


def preload(request: dict[str, Any]) -> None:
    """Import the libraries for a request, peft only for an adapter; child processes share them."""
    # The child process reports errors in a request.
    with contextlib.suppress(Exception):
        getattr(transformers, request["auto_class"])
        if request.get("base"):
            importlib.import_module("peft")


def load_plain_model(request: dict[str, Any]) -> Any:
    """Load the model of a folder that contains all weights."""
    model, info = getattr(transformers, request["auto_class"]).from_pretrained(
        request["folder"],
        output_loading_info=True,
        dtype=request["dtype"],
        trust_remote_code=request["trust_remote_code"],
    )
    if lacking := sorted(info["missing_keys"]):
        raise ValueError(f"the saved model lacks {', '.join(lacking)}")
    return model


def load_adapted_model(request: dict[str, Any]) -> Any:
    """Load the base model with the folder's adapter."""
    import peft

    trust = {"trust_remote_code": request["trust_remote_code"]}
    config = transformers.AutoConfig.from_pretrained(request["folder"], **trust)
    auto_class = getattr(transformers, request["auto_class"])
    source, options = request["base"], {"dtype": request["dtype"], "revision": request["revision"], **trust}
    with tempfile.TemporaryDirectory() as scratch:
        base_config = transformers.AutoConfig.from_pretrained(source, revision=request["revision"], **trust)
        if config.model_type == "encoder-decoder" != base_config.model_type:
            both = {f"{part}_{name}": value for part in ("encoder", "decoder") for name, value in options.items()}
            twice = transformers.EncoderDecoderModel.from_encoder_decoder_pretrained(source, source, **both)
            twice.save_pretrained(scratch)
            source, options["revision"] = scratch, None
        if request["quantization"] is not None:
            quantization = transformers.BitsAndBytesConfig(**request["quantization"])
            options["quantization_config"] = quantization
        model = auto_class.from_pretrained(source, config=config, ignore_mismatched_sizes=True, **options)
    if request["quantization"] is not None:
        model = peft.prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
        for module in model.modules():
            # As in training; otherwise a 4-bit layer uses another kernel.
            module.support_avx512bf16_for_cpu = False
    return peft.PeftModel.from_pretrained(model, request["folder"])


@torch.no_grad()
def compute_outputs(request: dict[str, Any]) -> None:
    """Load the model of a request, compute the outputs and write them to a file."""
    model = (load_adapted_model if request.get("base") else load_plain_model)(request)
    transformers.AutoTokenizer.from_pretrained(request["folder"], trust_remote_code=request["trust_remote_code"])
    model.eval()
    device = next(model.parameters()).device
    batch = {name: tensor.to(device) for name, tensor in load_file(request["inputs"]).items()}
    logits = model(**batch).logits
    found = {"logits": (logits[0] if isinstance(logits, (tuple, list)) else logits).float()}
    if os.path.exists(os.path.join(request["folder"], "generation_config.json")) and "decoder_input_ids" in batch:
        settings = transformers.GenerationConfig.from_pretrained(request["folder"])
        source = {name: tensor for name, tensor in batch.items() if not name.startswith("decoder_")}
        settings.do_sample = False
        found["generated"] = model.generate(**source, generation_config=settings)
        found["generated"][found["generated"] == settings.pad_token_id] = -1
    save_file({name: tensor.cpu().contiguous() for name, tensor in found.items()}, request["output"])


def handle_request(line: str) -> str:
    """Handle a request and return the reply line."""
    try:
        compute_outputs(json.loads(line))
        error = None
    except Exception as problem:
        error = " ".join(f"{type(problem).__name__}: {problem}".split())[:500]
    return json.dumps({"error": error, "peftkit": "peftkit" in sys.modules})


def handle_in_child(line: str) -> str:
    """Handle a request in a child process with only these imports: a fork, or with a GPU a new program."""
    if not hasattr(os, "fork") or torch.cuda.is_available():
        arguments = [sys.executable, "-P", "-W", "ignore", __file__, SINGLE_REQUEST]
        done = subprocess.run(arguments, input=line, stdout=subprocess.PIPE, text=True)  # noqa: S603
        return done.stdout.strip() or json.dumps({"error": f"the process ended with status {done.returncode}"})
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.close(read)
        # After a fork PyTorch renews its thread pool at the first use, which is not safe in several threads.
        torch.set_num_threads(torch.get_num_threads())
        with os.fdopen(write, "w") as pipe:
            pipe.write(handle_request(line))
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        reply = pipe.read()
    _, status = os.waitpid(child, 0)
    return reply or json.dumps({"error": f"the process ended with signal or status {status}"})


def main() -> None:
    """Handle requests until standard input ends; with `--one` handle them in this process."""
    transformers.utils.logging.disable_progress_bar()
    # Libraries may print to standard output, which is only for replies: redirect them to standard error.
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        preload(json.loads(line))
        replies.write((handle_request(line) if SINGLE_REQUEST in sys.argv else handle_in_child(line)) + "\n")
        replies.flush()


if __name__ == "__main__":
    main()
