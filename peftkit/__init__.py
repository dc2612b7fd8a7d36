"""peftkit: fine-tune transformers (full, LoRA, QLoRA, ...) from one recipe, compare methods, export."""

import importlib
import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from peftkit.cli.commands.train import main
    from peftkit.data.formats import BadRow, DataFormat, register_data_format
    from peftkit.export.formats.base import ExportFormat
    from peftkit.export.formats.registry import register_export_format
    from peftkit.metrics.base import Metric, register_metric
    from peftkit.prediction.predictor import load
    from peftkit.recipe.method import Method, Quantization, full, lora, qlora
    from peftkit.recipe.schema import DataConfig, ModelConfig, Recipe
    from peftkit.tasks import (
        MultiLabelClassification,
        Seq2Seq,
        SequenceClassification,
        SequenceRegression,
        TokenClassification,
        register_task,
    )

__version__ = "0.1.0"

# bitsandbytes warns at import that an optional kernel package is missing, even when nothing is in 4 bits.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

_HOMES = {
    "BadRow": "data.formats",
    "DataConfig": "recipe.schema",
    "DataFormat": "data.formats",
    "ExportFormat": "export.formats.base",
    "Method": "recipe.method",
    "Metric": "metrics.base",
    "ModelConfig": "recipe.schema",
    "MultiLabelClassification": "tasks",
    "Quantization": "recipe.method",
    "Recipe": "recipe.schema",
    "Seq2Seq": "tasks",
    "SequenceClassification": "tasks",
    "SequenceRegression": "tasks",
    "TokenClassification": "tasks",
    "full": "recipe.method",
    "load": "prediction.predictor",
    "lora": "recipe.method",
    "main": "cli.commands.train",
    "qlora": "recipe.method",
    "register_data_format": "data.formats",
    "register_export_format": "export.formats.registry",
    "register_metric": "metrics.base",
    "register_task": "tasks",
}

__all__ = [
    "BadRow", "DataConfig", "DataFormat", "ExportFormat", "Method", "Metric", "ModelConfig", "MultiLabelClassification",
    "Quantization", "Recipe", "Seq2Seq", "SequenceClassification", "SequenceRegression", "TokenClassification",
    "full", "load", "lora", "main", "qlora", "register_data_format", "register_export_format", "register_metric",
    "register_task",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import a public name at its first use, so that `import peftkit` loads no torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'peftkit' has no attribute '{name}'")
    return getattr(importlib.import_module(f"peftkit.{_HOMES[name]}"), name)
