"""Configuration of the documentation: Sphinx with Markdown. `make docs` builds the site, without a network."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs" / "_extensions")]

import peftkit  # noqa: E402

project = "peftkit"
author = "The peftkit developers"
copyright = "The peftkit developers, Apache-2.0"  # noqa: A001
version = release = peftkit.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "reference_pages", "repository_links"]
exclude_patterns = ["_build", "_extensions"]
source_suffix = {".md": "markdown"}
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 4

# Docstrings have code in single backticks.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "both"
autodoc_typehints_description_target = "documented"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
# The signature has the types.
napoleon_attr_annotations = False
python_maximum_signature_line_length = 100
# `--option` in a sentence stays as it is.
smartquotes = False

html_theme = "pydata_sphinx_theme"
html_title = "peftkit"
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {"show_prev_next": True, "navigation_depth": 2, "secondary_sidebar_items": ["page-toc"]}
