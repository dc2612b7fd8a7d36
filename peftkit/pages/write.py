"""A comparison or runs, read from disk and written as a page, as Markdown, CSV or JSON, and as pictures."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from peftkit.errors import UserError
from peftkit.files import write_bytes, write_text
from peftkit.findings import Findings, find
from peftkit.gathered import Gathered, gather
from peftkit.log import logger
from peftkit.pages.answers import read_answers
from peftkit.pages.drawing import draw
from peftkit.pages.html import page
from peftkit.pages.pictures import pictures
from peftkit.pages.tables import csv_text, markdown
from peftkit.report import finite

# The page last: what it needs may fail, and the numbers are there by then.
NAMES = {"md": "comparison.md", "csv": "comparison.csv", "json": "findings.json", "html": "index.html"}
PICTURES = "pictures"
EXAMPLES = 20


def write_report(
    folders: Sequence[Path],
    *,
    form: str = "html",
    output: Path | None = None,
    examples: int = EXAMPLES,
) -> Path:
    """Write the report of a comparison, or of runs, in one of the formats; returns the file.

    A comparison's goes into its folder, that of loose runs here, unless `output` names a new file; pictures come with
    the page, beside it. Raises UserError.
    """
    if examples < 0:
        raise UserError("--examples: must be 0 or more")
    gathered = gather(folders)
    output = None if output is None else output.expanduser()
    if output is not None and output.exists():
        raise UserError(f"--output {output}: already exists; name another file or remove it")
    place = output or (gathered.folder or Path("report")) / NAMES[form]
    if output is None and gathered.folder is None and place.exists():
        raise UserError(f"{place}: already exists; name another file with --output or remove it")
    _write(place, form, gathered, find(gathered), examples)
    return place


def write_all(folder: Path) -> Findings:
    """Write a comparison in every format into its folder; returns its findings. Of a page that fails it warns."""
    gathered = gather([folder])
    findings = find(gathered)
    for form in NAMES:
        try:
            _write(folder / NAMES[form], form, gathered, findings, EXAMPLES)
        except UserError as error:
            # One that an earlier time made would tell of other numbers.
            (folder / NAMES[form]).unlink(missing_ok=True)
            logger.warning("%s", error)
    return findings


def _write(place: Path, form: str, gathered: Gathered, findings: Findings, examples: int) -> None:
    if form == "md":
        write_text(place, markdown(findings))
    elif form == "csv":
        write_text(place, csv_text(gathered, findings))
    elif form == "json":
        write_text(place, json.dumps(finite(dataclasses.asdict(findings)), indent=2, ensure_ascii=False) + "\n")
    else:
        answers = read_answers(gathered, examples)
        specs = pictures(findings, gathered, answers.confusions)
        drawn = draw(specs)
        # Beside a page of another name they have another name too.
        folder = place.with_name(PICTURES if place.name == NAMES["html"] else f"{place.stem}-{PICTURES}")
        for name in specs:
            write_text(folder / f"{name}.svg", drawn.svg[name])
            write_bytes(folder / f"{name}.png", drawn.png[name])
        write_text(place, page(findings, gathered, answers, specs, drawn.library))
