"""Sphinx extension: a link from a page to a file of the repository outside `docs/` copies the file to the site.

MyST checks links to pages of the site and copies other files. It does not know Markdown files outside of the site, such
as `benchmarks/README.md`: this extension copies them too. A link to a file that does not exist stays a warning.
"""

from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx


def link_to_files(app: Sphinx, document: nodes.document) -> None:
    """Replace links to existing Markdown files outside `docs/` by downloads of the files."""
    root = Path(app.srcdir).parent
    for link in list(document.findall(addnodes.pending_xref)):
        if link.get("refdomain") != "doc":
            continue
        path = (root / "docs" / f"{link['reftarget']}.md").resolve()
        if not path.is_file() or not path.is_relative_to(root) or path.is_relative_to(root / "docs"):
            continue
        download = addnodes.download_reference("", "", *link.children, reftarget=f"/../{path.relative_to(root)}")
        link.replace_self(download)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the extension."""
    # Before Sphinx collects the files to copy.
    app.connect("doctree-read", link_to_files, priority=100)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
