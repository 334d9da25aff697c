"""The documentation's site: the pages of this folder and the reference from the docstrings (`make docs`)."""

import importlib.metadata

project = "uncertune"
copyright = "the uncertune authors"
release = importlib.metadata.version("uncertune")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
# Parts of pages, which the pages quote whole
exclude_patterns = ["build", "results/*/*.md"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = "uncertune"
html_show_sourcelink = False

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_preserve_defaults = True
add_module_names = False
