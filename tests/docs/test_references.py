"""Files, functions and recipes that pages without executed examples name."""

import re

import pytest

from peftkit.recipe.parser import read_recipe
from tests.docs.page import ROOT

DOCS = ROOT / "docs"
FOLDERS = [ROOT, ROOT / "peftkit", ROOT / "peftkit" / "export" / "formats"]
PAGES = [*sorted((DOCS / "explanation").glob("*.md")), *sorted(DOCS.glob("*.md"))]
RECIPES = [
    (page.stem, text)
    for page in sorted((DOCS / "coming-from").glob("*.md"))
    for text in re.findall(r"```yaml\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    # The other blocks are configs of the other tools.
    if re.search(r"^model: \{name_or_path", text, re.MULTILINE)
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_named_files_exist(page):
    named = re.findall(r"`([\w./-]+(?:\.py|\.json|\.md|/))`", page.read_text(encoding="utf-8"))
    missing = [name for name in named if "/" in name and not _is_output(name) and not _find(name)]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_named_functions_and_classes_exist(page):
    named = re.findall(r"`(\w+)` in `([\w./]+\.py)`", page.read_text(encoding="utf-8").replace("\n", " "))
    missing = [
        (defined, name)
        for defined, name in named
        if not re.search(rf"^\s*(def {defined}\(|class {defined}\b)", _find(name)[0].read_text("utf-8"), re.MULTILINE)
    ]
    assert not missing


@pytest.mark.parametrize("text", [text for _, text in RECIPES], ids=[name for name, _ in RECIPES])
def test_recipes_for_users_of_other_tools_are_valid(text, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    assert read_recipe(path).name == "reviews"


def test_every_tool_has_a_recipe():
    assert {name for name, _ in RECIPES} == {"trainer_and_run_glue", "autotrain", "llama_factory", "setfit"}


def _find(name):
    return [folder / name for folder in FOLDERS if (folder / name).exists()]


def _is_output(name):
    """Whether a run writes it."""
    return name.split("/")[0] in ("runs", "comparisons", "unscored")
