"""Self-contained HTML page of a comparison: without network access, all data escaped."""

import base64
import hashlib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

import peftkit
from peftkit.comparison.analysis import Findings, RowFindings
from peftkit.comparison.report.predictions import ComparedPredictions
from peftkit.comparison.report.tables import Column, make_cost_columns, make_effort_columns, make_score_columns
from peftkit.comparison.results import ComparisonResults
from peftkit.runs.report import Report

HERE = Path(__file__).resolve().parent
# Maximum number of characters of an example text.
MAX_TEXT_LENGTH = 600
MAX_MISTAKES = 15
EVALUATIONS = "validation-over-tokens"


def render_page(
    findings: Findings,
    results: ComparisonResults,
    predictions: ComparedPredictions,
    pictures: Mapping[str, Mapping[str, Any]],
    library: str,
) -> str:
    """Render the page as HTML; `library` is the script that defines `vegaEmbed`."""
    script, style = ((HERE / name).read_text(encoding="utf-8") for name in ("page.js", "page.css"))
    confusion_charts = [name for name in pictures if name.startswith("confusion")]
    curves = [name for name in pictures if "-over-" in name]
    mistakes = {} if confusion_charts else _list_mistakes(predictions.confusions)
    classes = _make_class_table(findings, predictions)
    parts = [("recommendation", "Recommendation"), ("table", "Scores and cost")]
    parts += [("memory", "Memory")] if "memory" in pictures else []
    parts += [("differences", "Differences")] if findings.pairs else []
    parts += [("curves", "Learning curves")] if curves else []
    parts += [("classes", "Per class")] if classes["rows"] or confusion_charts or mistakes else []
    parts += [("examples", "Examples"), ("runs", "Runs")]
    environment = Environment(loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined)
    return environment.get_template("page.html.jinja").render(
        findings=findings,
        metric=findings.metrics[0].title if findings.metrics else "score",
        tested=predictions.tested,
        parts=parts,
        main=_make_table(findings, [*make_score_columns(findings), *make_cost_columns(findings)]),
        effort=_make_table(findings, make_effort_columns(findings)),
        pictures=dict(pictures),
        curves=curves,
        evaluations=_make_curve_table(pictures[EVALUATIONS]) if EVALUATIONS in pictures else None,
        classes=classes,
        confusions=confusion_charts,
        mistakes=mistakes,
        predictions=predictions,
        several=len(findings.rows) > 1,
        max_length=MAX_TEXT_LENGTH,
        trials=_make_trial_table(findings),
        runs=[
            _describe_run(row.name, folder.name, report)
            for row in results.rows for folder, report in row.runs.items()
        ],
        version=peftkit.__version__,
        library=library,
        script=script,
        style=style,
        policy=_make_policy(library, script),
    )  # fmt: skip


def _make_policy(*scripts: str) -> str:
    """Make a content security policy that allows only these scripts and no network requests."""
    hashes = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes)
    return f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:; base-uri 'none'"


def _make_header(title: str, meaning: str = "") -> dict[str, str]:
    return {"title": title, "meaning": meaning}


def _make_cell(text: str, value: float | None = None) -> dict[str, Any]:
    return {"text": text, "value": value}


def _make_table(findings: Findings, columns: list[Column]) -> dict[str, Any]:
    def cells(row: RowFindings) -> list[dict[str, Any]]:
        if not row.scores:
            status = _make_cell(row.status.replace("_", " "))
            return [_make_cell(row.name), status, *(_make_cell("") for _ in columns[1:])]
        return [_make_cell(row.name), *(_make_cell(column.format(row), column.value(row)) for column in columns)]

    return {
        "heads": [_make_header("row"), *(_make_header(column.title, column.meaning) for column in columns)],
        "rows": [{"cells": cells(row), "chosen": row.name == findings.recommended} for row in findings.rows],
    }


def _make_class_table(findings: Findings, predictions: ComparedPredictions) -> dict[str, Any]:
    names = [row.name for row in findings.rows if row.name in predictions.class_scores]
    rows = []
    for kind, count in sorted(predictions.class_rows.items(), key=lambda item: (-item[1], item[0])):
        scores = [predictions.class_scores[name].get(kind, {}).get("f1") for name in names]
        cells = [_make_cell("none") if score is None else _make_cell(f"{score:.3f}", score) for score in scores]
        rows.append({"cells": [_make_cell(kind), _make_cell(f"{count:,}", count), *cells], "chosen": False})
    return {
        "heads": [_make_header("class"), _make_header("test rows"), *(_make_header(f"F1, {name}") for name in names)],
        "rows": rows,
    }


def _make_trial_table(findings: Findings) -> dict[str, Any]:
    rows = []
    for row in findings.rows:
        for number, trial in enumerate(row.tried, start=1):
            rate, rank, score = trial["learning_rate"], trial["r"], trial["score"]
            outcome = f"{score:.4f}" if score is not None else f"{trial['status'].replace('_', ' ')}: {trial['cause']}"
            cells = [
                _make_cell(row.name), _make_cell(str(number), number), _make_cell(f"{rate:g}", rate),
                _make_cell("none" if rank is None else str(rank), rank), _make_cell(outcome, score),
            ]  # fmt: skip
            rows.append({"cells": cells, "chosen": (rate, rank) == (row.learning_rate, row.r)})
    metric = findings.metrics[0].title if findings.metrics else "score"
    heads = [
        _make_header("row"),
        _make_header("trial"),
        _make_header("learning rate"),
        _make_header("rank"),
        _make_header(f"validation {metric}"),
    ]
    return {"heads": heads, "rows": rows}


def _make_curve_table(picture: Mapping[str, Any]) -> dict[str, Any]:
    """Make a table of the points of a learning curve, for screen readers."""
    names = ("step", "tokens", "seconds", "value", "low", "high")
    heads = ("row", "step", "tokens", "seconds", "mean", "minimum", "maximum")
    rows = [
        {
            "cells": [_make_cell(point["row"]), *(_make_cell(f"{point[name]:,.5g}", point[name]) for name in names)],
            "chosen": False,
        }
        for point in picture["data"]["values"]
    ]
    return {"heads": [_make_header(head) for head in heads], "rows": rows}


def _list_mistakes(confusions: Mapping[str, Counter]) -> dict[str, list[tuple[str, str, int]]]:
    """List the most frequent confusions, if there are too many classes for a chart."""
    return {
        name: [
            (reference, prediction, count)
            for (reference, prediction), count in counts.most_common() if reference != prediction
        ][:MAX_MISTAKES]
        for name, counts in confusions.items()
    }  # fmt: skip


def _describe_run(row: str, folder: str, report: Report) -> dict[str, Any]:
    """Describe a run for reproduction: command, recipe and environment."""
    training = {name: value for name, value in report.recipe["training"].items() if name != "output_dir"}
    recipe = {**report.recipe, "training": training}
    here = report.environment
    ranks = here.get("processes", 1)
    launcher = "peftkit" if ranks == 1 else f"torchrun --nproc_per_node {ranks} -m peftkit"
    facts = [
        ("status", report.status.replace("_", " ")),
        ("seed", report.seed),
        ("data", f"SHA-256 {report.data['fingerprint']}" if report.data else "not read"),
        ("rows", ", ".join(f"{count:,} {split}" for split, count in report.data.get("rows", {}).items())),
        ("hardware", ", ".join(here.get("gpus", [])) or f"{here.get('cores')} cores of {here.get('cpu')}"),
        ("Python", here.get("python")),
        ("packages", ", ".join(f"{name} {version}" for name, version in here.get("packages", {}).items())),
        ("audit", report.audit.get("verdict")),
    ]
    return {
        "title": f"{row}, {folder}: {report.status.replace('_', ' ')}",
        "error": report.error,
        "command": f"{launcher} train recipe.yaml",
        "recipe": yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True),
        "facts": [(name, value) for name, value in facts if value not in (None, "")],
    }
