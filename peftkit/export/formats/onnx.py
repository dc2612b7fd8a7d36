"""Export format: the merged model as ONNX, verified in ONNX Runtime."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from peftkit.export.formats.base import ExportOptions
from peftkit.export.formats.merged import load_exported, write_merged_model
from peftkit.export.receipt import ExportSource, Receipt
from peftkit.export.variant_scores import ValidationComparison, VariantScores
from peftkit.models.inference import compute_logits, compute_outputs
from peftkit.models.onnx import OnnxModel, write_onnx
from peftkit.runs.verification import Difference, check_difference, combine_differences, compare_outputs
from peftkit.runs.writer import count_weight_bytes


def write_onnx_model(source: ExportSource, folder: Path, options: ExportOptions) -> Receipt:
    """Write the merged model, replace the weights by ONNX, and compare both models in ONNX Runtime."""
    receipt = write_merged_model(source, folder, replace(options, dtype="float32", int8=False))
    merged: Any = load_exported(source.saved, folder, "float32")
    model, size = _write_graph(merged, source, folder, int8=False)
    exported = _compare(source, model, merged)
    tolerance = source.find_tolerance(half=False)
    check_difference("export: the model in ONNX Runtime", exported, tolerance)
    variants: list[VariantScores] = []
    if options.int8:
        comparison = ValidationComparison.start(
            source.saved, source.report, merged, source.batch, reload_data=source.reload_data
        )
        variants.append(comparison.score("merged, in float32", merged, count_weight_bytes(folder)))
        variants.append(comparison.score("as ONNX, in float32", model, size))
        model, size = _write_graph(merged, source, folder, int8=True)
        variants.append(comparison.score("as ONNX, in int8", model, size))
        exported = _compare(source, model, merged)
    for path in folder.glob("model*.safetensors*"):
        path.unlink()
    source.write_manifest(folder, adapter=False, dtype="float32")
    expected = {name: tensor for name, tensor in source.live.items() if name != "generated"}
    live = compare_outputs(source.saved.task, compute_outputs(model, source.batch), expected, source.batch)
    return replace(
        receipt, format="onnx", dtype="int8" if options.int8 else "float32", exported_difference=exported.difference,
        label_agreement=live.label_agreement, text_agreement=None, live_difference=live.difference,
        tolerance=None if options.int8 else tolerance.difference, onnx_forms=tuple(variants),
    )  # fmt: skip


def format_usage(manifest: Mapping[str, Any]) -> str:
    """Return Python code that runs the model in ONNX Runtime."""
    return (
        "import onnxruntime\nfrom transformers import AutoTokenizer\n\n"
        'session = onnxruntime.InferenceSession("FOLDER/model.onnx")\n'
        'tokens = AutoTokenizer.from_pretrained("FOLDER")(["a text"], return_tensors="np")\n'
        'logits = session.run(["logits"], {one.name: tokens[one.name] for one in session.get_inputs()})[0]'
    )


def _write_graph(merged: Any, source: ExportSource, folder: Path, *, int8: bool) -> tuple[OnnxModel, int]:
    """Write the graph; return the ONNX model and the size in bytes."""
    write_onnx(merged, source.batch, folder, int8=int8)
    return OnnxModel(folder), sum(path.stat().st_size for path in folder.glob("model.onnx*"))


def _compare(source: ExportSource, model: OnnxModel, merged: Any) -> Difference:
    """Compare on the traced batch and on the shortest row alone, to detect constant dimensions."""
    task = source.saved.task
    return combine_differences(
        [
            compare_outputs(
                task, {"logits": compute_logits(model, batch)}, {"logits": compute_logits(merged, batch)}, batch
            )
            for batch in (source.batch, _select_shortest(source.batch))
        ]
    )


def _select_shortest(batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Select the row with the fewest tokens, without padding."""
    lengths = batch["attention_mask"].sum(-1)
    row = int(lengths.argmin())
    return {
        name: tensor[row : row + 1] if name.startswith("decoder_") else tensor[row : row + 1, : lengths[row]]
        for name, tensor in batch.items()
    }
