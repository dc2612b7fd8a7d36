import dataclasses
import importlib.util
import re

import pytest

import peftkit
from peftkit.recipe.method import Quantization
from peftkit.runs.report import Report
from peftkit.tasks import TASKS
from tests.docs.page import ROOT

REFERENCE = ROOT / "docs" / "reference"


@pytest.fixture(scope="module")
def pages():
    """The generator of the reference pages, without Sphinx's directories on the path."""
    path = ROOT / "docs" / "_extensions" / "reference_pages.py"
    spec = importlib.util.spec_from_file_location("reference_pages", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read(pages, name):
    return pages.replace_markers((REFERENCE / f"{name}.md").read_text(encoding="utf-8"))


def test_every_command_and_option(pages):
    text = read(pages, "command_line")
    for name, parser in pages.get_commands().items():
        section = text.split(f"\n## peftkit {name}\n")[1].split("\n## ")[0] + text.split("\n## ")[1]
        for action in pages.list_options(parser):
            for option in action.option_strings or [action.metavar or action.dest.upper()]:
                assert re.search(rf"`{re.escape(option)}[` ]", section), (name, option)
                assert action.help, (name, option)


def test_every_field_of_a_recipe(pages):
    text = read(pages, "recipe_fields")
    parts = {"": peftkit.Recipe, "model.": peftkit.ModelConfig, "data.": peftkit.DataConfig, "method.": peftkit.Method}
    parts |= {"method.quantization.": Quantization}
    sections = [(text, prefix, kind) for prefix, kind in parts.items()]
    sections += [
        (text.split(f"\n## task: {task.__name__}\n")[1].split("\n## ")[0], "task.", task)
        for task in TASKS if task.__module__.startswith("peftkit.")
    ]  # fmt: skip
    for section, prefix, kind in sections:
        for field in dataclasses.fields(kind):
            row = next(line for line in section.splitlines() if line.startswith(f"| `{prefix}{field.name}` |"))
            assert not row.endswith("|  |"), f"{kind.__name__}.{field.name} has no description"


@pytest.mark.parametrize(
    ("page", "column", "names"),
    [
        ("report", -1, [field.name for field in dataclasses.fields(Report)]),
        ("metrics", 1, [metric.name for task in TASKS[:5] for metric in task().metrics.metrics]),
    ],
)
def test_every_row_has_a_description(pages, page, column, names):
    lines = [line for line in read(pages, page).splitlines() if line.startswith("| `")]
    assert set(names) <= {line.split("`")[1] for line in lines}
    assert [line for line in lines if not re.split(r"(?<!\\)\|", line)[1:-1][column].strip()] == []


def test_every_page_has_known_markers(pages):
    used = {name for page in REFERENCE.glob("*.md") for name in pages.MARKER.findall(page.read_text())}
    assert used == set(pages.RENDERERS)


def test_every_public_name_is_in_the_python_api():
    text = (REFERENCE / "python_api.md").read_text()
    assert [name for name in peftkit.__all__ if not re.search(rf":: peftkit\.{name}\n", text)] == []


def test_every_file_of_a_run_is_described(trained_run):
    text = (REFERENCE / "run_folder.md").read_text()
    names = [path.name for path in trained_run().iterdir()]
    assert [name for name in names if f"`{name}" not in text] == []


def test_every_file_of_a_checkpoint_is_described():
    text = (REFERENCE / "checkpoint_format.md").read_text()
    folder = ROOT / "tests" / "stored_runs" / "classification_lora" / "checkpoint-3"
    assert [path.name for path in folder.iterdir() if f"`{path.name}`" not in text] == []
