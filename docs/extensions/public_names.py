"""The reference, as far as it can be listed: names of a package, modules of a package.

``.. public-names:: PACKAGE``, in reStructuredText, is a table of ``__all__``, each name with its
line and a link to its entry. The line ``% modules of PACKAGE`` of a page becomes a section for each
module of the package that has an ``__all__``.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from typing import Any

from docutils import nodes
from plain_docstrings import escaped
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective


class PublicNames(SphinxDirective):
    """The table."""

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


def public_modules(package: str) -> list[str]:
    """The modules of a package that have an ``__all__``, those of packages within it left out."""
    path = importlib.import_module(package).__path__
    names = [f"{package}.{found.name}" for found in pkgutil.iter_modules(path) if not found.ispkg]
    return [
        name
        for name in names
        if not name.endswith("__main__") and hasattr(importlib.import_module(name), "__all__")
    ]


def _sections(match: re.Match[str]) -> str:
    return "\n".join(_section(name) for name in public_modules(match[1]))


def _section(name: str) -> str:
    module = importlib.import_module(name)
    # What a module only passes on has its entry where it is defined.
    passed = [
        member
        for member in module.__all__
        if callable(found := getattr(module, member)) and getattr(found, "__module__", name) != name
    ]
    without = f"   :exclude-members: {', '.join(passed)}\n" if passed else ""
    return (
        f"## `{name}`\n\n```{{eval-rst}}\n.. automodule:: {name}\n   :members:\n"
        f"   :show-inheritance:\n{without}```\n"
    )


def _list_modules(app: Sphinx, page: str, source: list[str]) -> None:
    source[0] = re.sub(r"^% modules of (\S+)$", _sections, source[0], flags=re.MULTILINE)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive and the line."""
    app.add_directive("public-names", PublicNames)
    app.connect("source-read", _list_modules)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
