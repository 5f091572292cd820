"""A table of the public names of a package, each with its line and a link to its entry."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

from docutils import nodes
from plain_docstrings import escaped
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective


class PublicNames(SphinxDirective):
    """``.. public-names:: PACKAGE``, in reStructuredText."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Definitions of the names in ``__all__``."""
        package = importlib.import_module(self.arguments[0])
        lines = [".. list-table::", "   :widths: 28 72", ""]
        for name in sorted(package.__all__, key=str.lower):
            if name.startswith("__"):
                continue
            found = getattr(package, name)
            lines += [
                f"   * - :py:obj:`{name} <{home(found)}.{name}>`",
                f"     - {escaped(first_line(found))}",
            ]
        return self.parse_text_to_nodes("\n".join(lines) + "\n")


def home(found: Any) -> str:
    """The module that defines a public name."""
    return str(found.__module__)


def first_line(found: Any) -> str:
    """The first sentence of a docstring."""
    text = inspect.getdoc(found) or ""
    return " ".join(text.split("\n\n")[0].split())


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive."""
    app.add_directive("public-names", PublicNames)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
