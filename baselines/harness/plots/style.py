"""What the pictures of a report share: one colour a model, one style, the files' bytes."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from baselines.harness.results.aggregate import Group, by_dataset
from baselines.harness.results.number_format import clip, finite

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

__all__ = [
    "Mark",
    "Marks",
    "drawing",
    "encode",
    "floor",
    "grid_of",
    "label_if_log",
    "legend",
    "marks",
    "named_panels",
    "panels_of",
    "plain",
]


class Mark(NamedTuple):
    """How one model is drawn in every picture; the edge gives a pale colour its outline."""

    colour: str
    marker: str
    edge: str = "none"


Marks = Mapping[str, Mark]


# Okabe and Ito's colours; a model keeps its own whatever else stands in the picture.
_FIXED = {
    "ffjord": Mark("#D55E00", "o"),
    "ffjord-matching": Mark("#CC79A7", "*"),
    "ffjord-time": Mark("#D55E00", "P"),
    "maf": Mark("#0072B2", "s"),
    "iaf": Mark("#56B4E9", "D"),
    "realnvp": Mark("#009E73", "^"),
    "nice": Mark("#E69F00", "v"),
    "spline": Mark("#F0E442", "h", "#7A7200"),
    "planar": Mark("#000000", "p"),
    "gaussian": Mark("#7F7F7F", "X"),
    "gaussianised": Mark("#444444", "d"),
}
_SPARE = [Mark("#CC79A7", "P"), Mark("#000000", ">"), Mark("#F0E442", "d", "#7A7200")]
_SPARE += [Mark("#0072B2", "<"), Mark("#009E73", "H")]

_INK, _SOFT, _RULE = "#222222", "#666666", "#DDDDDD"
_DPI = 160


def marks(names: Iterable[str]) -> Marks:
    """Return every model's mark: the known ones have their own, others the remaining in order."""
    others = dict.fromkeys(name for name in names if name not in _FIXED)
    return _FIXED | {model: _SPARE[i % len(_SPARE)] for i, model in enumerate(others)}


def encode(figure: Figure) -> tuple[bytes, bytes]:
    """Return the figure as PNG and as SVG, the same bytes for the same figure."""
    png, svg = io.BytesIO(), io.BytesIO()
    with drawing():
        # Laid out once: else each file, and each look for its edges, would begin it again.
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
        # The layout may let a label stand out of a panel of fixed shape: nothing is cut off.
        save = partial(figure.savefig, dpi=_DPI, bbox_inches=figure.get_tightbbox().padded(0.1))
        save(png, format="png")
        save(svg, format="svg", metadata={"Date": None})
    return png.getvalue(), svg.getvalue()


@contextmanager
def drawing() -> Iterator[None]:
    """Draw in one style whatever the user's matplotlibrc says, and put the settings back."""
    import matplotlib as mpl

    settings = mpl.rc_context(
        {
            "font.family": "DejaVu Sans",
            "font.size": 9,
            "text.usetex": False,
            "text.parse_math": False,  # a data set may be called "$x"
            "text.color": _INK,
            "axes.titlesize": 10,
            "axes.titleweight": "bold",
            "axes.labelcolor": _INK,
            "axes.edgecolor": "#999999",
            "axes.linewidth": 0.8,
            "axes.axisbelow": True,
            "xtick.color": _SOFT,
            "ytick.color": _SOFT,
            "xtick.labelcolor": _INK,
            "ytick.labelcolor": _INK,
            "grid.color": _RULE,
            "grid.linewidth": 0.6,
            "figure.facecolor": "white",
            "figure.dpi": 100,
            "savefig.facecolor": "white",
            "svg.hashsalt": "cflows",  # else the same picture is another file each time
        }
    )
    with settings, warnings.catch_warnings():
        # A name in a script the font lacks is drawn as boxes: no reason to lose the report.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def grid_of(
    rows: int, columns: int, width: float, height: float, tight: bool = False
) -> tuple[Figure, np.ndarray]:
    """Return a figure of rows x columns axes, each of so many inches, and the array of them."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=0.04 if tight else 0.1, compress=tight)
    figure = Figure(figsize=(columns * width + 0.6, rows * height + 0.3), layout=layout)
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def panels_of(count: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """Return a figure of so many panels, two abreast."""
    across = min(count, 2)
    figure, grid = grid_of(math.ceil(count / across), across, width, height)
    for axes in grid.flat[count:]:
        axes.remove()
    return figure, list(grid.flat[:count])


def named_panels(
    groups: Sequence[Group], width: float, height: float
) -> tuple[Figure, list[tuple[Axes, str, list[Group]]]]:
    """Return a figure of a panel a data set, and each panel with its name and settings."""
    named = by_dataset(groups)
    figure, grid = panels_of(len(named), width, height)
    return figure, [(axes, *entry) for axes, entry in zip(grid, named.items(), strict=True)]


def plain(axes: Axes, title: str = "") -> None:
    """Draw the grid and a title, and leave out the frame's upper and right sides."""
    axes.grid()
    axes.spines[["top", "right"]].set_visible(False)
    if title:
        axes.set_title(clip(title, 36), loc="left")


def label_if_log(axis: Axis) -> None:
    """Label a log axis in plain numbers: mathematics is not parsed, as names may hold dollars."""
    from matplotlib.ticker import LogLocator, NullLocator

    if axis.get_scale() != "log":
        return
    low, high = axis.get_view_interval()  # few decades leave room for 1, 2 and 5
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if np.log10(high / low) < 2 else (1,)))
    axis.set_major_formatter(lambda v, _: f"{v:,g}" if v >= 1e-3 else f"{v:.0e}")
    axis.set_minor_locator(NullLocator())  # half the time of a picture, and the grid is there


def floor(points: Iterable[tuple[float, float | None]]) -> float:
    """Return the least value that a picture has room for: what lies far below squeezes the rest.

    `points` are values with their errors. The worst is left out while it makes the range, errors
    included, more than four times that of the others, of which two must stay. Pictures draw at
    their edge, as an arrow, what is left out.
    """
    known = [(v, e if finite(e) else 0.0) for v, e in points]
    shown = sorted((v - e, v, v + e) for v, e in known)

    def span(kept: Sequence[tuple[float, float, float]]) -> float:
        return max(high for _, _, high in kept) - min(low for low, _, _ in kept)

    while len(shown) > 2 and span(shown) > 4 * span(shown[1:]) > 0:
        shown.pop(0)
    return min(v for _, v, _ in shown) if shown else -math.inf


def legend(figure: Figure, names: Mapping[str, str], style: Marks) -> None:
    """Write the models' marks above the panels, and beside each the name to show for it."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=colour, marker=marker, ms=7, mec=edge, ls="none")
        for colour, marker, edge in (style[model] for model in names)
    ]
    shown = [clip(name, 18) for name in names.values()]
    rows = math.ceil(len(names) / (3 if figure.get_figwidth() < 6 else 6))
    columns = math.ceil(len(names) / rows)
    figure.legend(handles, shown, loc="outside upper center", ncols=columns, frameon=False)
