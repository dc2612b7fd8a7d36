"""Export format: the trained adapter with the files for loading it."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peftkit.export.formats.base import ExportOptions
from peftkit.export.receipt import ExportSource, Receipt
from peftkit.runs.manifest import RECIPE
from peftkit.runs.verification import check_difference

FILES = ("adapter_model.safetensors", "adapter_config.json", "config.json", "generation_config.json", RECIPE)


def write_adapter(source: ExportSource, folder: Path, options: ExportOptions) -> Receipt:
    """Copy the adapter and verify it in a new process with the outputs from the end of training."""
    reloaded = source.load_as_trained()[1]
    for name in FILES:
        if (source.saved.folder / name).exists():
            shutil.copy(source.saved.folder / name, folder / name)
    dtype = source.saved.manifest["dtype"]
    source.write_manifest(folder, adapter=True, dtype=dtype)
    found = source.compare_with_live(source.reload(folder))
    tolerance = source.training_tolerance
    check_difference("export: the adapter", found, tolerance)
    return Receipt(
        format="adapter", dtype=dtype, rows=found.rows, tolerance=tolerance.difference,
        exported_difference=found.difference, label_agreement=found.label_agreement,
        text_agreement=found.text_agreement, reload_difference=reloaded.difference, live_difference=found.difference,
    )  # fmt: skip


def format_usage(manifest: Mapping[str, Any]) -> str:
    """Return Python code that loads the base model with the adapter."""
    auto_class, base, quantization = manifest["auto_class"], manifest["base"], manifest["quantization"]
    more, extra = ("", "") if quantization is None else (", BitsAndBytesConfig", ",\n    quantization_config=quantized")
    return (
        f"from peft import PeftModel\nfrom transformers import AutoConfig, {auto_class}, AutoTokenizer{more}\n\n"
        + (f"quantized = BitsAndBytesConfig(**{quantization!r})\n" if quantization else "")
        + f"base = {auto_class}.from_pretrained(\n    {base['name_or_path']!r}, "
        f'config=AutoConfig.from_pretrained("FOLDER"),\n'
        f'    dtype="{manifest["dtype"]}", revision={base["revision"]!r}, ignore_mismatched_sizes=True{extra},\n)\n'
        'model = PeftModel.from_pretrained(base, "FOLDER")\ntokenizer = AutoTokenizer.from_pretrained("FOLDER")'
    )
