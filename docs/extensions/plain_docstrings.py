"""Docstrings are plain text with code in ``double backquotes``: the rest is shown as it is.

Equations are written with their own signs, |x| and (*B, D) included, which are markup to Sphinx:
here they are escaped. A paragraph that is indented in the body is an equation, and keeps its lines.
"""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

SECTIONS = re.compile(r"(Args|Attributes|Example|Examples|Raises|Returns|Yields|Note|Warning):\s*$")
COLON = "\ue000"
LETTER = re.compile(r"^(\s*(?::[^:]+: )?)([A-Z])\.$")  # no head of a list
CODE = re.compile(r"(``.+?``|\*\*\S.*?\S\*\*)")


def escaped(line: str) -> str:
    """Text in which no sign is markup, code and bold type apart."""
    if line.lstrip().startswith("* "):
        bullet = line.index("* ") + 2
        return line[:bullet] + escaped(line[bullet:])
    parts = CODE.split(line)
    for index in range(0, len(parts), 2):
        # An underscore ends a reference only at the end of a word.
        text = re.sub(r"([*|`])", r"\\\1", parts[index].replace("\\", "\\\\"))
        parts[index] = re.sub(r"(?<=\w)_(?=\W|$)", r"\\_", text)
    return "".join(parts)


def rewritten(lines: list[str]) -> list[str]:
    """The lines of a docstring as reStructuredText."""
    result: list[str] = []
    section, equation, doctest = "", False, False
    for line in lines:
        indented, bare = line.startswith("    "), not line.strip()
        if match := SECTIONS.match(line):
            section, equation = match[1], False
        elif not indented and not bare:
            section, equation = "", False
        if section in ("Example", "Examples"):
            # What a doctest prints stands behind it without a blank line between.
            doctest = line.lstrip().startswith((">>>", "...")) or (doctest and not bare)
            result.append(line if doctest or bare else escaped(line))
        elif indented and not section:
            if not equation:
                result += [".. equation::", ""]
                equation = True
            result.append(line)
        else:
            result.append(line if SECTIONS.match(line) else escaped(line))
            equation = equation and bare
    return result


def _rewrite(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    lines[:] = rewritten(lines)
    if what in ("attribute", "data", "property"):
        # Napoleon takes what stands before a colon for the type of an attribute.
        lines[:] = [line.replace(":", COLON) for line in lines]


def _restore(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    lines[:] = [LETTER.sub(r"\1\2\\.", line.replace(COLON, ":")) for line in lines]


class Equation(SphinxDirective):
    """Lines that keep their places."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        """The lines as a literal block."""
        text = "\n".join(self.content)
        return [nodes.literal_block(text, text, language="none", classes=["equation"])]


def setup(app: Sphinx) -> dict[str, bool]:
    """Rewrite before napoleon reads the sections, at 500."""
    app.add_directive("equation", Equation)
    app.connect("autodoc-process-docstring", _rewrite, priority=100)
    app.connect("autodoc-process-docstring", _restore, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
