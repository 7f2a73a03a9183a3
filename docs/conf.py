"""The site of the documentation: `make docs` builds it into docs/_build."""

from __future__ import annotations

import inspect
import re

from sphinx.util.inspect import stringify_signature

import drsformer_jax
from drsformer_jax import data

project = "drsformer_jax"
author = "the authors of drsformer_jax"
release = version = drsformer_jax.__version__
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx_copybutton",
]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"drsformer_jax {release}"
html_copy_source = False
html_show_copyright = False
highlight_language = "none"

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

default_role = "code"
autodoc_default_options = {"members": True, "special-members": "__call__"}
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
napoleon_numpy_docstring = False
nitpicky = True
# Types of other projects, whose inventories would have to be fetched; and names of types here
# that are no class of their own.
nitpick_ignore_regex = [("py:.*", r"(?!drsformer_jax\.).*")]

copybutton_prompt_text = "$ "
copybutton_line_continuation_character = "\\"


_attributes: dict[str, list[str]] = {}


def before_napoleon(app, what, name, obj, options, lines):
    """Marks indented blocks of docstrings as code, which Markdown takes them for."""
    for index in range(len(lines) - 1, 1, -1):
        before, blank, line = lines[index - 2 : index + 1]
        if line.startswith("    ") and not blank and before and not before.startswith(" "):
            lines[index - 1 : index] = ["", "::", ""]
    if what == "attribute":
        _attributes[name] = list(lines)


def after_napoleon(app, what, name, obj, options, lines):
    """Restores what it takes for the type of an attribute: all before a colon."""
    lines[:] = _attributes.get(name, lines)


def signature(app, what, name, obj, options, arguments, returned):
    """Names types shortly; and the arguments of a module of Flax, whose metaclass hides them."""
    if arguments == "(*args: Any, **kwargs: Any)":
        own = inspect.signature(obj.__init__)
        own = own.replace(parameters=list(own.parameters.values())[1:])
        arguments = stringify_signature(own, show_return_annotation=False, short_literals=True)
    long = re.compile(r"jaxlib\._jax\.(?=Array)|~[\w.]+\.")
    return tuple(text and long.sub("", text) for text in (arguments, returned))


def setup(app):
    """Registers what is above."""
    for name in data.__all__:  # They are imported when they are asked for.
        setattr(data, name, getattr(data, name))
    app.connect("autodoc-process-docstring", before_napoleon, priority=400)
    app.connect("autodoc-process-docstring", after_napoleon, priority=600)
    app.connect("autodoc-process-signature", signature)
