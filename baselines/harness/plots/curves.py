"""The pictures that are curves: training against the clock, cost against size, what depth buys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from baselines.harness.metrics.scaling import Sized
from baselines.harness.plots import style
from baselines.harness.results.aggregate import Group, deepest, name_of
from baselines.harness.results.number_format import clip, finite, significant
from cflows.training.history import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Line", "depth_curves", "front", "growth", "nfe_in_training", "training", "trajectories"]

Array = NDArray[np.float64]
Histories = Mapping[str, Sequence[Record]]  # lines of history.jsonl, by a row's cell
Dashes = str | tuple[float, tuple[float, ...]]

_DASHED: Dashes = (0, (4, 2))
_MEASURES = (
    ("test_log_prob", "test log-likelihood", False),
    ("density_ms_per_1000", "ms per 1000 densities", True),
    ("sample_ms_per_1000", "ms per 1000 samples", True),
    ("round_trip_error", "round-trip error", True),
)


class Line(NamedTuple):
    """A curve of a model: its points, each with the values of ``depth_curves``' measures."""

    model: str
    label: str
    what: str  # "blocks", "solver steps", ...: how the points differ
    points: Sequence[tuple[float, Mapping[str, float | None]]]


def training(groups: Sequence[Group], histories: Histories) -> Figure | None:
    """Return validation log-likelihood against training seconds, a panel a data set; or None."""
    figure = _histories(groups, histories, "seconds", "validation")
    if figure is not None:
        figure.supxlabel("training seconds, validation included", fontsize=9)
        figure.supylabel("validation log-likelihood in nats", fontsize=9)
    return figure


def nfe_in_training(groups: Sequence[Group], histories: Histories) -> Figure | None:
    """Return network evaluations a step against steps of the continuous flows; or None."""
    continuous = [s for s in groups if any(finite(row.solver_gap) for row in s.rows)]
    whole = {cell: _without_a_short_end(lines) for cell, lines in histories.items()}
    figure = _histories(continuous, whole, "step", "nfe")
    if figure is not None:
        figure.supxlabel("optimiser step", fontsize=9)
        figure.supylabel("network evaluations a step", fontsize=9)
        for axes in figure.axes:
            axes.set_ylim(bottom=0)
    return figure


def front(groups: Sequence[Group]) -> Figure | None:
    """Return likelihood against the cost of a sample, every setting a point, and their front.

    An arrow at the lower edge, with its number, stands for a point below it.
    """
    from matplotlib.markers import CARETDOWN

    costs = ((s, s.likelihood[0], s.mean("sample_ms_per_1000")) for s in groups)
    places = {s: (c, v) for s, v, c in costs if finite(v) and finite(c) and c > 0}
    if not places:
        return None
    marks = style.marks(s.model for s in groups)
    with style.drawing():
        figure, panels = style.named_panels(list(places), 4.6, 3.6)
        for axes, name, entries in panels:
            least = style.floor((places[s][1], s.likelihood[1]) for s in entries)
            last = deepest(entries)  # more numbers than these would overlap
            note = partial(axes.annotate, textcoords="offset points", fontsize=7, color="#666666")
            for s in entries:
                cost, value = places[s]
                colour, marker, edge = marks[s.model]
                draw = partial(axes.plot, color=colour, mec=edge, mew=0.6, ms=6.5, zorder=3)
                if value < least:
                    below = axes.get_xaxis_transform()
                    draw(cost, 0, marker=CARETDOWN, transform=below, clip_on=False)
                    text = significant(value).replace("-", "−")
                    note(text, (cost, 0), xycoords=below, xytext=(6, 4))
                    continue
                draw(cost, value, marker=marker)
                if s.depth is not None and s in last:
                    note(str(s.depth), (cost, value), xytext=(5, 3))
            best = _front([places[s] for s in entries if places[s][1] >= least])
            axes.step(*zip(*best, strict=True), where="post", color="#999999", lw=1, zorder=1)
            axes.set_xscale("log")
            axes.margins(0.12)
            style.label_if_log(axes.xaxis)
            style.plain(axes, name)
        figure.supxlabel("ms per 1000 samples (left is better)", fontsize=9)
        figure.supylabel("test log-likelihood in nats", fontsize=9)
        style.legend(figure, {s.model: s.label for s in places}, marks)
    return figure


def growth(records: Sequence[Sized], axis: str, labels: Mapping[str, str]) -> Figure | None:
    """Return milliseconds of 1000 densities, and of 1000 samples, against a size; or None."""
    measured = [record for record in records if record.get("ms")]
    sizes = sorted({record["size"] for record in measured})
    if len(sizes) < 2:
        return None
    names = {record["model"]: labels.get(record["model"], record["model"]) for record in measured}
    marks = style.marks(names)
    with style.drawing():
        figure, grid = style.panels_of(2, 4.6, 3.8)
        for axes, what in zip(grid, ("density", "sample"), strict=True):
            for (model, way), points in _series(measured, what).items():
                colour, marker, edge = marks[model]
                x, y = [point["size"] for point in points], [point["ms"] for point in points]
                draw = partial(axes.plot, x, y, color=colour, marker=marker, ms=5, mew=0.6, lw=1.2)
                if way == "sequential":
                    draw(ls=_DASHED, mec=colour, mfc="white")
                else:
                    draw(ls="-", mec=edge, mfc=colour)
            axes.set(xscale="log", yscale="log")
            axes.set_xticks(sizes, [f"{size:g}" for size in sizes])
            axes.minorticks_off()
            style.plain(axes, {"density": "1000 densities", "sample": "1000 samples"}[what])
            axes.set_xlabel(axis)
        lows, highs = zip(*(axes.get_ylim() for axes in grid), strict=True)
        for axes in grid:
            axes.set_ylim(min(lows), max(highs))
            style.label_if_log(axes.yaxis)
        grid[0].set_ylabel("milliseconds")
        style.legend(figure, names, marks)
    return figure


def depth_curves(discrete: Sequence[Line], continuous: Sequence[Line], name: str) -> Figure | None:
    """Return what depth buys: layers at the left, evaluations of the field at the right; or None.

    Four rows: likelihood, cost of a density, cost of a sample, round-trip error. A curve is a way
    to be deeper; a point's place at the right is its evaluations a density, whatever made them.
    """
    both = (discrete, "layers of a discrete flow"), (continuous, "network evaluations a density")
    sides = [side for side in both if any(len(line.points) > 1 for line in side[0])]
    if not sides:
        return None
    lines = [line for side, _ in sides for line in side]
    marks = style.marks(line.model for line in lines)
    kinds = list(dict.fromkeys(line.what for line in continuous if len(line.points) > 1))
    ways: tuple[Dashes, ...] = ("-", _DASHED, (0, (1, 1.5)))
    dashes = dict(zip(kinds, ways, strict=False))
    with style.drawing():
        figure, grid = style.grid_of(len(_MEASURES), len(sides), 4.4, 1.75)
        for row, (measure, title, log) in zip(grid, _MEASURES, strict=True):
            for axes, (side, axis) in zip(row, sides, strict=True):
                for line in side:
                    _curve(axes, line, measure, marks[line.model], dashes.get(line.what, "-"))
                axes.set_xscale("log")
                if log and axes.lines:
                    axes.set_yscale("log")
                style.plain(axes)
                _ticks(axes, side)
                if measure == _MEASURES[-1][0]:
                    axes.set_xlabel(axis)
            row[0].set_ylabel(title)
            _share(list(row))
            for axes in row:
                style.label_if_log(axes.yaxis)
        grid[0, 0].set_title(clip(name, 40), loc="left")
        _kinds(grid[0, -1], dashes)
        style.legend(figure, {line.model: line.label for line in lines}, marks)
    return figure


def trajectories(columns: Sequence[tuple[Group, Mapping[str, Array]]]) -> Figure | None:
    """Return the paths of continuous flows in the plane, from noise to data; None without paths."""
    shown = [(s, picture) for s, picture in columns if "paths" in picture]
    if not shown:
        return None
    with style.drawing():
        figure, grid = style.panels_of(len(shown), 3.4, 3.5)
        for axes, (s, picture) in zip(grid, shown, strict=True):
            paths = picture["paths"]  # (T, n, 2)
            axes.plot(paths[:, :, 0], paths[:, :, 1], color="#999999", lw=0.4, alpha=0.7)
            for where, colour, word in ((0, "#0072B2", "noise"), (-1, "#D55E00", "data")):
                x, y = paths[where].T
                axes.plot(x, y, ".", ms=2.5, color=colour, zorder=3, label=word)
            axes.set(xticks=[], yticks=[])
            axes.set_aspect("equal", adjustable="datalim")
            axes.set_title(name_of(s, 30), loc="left")
        words = grid[0].get_legend_handles_labels()
        figure.legend(*words, loc="outside upper right", ncols=2, markerscale=2.5, frameon=False)
    return figure


def _without_a_short_end(lines: Sequence[Record]) -> Sequence[Record]:
    """Records but for a last one of few steps, where the seconds ended: its average says little."""
    if len(lines) < 3:
        return lines
    before, last = (lines[i].step - lines[i - 1].step for i in (-2, -1))
    return lines[:-1] if last < before / 2 else lines


def _histories(groups: Sequence[Group], histories: Histories, x: str, y: str) -> Figure | None:
    """A line a seed of every model at its deepest; what each began with is left out."""
    from matplotlib.ticker import MaxNLocator

    trained = [s for s in deepest(groups) if any(row.cell in histories for row in s.rows)]
    if not trained:
        return None
    marks = style.marks(s.model for s in groups)
    with style.drawing():
        figure, panels = style.named_panels(trained, 4.6, 3.2)
        for axes, name, entries in panels:
            shown: list[float] = []
            for s, row in [(group, row) for group in entries for row in group.rows]:
                lines = histories.get(row.cell, ())[1:]
                pairs = [(getattr(line, x), getattr(line, y)) for line in lines]
                pairs = [pair for pair in pairs if all(map(finite, pair))]
                shown += [value for _, value in pairs]
                colour, marker, _ = marks[s.model]
                places, values = zip(*pairs, strict=True) if pairs else ((), ())
                axes.plot(places, values, color=colour, marker=marker, ms=3, mew=0, lw=1)
            if y == "validation" and len(shown) > 4:
                # A first validation far below would leave the rest no room.
                low, high = np.quantile(shown, (0.1, 1.0))
                axes.set_ylim(low - 0.15 * (high - low), high + 0.08 * (high - low))
            if x == "seconds":
                axes.set_xscale("log")
                style.label_if_log(axes.xaxis)
            else:
                axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
            style.plain(axes, name)
        style.legend(figure, {s.model: s.label for s in trained}, marks)
    return figure


def _front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that no other beats in both, by rising cost."""
    best: list[tuple[float, float]] = []
    for cost, value in sorted(points, key=lambda point: (point[0], -point[1])):
        if not best or value > best[-1][1]:
            best.append((cost, value))
    return best


def _series(records: Sequence[Sized], what: str) -> dict[tuple[str, str], list[Sized]]:
    """Records of one kind by model and way; the way is left out where it is not the slow one."""
    series: dict[tuple[str, str], list[Sized]] = {}
    fast = {"maf": "density", "iaf": "sample"}  # one pass, whatever the way
    for record in records:
        way = record.get("way", "")
        if record["what"] != what or (way == "sequential" and fast.get(record["model"]) == what):
            continue
        series.setdefault((record["model"], way), []).append(record)
    return series


def _curve(axes: Axes, line: Line, measure: str, mark: style.Mark, dashes: Dashes) -> None:
    ordered = sorted(line.points, key=lambda point: point[0])
    points = [(x, y) for x, values in ordered if finite(y := values.get(measure))]
    if measure != _MEASURES[0][0]:
        points = [(x, y) for x, y in points if y > 0]
    if points:
        colour, marker, edge = mark
        draw = partial(axes.plot, *zip(*points, strict=True), mec=edge, mew=0.6, lw=1.2)
        draw(color=colour, marker=marker, ms=4.5, ls=dashes)


def _ticks(axes: Axes, side: Sequence[Line]) -> None:
    values = sorted({x for line in side for x, _ in line.points})
    if len(values) > 7:
        style.label_if_log(axes.xaxis)
    else:
        axes.set_xticks(values, [f"{value:g}" for value in values])
        axes.minorticks_off()


def _share(row: Sequence[Axes]) -> None:
    """Give the panels of a row the same limits, so that both families can be compared."""
    drawn = [axes for axes in row if axes.lines]
    if not drawn:
        return
    lows, highs = zip(*(axes.get_ylim() for axes in drawn), strict=True)
    low, high = min(lows), max(highs)
    # What one panel has lowest or highest should not lie on the edge of all.
    if drawn[0].get_yscale() == "log":
        margin = (high / low) ** 0.05
        low, high = low / margin, high * margin
    else:
        margin = 0.05 * (high - low)
        low, high = low - margin, high + margin
    for axes in row:
        axes.set_ylim(low, high)


def _kinds(axes: Axes, dashes: Mapping[str, Dashes]) -> None:
    from matplotlib.lines import Line2D

    if len(dashes) > 1:
        handles = [Line2D([], [], color="#666666", ls=dash) for dash in dashes.values()]
        axes.legend(handles, list(dashes), fontsize=7, loc="best", framealpha=0.9)
