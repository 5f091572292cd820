"""Sphinx's settings. No network is needed: no intersphinx, and mathematics is MathML."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent

# The pages' kernels import this tree, and the pictures' module beside this file.
sys.path[:0] = [str(ROOT), str(HERE), str(HERE / "extensions")]
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(ROOT), str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
)
# Pages that measure say "one thread"; and a page is the same whatever the machine has.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["PYTHONHASHSEED"] = "0"

project = "cflows"
author = copyright = "the cflows developers"
INIT = (ROOT / "cflows" / "__init__.py").read_text()
version = release = re.search(r'__version__ = "(.*)"', INIT)[1]

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "mathml",
    "plain_docstrings",
    "public_names",
]
exclude_patterns = ["_build", "extensions", "images"]
nitpicky = True
# Types of other packages have no page here.
nitpick_ignore_regex = [
    (
        r"py:.*",
        r"(torch|numpy|np|npt|nn|pandas|collections|typing|types|pathlib|os|argparse|matplotlib)\..*",
    ),
    (
        r"py:.*",
        r"(sklearn|abc|dataclasses|importlib|Tensor|Module|Any|Array|Matrix|Figure|Axes|Picture|optional)(\..*)?",
    ),
    # Type variables, aliases, and bases that are not public.
    (
        r"py:.*",
        r"(cflows|baselines)\..*\.(T|Class|Linearized|LocationScale|AnyFlow|Goal|Stepped|_\w+)",
    ),
    (r"py:class", r"\w+|baselines\.harness\..*"),
]
suppress_warnings = ["mystnb.unknown_mime_type"]

myst_enable_extensions = ["amsmath", "attrs_inline", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
myst_dmath_double_inline = True

nb_execution_mode = "cache"
nb_execution_timeout = 240
nb_execution_raise_on_error = True
nb_merge_streams = True
nb_render_image_options = {"class": "picture"}

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_inherit_docstrings = False
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
add_module_names = False
maximum_signature_line_length = 88

html_theme = "furo"
html_title = f"cflows {release}"
html_math_renderer = "mathml"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_copy_source = False
html_show_sphinx = False
