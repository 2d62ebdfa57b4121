"""Sphinx: `make docs` builds docs/_build/html/index.html, without a network; a warning is an error."""

from __future__ import annotations

import os
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent

# Notebooks run this tree on one thread, and find its command line.
sys.path[:0] = [str(ROOT), str(DOCS / "extensions")]
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
os.environ.setdefault("OMP_NUM_THREADS", "1")

from audiovae import __version__ as release  # noqa: E402

project = "audiovae"
author = "The audiovae developers"
copyright = author
version = release

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.doctest",
    "verbs",
    "included",
    "names",
]
exclude_patterns = ["_build", "extensions"]
default_role = "py:obj"  # of docstrings: a link where it names something documented, else what it says
nitpicky = True
nitpick_ignore_regex = [
    ("py:obj", r"(?s).*"),  # most backticks of docstrings name nothing public
    ("py:.*", r"(?!audiovae\.).*"),  # torch's, NumPy's and Python's: their documentation is not asked
    ("py:class", r"audiovae\.(corpora|models|phase|saved|shards|stft|trainable|settings)\..*"),  # private
    ("py:class", r"audiovae\.separation\.(spatial|neural)\..*"),
]
smartquotes_action = "D"  # dashes alone

autodoc_default_options = {"members": True, "undoc-members": True, "member-order": "bysource"}
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 88
python_use_unqualified_type_names = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
napoleon_attr_annotations = False
napoleon_custom_sections = [("Reference", "References")]

myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence", "deflist"]
myst_links_external_new_tab = False
nb_execution_mode = "force"
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_execution_timeout = 900  # seconds of a cell, on a machine with other jobs
nb_merge_streams = True
highlight_language = "text"

html_theme = "furo"
html_title = f"audiovae {release}"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False
doctest_global_setup = "import audiovae, torch, numpy as np"
