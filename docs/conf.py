"""The documentation site: `make docs`."""

from importlib.metadata import version as installed
from typing import Any

project = "srm-triton"
author = "the srm-triton authors"
copyright = "the srm-triton authors, Apache-2.0"
release = version = installed("srm-triton")

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["conftest.py", "figures/*.py"]
nitpicky = True
nitpick_ignore_regex = [("py:.*", ".*")]  # types of PyTorch, whose inventory lies elsewhere

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # tests run the notebook, and what it shows is stored in it
nb_merge_streams = True

default_role = "code"  # docstrings put names between single backticks
add_module_names = False
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the arguments' descriptions say what they are
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_custom_sections = [("Shape", "notes_style"), ("Example", "example_style")]

html_theme = "pydata_sphinx_theme"
html_title = "srm-triton"
html_static_path = ["_static"]
html_favicon = "_static/favicon.svg"
html_context = {"default_mode": "auto"}
html_css_files = ["site.css"]
html_theme_options = {"show_toc_level": 2, "navigation_with_keys": False, "show_prev_next": False}
html_show_sphinx = html_show_sourcelink = False
html_sidebars = {page: [] for page in ("index", "start", "neuron", "search", "genindex")}


def as_restructured_text(app: Any, kind: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Markdown's tables as those of reStructuredText, in which bars elsewhere would be substitutions."""
    rows = [line for line in lines if line.startswith("|")]
    if rows:
        start = lines.index(rows[0])
        cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows if not row.startswith("|-")]
        table = [f"   {' ' if column else '*'} - {cell}" for row in cells for column, cell in enumerate(row)]
        lines[start : start + len(rows)] = [".. list-table::", "   :header-rows: 1", "", *table, ""]
    lines[:] = [line if ">>>" in line else line.replace("|", "\\|") for line in lines]


def setup(app: Any) -> None:
    """Sphinx calls it."""
    app.connect("autodoc-process-docstring", as_restructured_text, priority=400)
