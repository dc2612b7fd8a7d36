"""A comparison or runs, read from disk and written as a page, as Markdown, CSV or JSON, and as pictures."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from peftkit.comparison.analysis import Findings, find
from peftkit.comparison.report.charts import pictures
from peftkit.comparison.report.html import page
from peftkit.comparison.report.predictions import read_answers
from peftkit.comparison.report.renderer import draw
from peftkit.comparison.report.tables import csv_text, markdown
from peftkit.comparison.results import ComparisonResults, load_results
from peftkit.errors import UserError
from peftkit.runs.report import replace_nonfinite
from peftkit.system.files import write_bytes, write_text
from peftkit.system.logging import logger

# The page last: what it needs may fail, and the numbers are there by then.
NAMES = {"md": "comparison.md", "csv": "comparison.csv", "json": "findings.json", "html": "index.html"}
PICTURES = "pictures"
EXAMPLES = 20


def write_report(
    folders: Sequence[Path], *, output: Path | None = None, examples: int = EXAMPLES, reload_data: bool = False
) -> Path:
    """Write the page of a comparison, or of runs, and its pictures beside it; returns the page's file.

    A comparison's goes into its folder, that of loose runs to `report.html` here, unless `output` names a new file.
    Example texts of remote data are read only with `reload_data`. Raises UserError.
    """
    if examples < 0:
        raise UserError("--examples: must be 0 or more")
    results = load_results(folders)
    place = Path("report.html") if results.folder is None else results.folder / NAMES["html"]
    if output is not None:
        place = output.expanduser()
    if place.exists() and (output is not None or results.folder is None):
        raise UserError(f"{place}: already exists; name another file with --output or remove it")
    _write(place, "html", results, find(results), examples, reload_data)
    return place


def report_text(folders: Sequence[Path], form: str) -> str:
    """The report of a comparison, or of runs, as `md`, `csv` or `json`. Raises UserError."""
    results = load_results(folders)
    return _text(form, results, find(results))


def write_all(folder: Path) -> Findings:
    """Write a comparison in every format into its folder; returns its findings. Of a page that fails it warns.

    The comparison is the caller's own: its data is read again wherever it lies.
    """
    results = load_results([folder])
    findings = find(results)
    for form in NAMES:
        try:
            _write(folder / NAMES[form], form, results, findings, EXAMPLES, True)
        except UserError as error:
            # One that an earlier time made would tell of other numbers.
            (folder / NAMES[form]).unlink(missing_ok=True)
            logger.warning("%s", error)
    return findings


def _text(form: str, results: ComparisonResults, findings: Findings) -> str:
    if form == "md":
        return markdown(findings)
    if form == "csv":
        return csv_text(results, findings)
    return json.dumps(replace_nonfinite(dataclasses.asdict(findings)), indent=2, ensure_ascii=False) + "\n"


def _write(
    place: Path, form: str, results: ComparisonResults, findings: Findings, examples: int, reload_data: bool
) -> None:
    if form != "html":
        write_text(place, _text(form, results, findings))
        return
    answers = read_answers(results, examples, reload_data=reload_data)
    specs = pictures(findings, results, answers.confusions)
    drawn = draw(specs)
    # Beside a page of another name they have another name too.
    folder = place.with_name(PICTURES if place.name == NAMES["html"] else f"{place.stem}-{PICTURES}")
    for name in specs:
        write_text(folder / f"{name}.svg", drawn.svg[name])
        write_bytes(folder / f"{name}.png", drawn.png[name])
    write_text(place, page(findings, results, answers, specs, drawn.library))
