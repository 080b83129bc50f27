"""The site of the documentation: `sphinx-build -W docs site`."""

from importlib import metadata

project = "Tokenleap"
author = "The Tokenleap authors"
release = metadata.version("tokenleap")
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_click"]
html_theme = "furo"
html_title = f"Tokenleap {release}"
exclude_patterns = ["images"]
nitpicky = False
myst_enable_extensions = ["deflist"]
myst_heading_anchors = 4
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
