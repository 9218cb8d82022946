"""The documentation site: `make docs`."""

from importlib.metadata import version as installed
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

project = "srm-triton"
copyright = "the srm-triton authors"
release = version = installed("srm-triton")

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
exclude_patterns = ["figures", "packaging", "release.md"]
nitpick_ignore_regex = [("py:.*", ".*")]  # types of PyTorch, whose inventory lies elsewhere

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # tests run the notebook, and what it shows is stored in it
nb_merge_streams = True

copybutton_prompt_text = r">>> |\.\.\. "  # what is copied runs
copybutton_prompt_is_regexp = True

default_role = "code"  # docstrings put names between single backticks
add_module_names = False
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings say what arguments are
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

html_theme = "furo"
html_title = "srm-triton"
html_favicon = "_static/icon.svg"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_js_files = ["accessibility.js"]
templates_path = ["_templates"]
html_copy_source = False
html_theme_options = {
    "light_css_variables": {"neuron-synapse": "#0072b2", "neuron-membrane": "#c65300"},
    "dark_css_variables": {"neuron-synapse": "#56b4e9", "neuron-membrane": "#ff8c42"},
}


def prepare_docstring(app: Sphinx, what: str, name: str, obj: object, options: Any, lines: list[str]) -> None:
    """Docstrings indent equations as Markdown does, where reStructuredText would ask for two colons."""
    if lines and lines[0].startswith("Alias for field number"):  # what Python says of a field of which we say nothing
        lines.clear()
    for i in range(len(lines) - 1, 1, -1):
        before, blank, line = lines[i - 2 : i + 1]
        if line.startswith("    ") and not blank and before and not before.startswith((" ", ":", "..", "- ")):
            lines[i:i] = [".. code-block:: text", ""]


def blocks_end_with_their_last_line(app: Sphinx, doctree: nodes.document) -> None:
    """An example ends with an empty line, by which doctest knows where its output ends."""
    for block in doctree.findall(nodes.literal_block):
        block.rawsource = block.astext().rstrip("\n")
        block[:] = [nodes.Text(block.rawsource)]


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", prepare_docstring)
    app.connect("doctree-read", blocks_end_with_their_last_line)
