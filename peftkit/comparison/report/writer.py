"""Write the report of a comparison or of separate runs: page, Markdown, CSV, JSON and charts."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from peftkit.comparison.analysis import Findings, analyze
from peftkit.comparison.report.charts import make_charts
from peftkit.comparison.report.html import render_page
from peftkit.comparison.report.predictions import compare_predictions
from peftkit.comparison.report.renderer import render_charts
from peftkit.comparison.report.tables import format_csv, format_markdown
from peftkit.comparison.results import ComparisonResults, load_results
from peftkit.errors import UserError
from peftkit.runs.report import replace_nonfinite
from peftkit.system.files import write_bytes, write_text
from peftkit.system.logging import logger

# The page is last, because rendering may fail.
NAMES = {"md": "comparison.md", "csv": "comparison.csv", "json": "findings.json", "html": "index.html"}
PICTURES = "pictures"
EXAMPLES = 20


def write_report(
    folders: Sequence[Path], *, output: Path | None = None, examples: int = EXAMPLES, reload_data: bool = False
) -> Path:
    """Write the page of a comparison or of runs, and a chart folder; return the path of the page.

    The default path is `index.html` in the comparison folder, or `report.html` for separate runs. Example texts of
    remote data are read only with `reload_data`. Raises UserError.
    """
    if examples < 0:
        raise UserError(f"--examples: must be at least 0, got {examples}")
    results = load_results(folders)
    path = Path("report.html") if results.folder is None else results.folder / NAMES["html"]
    if output is not None:
        path = output.expanduser()
    if path.exists() and (output is not None or results.folder is None):
        raise UserError(f"{path}: already exists; use another --output or remove it")
    _write_format(path, "html", results, analyze(results), examples, reload_data)
    return path


def format_report(folders: Sequence[Path], form: str) -> str:
    """Format the report of a comparison or of runs as `md`, `csv` or `json`. Raises UserError."""
    results = load_results(folders)
    return _format_as(form, results, analyze(results))


def write_all_formats(folder: Path) -> Findings:
    """Write a comparison in every format to its folder; return the findings. A failed page is a warning.

    Remote data is read again, because the caller has run the comparison.
    """
    results = load_results([folder])
    findings = analyze(results)
    for form in NAMES:
        try:
            _write_format(folder / NAMES[form], form, results, findings, EXAMPLES, True)
        except UserError as error:
            # Remove the outdated file of an earlier call.
            (folder / NAMES[form]).unlink(missing_ok=True)
            logger.warning("%s", error)
    return findings


def _format_as(form: str, results: ComparisonResults, findings: Findings) -> str:
    if form == "md":
        return format_markdown(findings)
    if form == "csv":
        return format_csv(results, findings)
    values = {**dataclasses.asdict(findings), "metrics": [metric.name for metric in findings.metrics]}
    return json.dumps(replace_nonfinite(values), indent=2, ensure_ascii=False) + "\n"


def _write_format(
    path: Path, form: str, results: ComparisonResults, findings: Findings, examples: int, reload_data: bool
) -> None:
    if form != "html":
        write_text(path, _format_as(form, results, findings))
        return
    predictions = compare_predictions(results, examples, reload_data=reload_data)
    specs = make_charts(findings, results, predictions.confusions)
    charts = render_charts(specs)
    # The name of the folder depends on the name of the page.
    folder = path.with_name(PICTURES if path.name == NAMES["html"] else f"{path.stem}-{PICTURES}")
    for name in specs:
        write_text(folder / f"{name}.svg", charts.svg[name])
        write_bytes(folder / f"{name}.png", charts.png[name])
    write_text(path, render_page(findings, results, predictions, specs, charts.library))
