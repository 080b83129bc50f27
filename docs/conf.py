"""The site of the documentation: `sphinx-build -W docs site`."""

from importlib import metadata
from itertools import groupby
from typing import Any

project = "Tokenleap"
author = "The Tokenleap authors"
release = metadata.version("tokenleap")
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_click"]
html_theme = "furo"
html_title = f"Tokenleap {release}"
exclude_patterns = ["images"]
default_role = "code"
smartquotes = False
myst_enable_extensions = ["deflist"]
myst_heading_anchors = 4
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
napoleon_google_docstring = True
napoleon_numpy_docstring = False


def blocks_as_code(app: Any, context: Any, lines: list[str]) -> None:
    """Show blocks that click must not wrap, such as examples, as code; their first line is their title."""
    shown: list[str] = []
    for is_block, part in groupby(lines, lambda line: line.startswith("| ")):
        texts = [line.removeprefix("| ") for line in part]
        shown += [f"{texts[0]}:", "", *(f"   {text}" for text in texts[1:]), ""] if is_block else texts
    lines[:] = shown


def setup(app: Any) -> None:
    """Connect to the events of sphinx-click."""
    app.connect("sphinx-click-process-description", blocks_as_code)
    app.connect("sphinx-click-process-epilog", blocks_as_code)
