"""How Sphinx builds the documentation: ``sphinx-build -n -W docs docs/_build``."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from sphinx.application import Sphinx

sys.path.append(str(Path(__file__).parent / "extensions"))

import docstrings

project = "pyiommufd"
author = "the pyiommufd contributors"
exclude_patterns = ["_build", "inventories"]
nitpicky = True

extensions = [
    "myst_parser",
    "commands",
    "docstrings",
    "fixtures",
    "kernel_names",
    "public_names",
    "sphinx.ext.autodoc",
    "sphinx.ext.graphviz",
    "sphinx.ext.intersphinx",
]

html_theme = "furo"
html_title = "pyiommufd"
html_show_copyright = False
graphviz_output_format = "svg"

autodoc_default_options = {
    "members": True,
    "inherited-members": docstrings.documented_elsewhere(),
    "member-order": "bysource",
}
napoleon_google_docstring = False  # `docstrings` does
napoleon_numpy_docstring = False
default_role = "py:obj"
python_maximum_signature_line_length = 100

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3

# The names of Python that docstrings and types use: text, and here, so that a build needs no network.
intersphinx_mapping = {"python": ("https://docs.python.org/3", "inventories/python.txt")}

# Pages of the repository's root that are pages here, too: each is included by the page named.
PAGES = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md", "SECURITY.md": "security.md"}


def _link_to_pages(app: Sphinx, docname: str, source: list[str]) -> None:
    """A link to a file of the root, right where the sources are looked at, becomes one to the page that includes it."""
    del app, docname
    source[0] = re.sub(r"\]\(\.\./([A-Z]+\.md)", lambda match: f"]({PAGES.get(match[1], match[0][2:])}", source[0])


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("source-read", _link_to_pages)
