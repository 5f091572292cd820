"""The picture of what fewer evaluations of a continuous flow cost, and of the solver it took."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from baselines.harness.plots import style
from baselines.harness.results.aggregate import Group

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["evaluations"]

_TITLES = {"density": "log-densities", "sampling": "what is told of samples"}


def evaluations(trials: Mapping[str, Sequence[tuple[Group, Sequence[Any]]]]) -> Figure | None:
    """Return the gap of log p against evaluations, a row a data set and a column a direction.

    Args:
        trials: by data set, each setting with what ``tune_solver`` tried, as its cell keeps it.

    """
    named = {name: groups for name, groups in trials.items() if name}
    if not named:
        return None
    marks = style.marks(group.model for groups in named.values() for group, _ in groups)
    with style.drawing():
        figure, grid = style.grid_of(len(named), len(_TITLES), 4.4, 2.6)
        for row, (name, groups) in zip(grid, named.items(), strict=True):
            for axes, (direction, title) in zip(row, _TITLES.items(), strict=True):
                for group, lines in groups:
                    own = [line for line in lines if line["direction"] == direction]
                    _curves(axes, own, marks[group.model])
                axes.set(xscale="log", yscale="log")
                style.plain(axes, f"{name}: {title}")
                style.label_if_log(axes.xaxis)
                style.label_if_log(axes.yaxis)
        figure.supxlabel("network evaluations a solve", fontsize=9)
        figure.supylabel("mean |log p - fine log p| in nats", fontsize=9)
        labels = {group.model: group.label for groups in named.values() for group, _ in groups}
        style.legend(figure, labels, marks)
    return figure


def _curves(axes: Axes, lines: Sequence[Any], mark: style.Mark) -> None:
    """Grids that no cheaper one beats, dashed; fitted schemes, solid; what was taken, ringed."""
    colour, marker, _ = mark
    for fitted, dashes in ((False, (0, (4, 2))), (True, "-")):
        points: list[tuple[float, float]] = []
        for line in sorted(lines, key=lambda line: (line["evaluations"], line["gap"])):
            better = not points or line["gap"] < points[-1][1]
            if line["solver"].startswith("fitted") == fitted and better and line["gap"] > 0:
                points.append((line["evaluations"], line["gap"]))
        if points:
            x, y = zip(*points, strict=True)
            axes.plot(x, y, color=colour, marker=marker, ms=3.5, lw=1.2, ls=dashes)
    taken = [(line["evaluations"], line["gap"]) for line in lines if line["taken"]]
    for place in taken:
        axes.plot(*place, "o", ms=10, mfc="none", mec=colour, mew=1.2)
