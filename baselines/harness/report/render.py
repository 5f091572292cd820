"""A report's content set by the templates beside this file: HTML, Markdown and LaTeX."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from typing import NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from baselines.harness.report.gallery import Picture
from baselines.harness.report.tables import Table

__all__ = ["Section", "render"]

_SPECIAL = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "±": r"$\pm$",
        "–": "--",
        "²": r"$^2$",
        "…": r"\dots{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        '"': r"\textquotedbl{}",
    }
    | {character: f"\\{character}" for character in "&%$#_{}"}
)
_MINUS = re.compile(r"(?<![\w.-])-(?=\d|inf)")  # of a number, not of an exponent, a name or a range


class Section(NamedTuple):
    """A part of a report with a heading of its own; what it has none of is empty."""

    title: str
    about: str
    tables: Sequence[Table]
    leader: str = ""
    pictures: Sequence[Picture] = ()


def render(kind: str, **content: object) -> str:
    """Return a report as ``"html"`` (one file that needs nothing beside it), ``"md"`` or ``"tex"``.

    The templates take `title`, `introduction`, `front` (the pictures at the head), `sections`, the
    further `pictures` or why there are none as `no_pictures`, the table `failures`, `command`, the
    lines of `machine` and `manifest`; of these, LaTeX takes the sections' tables alone.
    """
    pages = _LATEX if kind == "tex" else _PAGES
    return pages.get_template(f"report.{kind}.jinja").render(content)


def _markdown(text: str) -> str:
    """Text that Markdown, and the HTML that Markdown lets through, take literally."""
    text = text.replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\`*\[\]|#~]|(?<!\w)_|_(?!\w))", r"\\\1", text)


def _latex(text: str) -> str:
    """Text that LaTeX takes literally; what T1's fonts lack becomes a question mark."""
    return re.sub("[^ -~À-ž]", "?", text.translate(_SPECIAL))


_PAGES = Environment(
    loader=PackageLoader("baselines.harness.report"),
    autoescape=select_autoescape(["html.jinja"]),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
_PAGES.filters |= {
    "md": _markdown,
    "tex": _latex,
    "signs": lambda text: _MINUS.sub("$-$", text),
    "base64": lambda data: base64.b64encode(data).decode(),
    "width": lambda png: int.from_bytes(png[16:20], "big") * 3 // 5,  # 160 dpi shown at 96
}
_LATEX = _PAGES.overlay("<%", "%>", "<<", ">>", "<#", "#>")  # braces are LaTeX's own
