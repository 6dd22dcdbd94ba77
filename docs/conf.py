"""Settings of the site: `make docs` builds it with Sphinx, warnings as errors."""

import inspect
import pathlib
import posixpath
import re

import dropout_jax

project = "dropout_jax"
author = "The dropout_jax authors"
copyright = "2026, the dropout_jax authors"
version = release = dropout_jax.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
exclude_patterns = ["**/.ipynb_checkpoints"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # tests/examples/test_tutorials.py runs the notebooks
nb_merge_streams = True  # one block for what a cell prints
autodoc_typehints = "none"  # the docstrings give shapes and units
autodoc_member_order = "bysource"
napoleon_google_docstring = True

html_theme = "sphinx_book_theme"
html_title = "dropout_jax and minigpt"
html_show_sourcelink = False
html_static_path = ["_static"]
html_css_files = ["narrow.css", "icons.css"]
html_copy_source = False
suppress_warnings = ["misc.highlighting_failure"]  # shell commands of several lines in notebooks
SOURCE = "https://github.com/dropout-jax/dropout-jax/blob/main/"


def link_to_source(app, docname, source):
    """Let links to files outside docs/ go to the repository, where they can be read."""

    def to_url(match):
        path = posixpath.normpath(posixpath.join(posixpath.dirname(docname), match[1]))
        return f"]({SOURCE}{path[3:]}" if path.startswith("../") else match[0]

    source[0] = re.sub(r"\]\((\.\./[^)\s]*)", to_url, source[0])


def link_root_to_source(app, path, docname, source):
    """Let the README's links to files of the root go there too."""
    source[0] = re.sub(r"\]\(([A-Z]+\.md)\)", rf"]({SOURCE}\1)", source[0])


def show_constructor(app, what, name, obj, options, signature, return_annotation):
    """Show the arguments of a Flax layer, whose metaclass hides them."""
    if what == "class" and signature == "(*args, **kwargs)":
        _self, *arguments = inspect.signature(obj.__init__).parameters.values()
        plain = [each.replace(annotation=inspect.Parameter.empty) for each in arguments]
        return str(inspect.Signature(plain)), None
    return signature, return_annotation


def empty_icon_script(app, exception):
    """Spare each page 1.5 MB: icons.css has the icons."""
    script = pathlib.Path(app.outdir, "_static", "scripts", "fontawesome.js")
    if script.exists():
        script.write_text("")


def setup(app):
    """Let Sphinx call the functions above."""
    app.connect("autodoc-process-signature", show_constructor)
    app.connect("build-finished", empty_icon_script)
    app.connect("source-read", link_to_source)
    app.connect("include-read", link_root_to_source)
