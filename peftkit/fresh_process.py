"""What another program makes of an exported model. Run by its path in a process of its own; imports no peftkit.

python -I fresh_process.py MODEL_FOLDER INPUTS.safetensors AUTO_CLASS OUTPUT.safetensors
"""

import sys

import torch
import transformers
from safetensors.torch import load_file, save_file


def main(folder: str, inputs: str, auto_class: str, output: str) -> None:
    """Load `folder` with plain transformers and write its logits, float32, of the batch in `inputs`."""
    transformers.utils.logging.disable_progress_bar()
    model, info = getattr(transformers, auto_class).from_pretrained(folder, output_loading_info=True)
    lacking = sorted(info["missing_keys"])
    if lacking:
        raise SystemExit(f"the saved model lacks {', '.join(lacking)}")
    transformers.AutoTokenizer.from_pretrained(folder)
    model.eval()
    batch = load_file(inputs)
    with torch.no_grad():
        logits = model(**batch).logits
    save_file({"logits": logits.float().contiguous()}, output)


if __name__ == "__main__":
    main(*sys.argv[1:])
