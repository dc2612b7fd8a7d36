"""Model card of an export, README.md with the metadata of the Hugging Face Hub."""

import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from peftkit.data.sources import DEMOS
from peftkit.export.comparison import VariantScores, format_variants
from peftkit.export.formats.base import ExportFormat
from peftkit.recipe.schema import Recipe
from peftkit.recipe.serialization import recipe_to_yaml
from peftkit.runs.manifest import MANIFEST
from peftkit.runs.report import Report
from peftkit.system.files import redact_home_in_text, write_text

PIPELINES = {"SEQ_CLS": "text-classification", "TOKEN_CLS": "token-classification"}
# Names of metrics on the Hub, where they differ.
MIB = 2**20


def write_model_card(
    folder: Path,
    recipe: Recipe,
    report: Report,
    manifest: Mapping[str, Any],
    receipt: Mapping[str, Any],
    export_format: ExportFormat,
) -> None:
    """Write `README.md`: base, usage, scores, cost, limits, recipe and receipt."""
    base = manifest["base"]
    scores = report.metrics["test"]
    of_hub = not _is_path(base["name_or_path"])
    data = ModelCardData(
        model_name=recipe.name,
        library_name=export_format.library,
        base_model=base["name_or_path"] if of_hub else None,
        base_model_relation=("adapter" if manifest["adapter"] else "finetune") if of_hub else None,
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
            # Weights rounded to few bits have other scores, which are in the body.
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
        f"# {_escape(recipe.name)}": f"{_escape(base['name_or_path'])}{commit}, trained by the method "
        f"{_escape(recipe.method.name)} with peftkit. Weights of the base: SHA-256 {base['sha256'] or 'unknown'}.",
        "## Use": _format_usage(recipe, manifest, export_format),
        "## Scores": _format_scores(recipe, report),
        "## Variants": _format_variant_table(receipt["forms"], receipt["shipped"]),
        "## ONNX": _format_variant_table(receipt["onnx_forms"], "the last variant" if receipt["onnx_forms"] else None),
        "## Receipt": _format_receipt(receipt, export_format.verifier),
        "## Data": _format_data(recipe, report, manifest),
        "## Cost": _format_cost(report),
        "## Limits": _format_limits(report, receipt),
        "## Repeat": "Save as `recipe.yaml`, and run `peftkit train recipe.yaml`:\n\n"
        + _format_code(recipe_to_yaml(_remove_output_dir(recipe)), "yaml"),
    }
    return "\n\n".join(f"{title}\n\n{text}" for title, text in sections.items() if text) + "\n"


def _format_usage(recipe: Recipe, manifest: Mapping[str, Any], export_format: ExportFormat) -> str:
    prefix = getattr(recipe.task, "source_prefix", "")
    note = f" Every text begins with {_escape(repr(prefix))}." if prefix else ""
    return (
        f"{_format_code(export_format.usage(manifest), 'python')}\n\nOr `peftkit predict FOLDER FILE`: it reads "
        f"labels, thresholds, lengths and prefix from `{MANIFEST}`.{note}"
    )


def _format_scores(recipe: Recipe, report: Report) -> str:
    rows = report.data["rows"]["test"]
    lines = [f"On {rows:,} test rows, of the model as it was trained:", "", "| metric | score | 95 % interval |"]
    lines.append("| --- | ---: | ---: |")
    for name, value in report.metrics["test"].items():
        if isinstance(value, float):
            low_high = report.metrics["test"].get(f"{name}_ci95")
            interval = "" if low_high is None else f"{low_high[0]:.4f} to {low_high[1]:.4f}"
            lines.append(f"| {_escape(name)} | {value:.4f} | {interval} |")
    return "\n".join(lines)


def _format_variant_table(forms: Sequence[Mapping[str, Any]], shipped: str | None) -> str:
    rows = [VariantScores(**row) for row in forms]
    return format_variants(rows) + (f"\n\nThis folder holds: {shipped}." if shipped else "") if rows else ""


def _format_receipt(receipt: Mapping[str, Any], verifier: str) -> str:
    texts = receipt["text_agreement"]
    generated = "" if texts is None else f" The generated text is equal for {texts:.1%} of the rows."
    limit = "8-bit weights are scored instead of compared with a tolerance"
    if receipt["tolerance"] is not None:
        limit = f"tolerance {receipt['tolerance']:.2g}"
    return (
        f"Verified in {verifier} on {receipt['rows']} held-out rows. The largest difference of a logit to the same "
        f"weights before export is {receipt['exported_difference']:.2g} ({limit}), to the model in memory at the end "
        f"of training {receipt['live_difference']:.2g}. {receipt['label_agreement']:.2%} of the predictions are "
        f"equal.{generated} `receipt.json` has the figures."
    )


def _format_data(recipe: Recipe, report: Report, manifest: Mapping[str, Any]) -> str:
    rows = ", ".join(f"{count:,} {split}" for split, count in report.data["rows"].items())
    labels = manifest["labels"]
    named = f" Labels, in the order of their ids: {_escape(', '.join(labels))}." if labels else ""
    return f"{_escape(recipe.data.path)}: {rows} rows, SHA-256 {report.data['fingerprint']}.{named}"


def _format_cost(report: Report) -> str:
    here = report.environment
    hardware = ", ".join(here.get("gpus") or ()) or here.get("cpu") or "CPU"
    peak = ", ".join(f"{name.replace('_', ' ')} {size / MIB:,.0f} MiB" for name, size in report.memory.items())
    return (
        f"Training took {report.times['train']:,.0f} s of {report.times['total']:,.0f} s on {_escape(str(hardware))}, "
        f"{here.get('processes', 1)} process(es); {peak}. {report.parameters['trainable']:,} of "
        f"{report.parameters['total']:,} weights were trained."
    )


def _format_limits(report: Report, receipt: Mapping[str, Any]) -> str:
    lines = ["The scores hold for texts like those test rows. The licences of the base and of the data apply."]
    if receipt["forms"] or receipt["onnx_forms"]:
        lines.append("The scores are of the model as it was trained; the table above has those of this variant.")
    lines += [f"Data: {redact_home_in_text(warning)}." for warning in report.data["checks"]["warnings"]]
    return "\n".join(f"- {_escape(line)}" for line in lines)


def _remove_output_dir(recipe: Recipe) -> Recipe:
    """Remove `output_dir`, which holds the finished run."""
    return replace(recipe, training={name: value for name, value in recipe.training.items() if name != "output_dir"})


def _is_path(name: str) -> bool:
    own = ("demo", "demo-seq2seq", *DEMOS)
    return name.startswith((".", "/", "~")) or name in own or Path(name).expanduser().exists()


def _escape(text: str) -> str:
    """Escape Markdown and HTML in text of the user or of the data."""
    return re.sub(r"([\\`*_\[\]|#~])", r"\\\1", html.escape(" ".join(str(text).split()), quote=False))


def _format_code(code: str, language: str) -> str:
    """Format a block of code with a fence longer than any inside it."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", code)), default=0))
    return f"{fence}{language}\n{code.rstrip()}\n{fence}"
