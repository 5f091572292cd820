"""How a report is set: blocks of text, tables and pictures as Markdown and as one HTML file."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from baselines.harness.report import tables
from baselines.harness.report.tables import Table

__all__ = ["Block", "markdown", "page"]


@dataclass(frozen=True)
class Block:
    """A piece of the report: h1, h2, p, code, list (a line each), picture (stem) or manifest."""

    kind: str
    text: str
    more: str = ""


def markdown(blocks: Iterable[Block | Table]) -> str:
    """Return the blocks as Markdown; pictures are linked by their file names."""
    parts = []
    for block in blocks:
        if isinstance(block, Table):
            parts.append(_markdown_table(block))
        elif block.kind in ("h1", "h2"):
            parts.append(f"{'#' * int(block.kind[1])} {_plain(block.text)}")
        elif block.kind == "p":
            parts.append(_plain(block.text))
        elif block.kind == "code":
            parts.append(f"    {block.text}")
        elif block.kind == "list":
            parts.append("\n".join(f"- {_plain(line)}" for line in block.text.splitlines()))
        elif block.kind == "picture":
            parts.append(f"![{_plain(block.text)}]({block.more}.png)\n\n{_plain(block.text)}")
    return "\n\n".join(parts) + "\n"


def _plain(text: str) -> str:
    """Text that Markdown, and the HTML that Markdown lets through, take literally."""
    text = text.replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\`*\[\]|#~]|(?<!\w)_|_(?!\w))", r"\\\1", text)


def _markdown_table(table: Table) -> str:
    width = len(table.header)
    lines = [f"### {table.title}\n"] if table.title else []
    lines.append(f"| {' | '.join(table.header)} |")
    lines.append("|" + "".join("---|" if side == "l" else "---:|" for side in table.sides))
    for row in table.rows:
        texts = [_plain(c.text) for c in row] + [""] * (width - len(row))
        texts = [f"**{t}**" if i < len(row) and row[i].bold else t for i, t in enumerate(texts)]
        lines.append(f"| {' | '.join(texts)} |")
    return "\n".join([*lines, *([f"\n{_plain(table.note)}"] if table.note else [])])


def page(blocks: Sequence[Block | Table], pictures: Mapping[str, bytes]) -> str:
    """Return the blocks as one HTML file that needs nothing beside it; pictures are PNG bytes."""
    title = next(html.escape(b.text) for b in blocks if isinstance(b, Block) and b.kind == "h1")
    body = "\n".join(
        _html_table(block) if isinstance(block, Table) else _html_block(block, pictures)
        for block in blocks
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>\n{_CSS}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n<dialog></dialog>\n"
        f"<script>\n{_JS}</script>\n</body>\n</html>\n"
    )


def _html_block(block: Block, pictures: Mapping[str, bytes]) -> str:
    text = html.escape(block.text)
    if block.kind == "picture":
        png = pictures[block.more]
        width = int.from_bytes(png[16:20], "big") * 3 // 5  # of the header: 160 dpi shown at 96
        data = base64.b64encode(png).decode()
        image = f'<img alt="{text}" style="--w:{width}px" src="data:image/png;base64,{data}">'
        button = f'<button class="card" title="enlarge">{image}</button>'
        return f"<figure>{button}<figcaption>{text}</figcaption></figure>"
    if block.kind == "list":
        return "<ul>" + "".join(f"<li>{line}</li>" for line in text.splitlines()) + "</ul>"
    if block.kind == "code":
        return f"<pre><code>{text}</code></pre>"
    if block.kind == "manifest":
        return f"<details><summary>manifest.json</summary><pre>{text}</pre></details>"
    return f'<{block.kind} class="{block.more}">{text}</{block.kind}>'


def _html_table(table: Table) -> str:
    def cells(row: Sequence[tables.TableCell]) -> Iterator[str]:
        for i, cell in enumerate(row):
            tag = 'th scope="row"' if i == 0 else "td"
            if i and table.words:
                tag = 'td class="words"'
            elif i and i == len(row) - 1 and len(row) < len(table.header):
                tag = f'td class="words" colspan="{len(table.header) - i}"'
            elif i and table.sides[i] == "l":
                tag = 'td class="left"'
            text = html.escape(cell.text)
            yield f"<{tag}>{f'<strong>{text}</strong>' if cell.bold else text}</{tag[:2]}>"

    heads = [html.escape(name).replace("± 2 s.e.", "±&nbsp;2&nbsp;s.e.") for name in table.header]
    classes = ['class="left" ' if side == "l" else "" for side in table.sides]
    head = "".join(
        f'<th {kind}scope="col" tabindex="0">{name}</th>'
        for kind, name in zip(classes, heads, strict=True)
    )
    names = [row[0].text for row in table.rows]
    marks = [' class="same"' if i and names[i - 1] == name else "" for i, name in enumerate(names)]
    body = "\n".join(
        f"<tr{mark}>{''.join(cells(row))}</tr>" for mark, row in zip(marks, table.rows, strict=True)
    )
    title = f"<h3>{html.escape(table.title)}</h3>\n" if table.title else ""
    note = f'\n<p class="soft">{html.escape(table.note)}</p>' if table.note else ""
    return (
        f'{title}<div class="scroll" tabindex="0"><table>\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody>\n</table></div>{note}"
    )


_CSS = """\
:root { color-scheme: light dark; --ink: #1d2126; --soft: #626b76; --rule: #dfe3e8;
  --page: #fafafa; --card: #fff; --best: #0b57a4; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e7eb; --soft: #98a2ae;
  --rule: #343b44; --page: #14171b; --card: #1b1f24; --best: #7ab8ff; } }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif; }
main { max-width: 72rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; overflow-wrap: anywhere; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 1rem; text-wrap: balance; }
h2 { font-size: 1.3rem; margin: 3rem 0 .4rem; padding-top: 1rem;
  border-top: 1px solid var(--rule); }
h3 { font-size: 1rem; margin: 1.6rem 0 .5rem; }
p, ul { max-width: 46rem; margin: .5rem 0; }
ul { padding-left: 1.2rem; }
.soft, figcaption { color: var(--soft); font-size: .875rem; }
.scroll, pre { overflow-x: auto; background: var(--card); border: 1px solid var(--rule);
  border-radius: 8px; }
table { border-collapse: separate; border-spacing: 0; width: 100%; font-size: .875rem;
  font-variant-numeric: tabular-nums; overflow-wrap: normal; }
th, td { padding: .45rem .8rem; text-align: right; white-space: nowrap; }
thead th { vertical-align: bottom; white-space: normal; min-width: 3.2rem; font-weight: 500;
  line-height: 1.3; color: var(--soft); border-bottom: 1px solid var(--rule); }
tbody tr + tr:not(.same) > * { border-top: 1px solid var(--rule); }
tr.same > * { padding-top: 0; }
tr.same th { color: var(--soft); font-weight: 400; }
th:first-child { position: sticky; left: 0; background: var(--card); text-align: left; }
tbody th { font-weight: 600; }
th.left, td.left { text-align: left; }
td.words { text-align: left; color: var(--soft); white-space: normal; }
td.words[colspan] { min-width: 16rem; }
strong { color: var(--best); }
pre { padding: .75rem 1rem; font-size: .8125rem; line-height: 1.45; }
figure { margin: 1.5rem 0 2rem; }
.card { background: #fff; border: 1px solid var(--rule); border-radius: 8px; padding: .75rem;
  overflow-x: auto; text-align: center; }
.card img { width: var(--w); max-width: 100%; min-width: min(var(--w), 22rem); height: auto; }
button.card { display: block; width: 100%; cursor: zoom-in; font: inherit; }
thead th { cursor: pointer; }
thead th:hover, thead th:focus-visible { color: var(--ink); }
thead th[aria-sort]::after { content: " ↑"; color: var(--best); }
thead th[aria-sort="descending"]::after { content: " ↓"; }
dialog { border: 0; padding: 0; max-width: 98vw; max-height: 98vh; overflow: auto; cursor: zoom-out;
  background: #fff; }
dialog::backdrop { background: rgb(0 0 0 / .7); }
dialog img { display: block; min-width: min(96vw, 110rem); height: auto; }
figcaption { margin-top: .5rem; }
summary { cursor: pointer; margin: 1rem 0 .5rem; }
"""

# Numbers sort by what stands first in a cell, rows without one last; a picture opens on a click.
_JS = """\
"use strict";
const value = (row, i) => {
  const text = row.cells[i] ? row.cells[i].textContent.trim() : "";
  const found = text.replaceAll(",", "").match(/^[-+±]?\\s*(\\d[\\d.]*(e[-+]?\\d+)?)/i);
  return found ? [0, Number(found[0].replace(/[±\\s]/g, "")), text] : [text ? 1 : 2, 0, text];
};
const sort = head => {
  const table = head.closest("table"), i = head.cellIndex;
  const up = head.getAttribute("aria-sort") !== "ascending";
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", up ? "ascending" : "descending");
  const order = (a, b) => a[0] - b[0] || (up ? 1 : -1) * (a[1] - b[1] || a[2].localeCompare(b[2]));
  const rows = [...table.tBodies[0].rows].map(row => [value(row, i), row]);
  rows.sort((a, b) => order(a[0], b[0])).forEach(([, row]) => {
    row.classList.remove("same");
    table.tBodies[0].append(row);
  });
};
for (const head of document.querySelectorAll("thead th")) {
  head.addEventListener("click", () => sort(head));
  head.addEventListener("keydown", event => { if (event.key === "Enter") sort(head); });
}
const dialog = document.querySelector("dialog");
dialog.addEventListener("click", () => dialog.close());
for (const button of document.querySelectorAll("button.card")) {
  button.addEventListener("click", () => {
    dialog.replaceChildren(button.querySelector("img").cloneNode());
    dialog.showModal();
  });
}
"""
