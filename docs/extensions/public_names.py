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
from types import ModuleType

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
            if not name.startswith("__"):
                member = getattr(package, name)
                text = " ".join((inspect.getdoc(member) or "").split("\n\n")[0].split())
                lines.append(f"   * - :py:obj:`{name} <{member.__module__}.{name}>`")
                lines.append(f"     - {escaped(text)}")
        return self.parse_text_to_nodes("\n".join(lines) + "\n")


def _sections(match: re.Match[str]) -> str:
    """A section for each module with an ``__all__``, those of packages within left out."""
    path = importlib.import_module(match[1]).__path__
    names = [f"{match[1]}.{info.name}" for info in pkgutil.iter_modules(path) if not info.ispkg]
    modules = [importlib.import_module(name) for name in names if not name.endswith("__main__")]
    return "\n".join(_section(module) for module in modules if hasattr(module, "__all__"))


def _section(module: ModuleType) -> str:
    # What a module only passes on has its entry where it is defined.
    members = {member: getattr(module, member) for member in module.__all__}
    name = module.__name__
    passed = [
        member
        for member, value in members.items()
        if callable(value) and getattr(value, "__module__", name) != name
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
