import pytest

from tests.docs.page import ROOT, PageRunner

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs" / "tutorials").glob("[!i]*.md"))]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_examples(path, tmp_path, checkpoints):
    PageRunner(tmp_path, checkpoints).run(path)
