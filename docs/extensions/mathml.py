"""Mathematics as MathML, which browsers draw themselves: no script and no network.

The converter is docutils' own. What it does not know is an error of the page, not a blank.
"""

from __future__ import annotations

import re

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.writers.html5 import HTML5Translator

LOG = logging.getLogger(__name__)

# A function's name stands apart from what is before and behind it, a bracket excepted; browsers
# leave that to the markup.
THIN = '<mspace width="0.1667em"></mspace>'
BEHIND = re.compile(r"(<mo>&ApplyFunction;</mo>)(?!\s*<mo[^>]*>[(\[{]</mo>)")
BEFORE = re.compile(
    r"(</mi>|</mn>|</mover>|</msub>|</msup>)(?=\s*<mi>\w+</mi>\s*<mo>&ApplyFunction;)"
)
# The converter reads \frac12 (J as 12 over a bracket, and says nothing.
UNBRACED = re.compile(r"\\[dt]?frac(\{[^{}]*\})?\s*\w")


def _markup(node: nodes.Element, block: bool) -> str:
    tex = node.astext().strip()
    if block and ("\\\\" in tex or "&" in tex) and "\\begin{" not in tex:
        tex = f"\\begin{{aligned}}{tex}\\end{{aligned}}"
    if unbraced := UNBRACED.search(tex):
        LOG.warning("brace what %r takes, in %s", unbraced[0], tex, location=node)
    try:
        markup = str(tex2mathml(tex, as_block=block))
    except (MathError, SyntaxError) as error:
        LOG.warning("no MathML for %r: %s", tex, error, location=node)
        return ""
    return BEFORE.sub(rf"\1{THIN}", BEHIND.sub(rf"\1{THIN}", markup))


def _inline(translator: HTML5Translator, node: nodes.Element) -> None:
    translator.body.append(f'<span class="math">{_markup(node, block=False)}</span>')
    raise nodes.SkipNode


def _block(translator: HTML5Translator, node: nodes.Element) -> None:
    anchors = "".join(f'<span id="{name}"></span>' for name in node["ids"])
    translator.body.append(f'<div class="math">{anchors}{_markup(node, block=True)}</div>\n')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the renderer."""
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
