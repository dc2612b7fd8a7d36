"""Model card of an export: README.md with metadata for the Hugging Face Hub."""

import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from peftkit.data.sources import DEMOS
from peftkit.export.formats.base import ExportFormat
from peftkit.export.variant_scores import VariantScores, format_variants
from peftkit.recipe.schema import Recipe
from peftkit.recipe.serialization import recipe_to_yaml
from peftkit.runs.manifest import MANIFEST
from peftkit.runs.report import Report
from peftkit.system.files import redact_home_in_text, write_text

PIPELINES = {"SEQ_CLS": "text-classification", "TOKEN_CLS": "token-classification"}
MIB = 2**20


def write_model_card(
    folder: Path,
    recipe: Recipe,
    report: Report,
    manifest: Mapping[str, Any],
    receipt: Mapping[str, Any],
    export_format: ExportFormat,
) -> None:
    """Write `README.md`: base model, usage, metrics, cost, limits, recipe and receipt."""
    base = manifest["base"]
    scores = report.metrics["test"]
    is_on_hub = not _is_path(base["name_or_path"])
    data = ModelCardData(
        model_name=recipe.name,
        library_name=export_format.library,
        base_model=base["name_or_path"] if is_on_hub else None,
        base_model_relation=("adapter" if manifest["adapter"] else "finetune") if is_on_hub else None,
        pipeline_tag=PIPELINES.get(recipe.task.model.peft_task_type),
        datasets=None if _is_path(recipe.data.path) else [recipe.data.path],
        tags=["peftkit", recipe.method.name],
        eval_results=[
            EvalResult(
                task_type=PIPELINES.get(recipe.task.model.peft_task_type, "text-generation"),
                dataset_type=recipe.data.path,
                dataset_name=Path(recipe.data.path).name,
                dataset_split=recipe.data.test_split,
                metric_type=metric.hub_name,
                metric_name=metric.name,
                metric_value=round(scores[metric.name], 6),
            )
            for metric in recipe.task.metrics.main_metrics
            # Quantized weights have other metrics, which are in the body of the card.
            if isinstance(scores.get(metric.name), float) and receipt["dtype"] not in ("4bit", "int8")
        ],
    )
    card = ModelCard(
        f"---\n{data.to_yaml()}\n---\n\n{_format_body(recipe, report, manifest, receipt, export_format)}",
        ignore_metadata_errors=True,
    )
    write_text(folder / "README.md", card.content)


def _format_body(
    recipe: Recipe, report: Report, manifest: Mapping[str, Any], receipt: Mapping[str, Any], export_format: ExportFormat
) -> str:
    base = manifest["base"]
    commit = f", commit {base['revision']}" if base["revision"] else ""
    sections = {
        f"# {_escape(recipe.name)}": f"{_escape(base['name_or_path'])}{commit}, fine-tuned with the method "
        f"{_escape(recipe.method.name)} by peftkit. Base weights: SHA-256 {base['sha256'] or 'unknown'}.",
        "## Use": _format_usage(recipe, manifest, export_format),
        "## Evaluation": _format_scores(recipe, report),
        "## Variants": _format_variant_table(receipt["forms"], receipt["shipped"]),
        "## ONNX": _format_variant_table(
            receipt["onnx_forms"], "the last variant of the table" if receipt["onnx_forms"] else None
        ),
        "## Receipt": _format_receipt(receipt, export_format.verifier),
        "## Data": _format_data(recipe, report, manifest),
        "## Cost": _format_cost(report),
        "## Limits": _format_limits(report, receipt),
        "## Reproduce": "Save as `recipe.yaml`, and run `peftkit train recipe.yaml`:\n\n"
        + _format_code(recipe_to_yaml(_remove_output_dir(recipe)), "yaml"),
    }
    return "\n\n".join(f"{title}\n\n{text}" for title, text in sections.items() if text) + "\n"


def _format_usage(recipe: Recipe, manifest: Mapping[str, Any], export_format: ExportFormat) -> str:
    prefix = getattr(recipe.task, "source_prefix", "")
    note = f" Prepend {_escape(repr(prefix))} to every input." if prefix else ""
    return (
        f"{_format_code(export_format.usage(manifest), 'python')}\n\nOr run `peftkit predict FOLDER FILE`, which "
        f"reads labels, thresholds, lengths and prefix from `{MANIFEST}`.{note}"
    )


def _format_scores(recipe: Recipe, report: Report) -> str:
    rows = report.data["rows"]["test"]
    lines = [f"Metrics of the trained model on {rows:,} test rows:", "", "| metric | value | 95 % interval |"]
    lines.append("| --- | ---: | ---: |")
    for name, value in report.metrics["test"].items():
        if isinstance(value, float):
            low_high = report.metrics["test"].get(f"{name}_ci95")
            interval = "" if low_high is None else f"{low_high[0]:.4f} to {low_high[1]:.4f}"
            lines.append(f"| {_escape(name)} | {value:.4f} | {interval} |")
    return "\n".join(lines)


def _format_variant_table(forms: Sequence[Mapping[str, Any]], shipped: str | None) -> str:
    rows = [VariantScores(**row) for row in forms]
    return format_variants(rows) + (f"\n\nThis folder contains: {shipped}." if shipped else "") if rows else ""


def _format_receipt(receipt: Mapping[str, Any], verifier: str) -> str:
    texts = receipt["text_agreement"]
    generated = "" if texts is None else f" The generated text is equal for {texts:.1%} of the rows."
    limit = "no tolerance for 8-bit weights, see the metrics above"
    if receipt["tolerance"] is not None:
        limit = f"tolerance {receipt['tolerance']:.2g}"
    return (
        f"Verified in {verifier} on {receipt['rows']} held-out rows. Maximum logit difference from the same weights "
        f"before export: {receipt['exported_difference']:.2g} ({limit}). Maximum logit difference from the model in "
        f"memory at the end of training: {receipt['live_difference']:.2g}. {receipt['label_agreement']:.2%} of the "
        f"predictions are equal.{generated} `receipt.json` contains these values."
    )


def _format_data(recipe: Recipe, report: Report, manifest: Mapping[str, Any]) -> str:
    rows = ", ".join(f"{count:,} {split}" for split, count in report.data["rows"].items())
    labels = manifest["labels"]
    label_names = f" Labels in the order of their ids: {_escape(', '.join(labels))}." if labels else ""
    return f"{_escape(recipe.data.path)}: {rows} rows, SHA-256 {report.data['fingerprint']}.{label_names}"


def _format_cost(report: Report) -> str:
    here = report.environment
    hardware = ", ".join(here.get("gpus") or ()) or here.get("cpu") or "CPU"
    peak = ", ".join(f"{name.replace('_', ' ')} {size / MIB:,.0f} MiB" for name, size in report.memory.items())
    return (
        f"Training took {report.times['train']:,.0f} s (total {report.times['total']:,.0f} s) on "
        f"{_escape(str(hardware))} with {here.get('processes', 1)} process(es). Memory: {peak}. "
        f"{report.parameters['trainable']:,} of {report.parameters['total']:,} parameters are trainable."
    )


def _format_limits(report: Report, receipt: Mapping[str, Any]) -> str:
    lines = [
        "The metrics are valid only for data similar to the test rows.",
        "The licenses of the base model and of the data apply.",
    ]
    if receipt["forms"] or receipt["onnx_forms"]:
        lines.append("The Evaluation section scores the trained model. The Variants table scores this export.")
    lines += [f"Data: {redact_home_in_text(warning)}." for warning in report.data["checks"]["warnings"]]
    return "\n".join(f"- {_escape(line)}" for line in lines)


def _remove_output_dir(recipe: Recipe) -> Recipe:
    """Remove `output_dir`, which contains the finished run."""
    return replace(recipe, training={name: value for name, value in recipe.training.items() if name != "output_dir"})


def _is_path(name: str) -> bool:
    own = ("demo", "demo-seq2seq", *DEMOS)
    return name.startswith((".", "/", "~")) or name in own or Path(name).expanduser().exists()


def _escape(text: str) -> str:
    """Escape Markdown and HTML in text from the user or the data."""
    return re.sub(r"([\\`*_\[\]|#~])", r"\\\1", html.escape(" ".join(str(text).split()), quote=False))


def _format_code(code: str, language: str) -> str:
    """Format a code block with a fence that is longer than any fence in the code."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", code)), default=0))
    return f"{fence}{language}\n{code.rstrip()}\n{fence}"
