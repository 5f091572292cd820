r"""The tables of a report as LaTeX, in booktabs style: rules above, below and under the head alone.

The file compiles as it stands, and each table can be lifted out of it into a paper that loads
booktabs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from baselines.harness.report.pages import Block
from baselines.harness.report.tables import Table, TableCell
from baselines.harness.results.number_format import clip

__all__ = ["document", "escape", "tabular"]

_SPECIAL = {
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
} | {character: f"\\{character}" for character in "&%$#_{}"}

_BEGIN = r"""\documentclass{article}
\usepackage[T1]{fontenc}
\usepackage[utf8]{inputenc}
\usepackage{booktabs}
\usepackage{graphicx}
\usepackage[a4paper,landscape,margin=2cm]{geometry}
\setlength{\belowcaptionskip}{6pt}
\begin{document}
"""
_MINUS = re.compile(r"(?<![\w.-])-(?=\d|inf)")  # of a number, not of an exponent, a name or a range
_FITTED = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"


def document(blocks: Iterable[Block | Table]) -> str:
    """Return the tables of a report as one LaTeX file, a section for each data set."""
    parts, waiting = [_BEGIN], ""
    for block in blocks:
        if isinstance(block, Block):
            waiting = block.text if block.kind == "h2" else waiting
        elif block.rows and not block.words:
            if waiting:
                parts.append(f"\\section*{{{escape(clip(waiting, 80))}}}\n")
                waiting = ""
            parts.append(tabular(block))
    return "\n".join([*parts, "\\end{document}\n"])


def tabular(table: Table) -> str:
    """Return one table with its caption, no wider than the text; needs booktabs and graphicx."""
    width = len(table.header)
    # A model's name is given once for its lines, as in the other forms of the report.
    lines, last = [], None
    for row in table.rows:
        name = row[0] if row[0] != last else TableCell("")
        last = row[0]
        lines.append(" & ".join(_cell(cell) for cell in (name, *row[1:-1])) + _end(row, width))
    head = " & ".join(f"\\shortstack[{c}]{{{_head(name)}}}" for c, name in
                      zip(table.sides, table.header, strict=True))  # fmt: skip
    caption = f"\\caption{{{escape(table.title)}. {escape(table.note)}}}\n" if table.title else ""
    return (
        f"\\begin{{table}}[htbp]\n\\centering\n{caption}{_FITTED}\n"
        f"\\begin{{tabular}}{{{table.sides}}}\n\\toprule\n{head} \\\\\n\\midrule\n"
        + "\n".join(lines)
        + "\n\\bottomrule\n\\end{tabular}}\n\\end{table}\n"
    )


def escape(text: str) -> str:
    """Return text that LaTeX takes literally; what its fonts lack becomes a question mark."""
    return "".join(
        _SPECIAL.get(c, c if c.isascii() and c.isprintable() else _letter(c)) for c in text
    )


def _letter(character: str) -> str:
    """A letter of the Latin alphabet with its accent, which T1 has; else a question mark."""
    return character if "À" <= character <= "ž" else "?"


def _cell(cell: TableCell) -> str:
    text = _MINUS.sub("$-$", escape(cell.text))
    return f"\\textbf{{{text}}}" if cell.bold else text


def _end(row: tuple[TableCell, ...], width: int) -> str:
    """The last cell of a line; of a short row it is a sentence over the columns that it lacks."""
    if len(row) < 2:
        return r" \\"
    if len(row) == width:
        return f" & {_cell(row[-1])} \\\\"
    span = width - len(row) + 1
    return f" & \\multicolumn{{{span}}}{{l}}{{{escape(clip(row[-1].text, 90))}}} \\\\"


def _head(name: str) -> str:
    """A column's head on several lines of about 14 characters."""
    lines = [""]
    for word in name.split():
        if lines[-1] and len(lines[-1]) + len(word) > 14:
            lines.append("")
        lines[-1] += (" " if lines[-1] else "") + word
    return r"\\".join(escape(line) for line in lines)
