"""The pictures of a report: likelihoods, costs, densities; matplotlib without its global state."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from baselines.harness.plots import labels, style
from baselines.harness.results.aggregate import Group, deepest, likelihood_digits, name_of
from baselines.harness.results.number_format import clip, finite, plus_minus
from baselines.models.model import CLOSED_FORM

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["cost", "densities", "likelihood"]

Array = NDArray[np.float64]
Picture = Mapping[str, Array]


def likelihood(groups: Sequence[Group]) -> Figure | None:
    """Return the likelihoods at the deepest, a panel a data set; None where there are none."""
    shown = [s for s in deepest(groups) if finite(s.likelihood[0])]
    if not shown:
        return None
    marks = style.marks(s.model for s in groups)
    most = max(Counter(s.dataset for s in shown).values())
    with style.drawing():
        figure, panels = style.named_panels(shown, 5.4, 1.05 + 0.34 * most)
        for axes, name, entries in panels:
            _dots(axes, name, entries, marks)
        figure.supxlabel("test log-likelihood in nats, ± 2 s.e. (higher is better)", fontsize=9)
    return figure


def cost(groups: Sequence[Group]) -> Figure | None:
    """Return the time of a sample against that of a density; None where neither was measured."""
    times = {s: pair for s in groups if (pair := _times(s))}
    if not times:
        return None
    marks = style.marks(s.model for s in groups)
    with style.drawing():
        figure, panels = style.named_panels(list(times), 4.6, 4.6)
        for axes, name, entries in panels:
            _costs(axes, name, {s: times[s] for s in entries}, marks)
            axes.set_xlabel("ms per 1000 densities")
        panels[0][0].set_ylabel("ms per 1000 samples")
        figure.draw_without_rendering()  # where the points lie is known only after the layout
        placed = []
        for axes, _, entries in panels:
            paths: dict[str, list[tuple[float, float]]] = {}  # of a model, the deepest last
            for s in entries:
                paths.setdefault(name_of(s, 18), []).append(times[s])
            placed.append(labels.name_points(axes, paths))
        if not all(placed):
            for axes, _, _ in panels:
                labels.remove_names(axes)
            style.legend(figure, {s.model: s.label for s in times}, marks)
    return figure


def densities(
    columns: Sequence[tuple[Group, Picture]], data: Array | None, width: int = 7
) -> Figure:
    """Return densities above samples on one scale of colours: the data, then a column a setting.

    `columns` holds at least one setting with its picture, `data` the test rows (n, 2) or None;
    columns beyond `width` go on below.
    """
    from matplotlib.colors import Normalize

    digits = likelihood_digits(s for s, _ in columns)
    extent = columns[0][1]["extent"]
    top = _common_top(columns)
    tiles = [] if data is None else [("Data", _histogram(data, extent), extent, data[:2000])]
    for s, picture in columns:
        value = plus_minus(s.rows[0].test_log_prob, None, digits).replace("-", "−")
        title = f"{name_of(s, 16)}\n{value}"
        tiles.append((title, _density(picture), picture["extent"], picture["samples"]))
    bands = math.ceil(len(tiles) / width)
    across = math.ceil(len(tiles) / bands)
    height = 1.55 * float(np.clip(_shape(extent), 0.4, 2))
    with style.drawing():
        figure, grid = style.grid_of(2 * bands, across, 1.55, height + 0.08, tight=True)
        for i, (title, density, box, points) in enumerate(tiles):
            upper, lower = grid[2 * (i // across) : 2 * (i // across) + 2, i % across]
            image = _tile(upper, box).imshow(
                density,
                extent=tuple(box),
                origin="lower",
                cmap="magma",
                norm=Normalize(0.0, top),
                aspect="auto",  # the tile has its shape already
            )
            upper.set_title(title, fontsize=9, fontweight="normal", linespacing=1.3)
            x, y = points[np.isfinite(points).all(axis=1)].T
            size = min(2.0, 4000 / max(x.size, 1))
            dots = _tile(lower, box).scatter(x, y, s=size, color="#1B1464", linewidth=0)
            dots.set_rasterized(True)
            if i % across == 0:
                upper.set_ylabel("density")
                lower.set_ylabel("samples")
        for band in range(0, 2 * bands, 2):
            for axes in grid[band : band + 2, len(tiles) - band // 2 * across :].flat:
                axes.remove()
        bar = figure.colorbar(image, ax=figure.axes, shrink=0.6, aspect=30, pad=0.02)
        bar.outline.set_visible(False)
        bar.set_label("density, one scale for all")
    return figure


def _dots(axes: Axes, name: str, entries: Sequence[Group], marks: style.Marks) -> None:
    """A row a model, a point a seed, an arrow for one beyond the edge, the number at the right."""
    from matplotlib.markers import CARETLEFT
    from matplotlib.ticker import MaxNLocator

    digits = likelihood_digits(entries)
    drawable = [
        [(value, r.test_log_prob_2se) for r in s.rows if finite(value := r.test_log_prob)]
        for s in entries
    ]
    least = style.floor(point for seeds in drawable for point in seeds)
    for y, (s, seeds) in enumerate(zip(entries, drawable, strict=True)):
        colour, marker, edge = marks[s.model]
        drawn: Any = {
            "color": edge.replace("none", colour),
            "mfc": colour,
            "ms": 6.5 if len(seeds) == 1 else 4.5,
            "mew": 0.6,
            "clip_on": False,
        }
        shifts = np.linspace(-0.26, 0.26, len(seeds)) if len(seeds) > 1 else [0.0]
        for (value, error), shift in zip(seeds, shifts, strict=True):
            if value < least:
                across = axes.get_yaxis_transform()
                axes.plot(0, y + shift, marker=CARETLEFT, transform=across, **drawn)
                continue
            bar = error if finite(error) else None
            axes.errorbar(
                value, y + shift, xerr=bar, fmt=marker, elinewidth=1.2, capsize=0, **drawn
            )
        text = plus_minus(*s.likelihood, digits).replace("-", "−")
        axes.text(1.02, y, text, transform=axes.get_yaxis_transform(), va="center", fontsize=8)
    for s in entries:
        reference = s.likelihood[0]
        if s.model in CLOSED_FORM and reference is not None and reference >= least:
            axes.axvline(reference, color=marks[s.model].colour, ls=(0, (4, 3)), lw=1, zorder=0)
    axes.set_yticks(range(len(entries)), [name_of(s, 18) for s in entries])
    axes.set_ylim(len(entries) - 0.4, -0.6)
    axes.margins(x=0.08)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.ticklabel_format(axis="x", style="plain", useOffset=False)
    axes.grid(axis="x")
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.set_title(clip(name, 40), loc="left")


def _times(s: Group) -> tuple[float, float] | None:
    """Milliseconds per 1000 densities and samples, None unless both can stand on a log axis."""
    density, sample = s.mean("density_ms_per_1000"), s.mean("sample_ms_per_1000")
    if not (finite(density) and finite(sample) and min(density, sample) > 0):
        return None
    return density, sample


def _costs(
    axes: Axes,
    name: str,
    times: Mapping[Group, tuple[float, float]],
    marks: style.Marks,
) -> None:
    """One panel of costs: the same limits both ways, so that the diagonal is equal cost."""
    low, high = _decades([value for pair in times.values() for value in pair])
    axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high), box_aspect=1)
    for axis in (axes.xaxis, axes.yaxis):
        style.label_if_log(axis)
    axes.plot([low, high], [low, high], color="#999999", ls=(0, (4, 3)), lw=1, zorder=0)
    last = deepest(times)
    for model, view in dict.fromkeys((s.model, s.view) for s in times):
        colour, marker, edge = marks[model]
        path = [s for s in times if (s.model, s.view) == (model, view)]
        axes.plot(*zip(*(times[s] for s in path), strict=True), color=colour, lw=1, alpha=0.6)
        for s in path:
            size = 8.0 if s in last else 4.0
            axes.plot(*times[s], marker=marker, color=colour, ms=size, mec=edge, mew=0.6)
    labels.name_diagonal(axes, list(times.values()), "equal cost")
    style.plain(axes, name)


def _decades(values: Sequence[float]) -> tuple[float, float]:
    """Limits with room for labels around positive values, a decade and a half apart at least."""
    low, high = math.log10(min(values)), math.log10(max(values))
    pad = max(0.1 * (high - low), (1.5 - (high - low)) / 2, 0.2)
    return float(10 ** (low - pad)), float(10 ** (high + 2 * pad))  # names go to the right


def _tile(axes: Axes, box: Array) -> Axes:
    axes.set(xticks=[], yticks=[], xlim=box[:2], ylim=box[2:], box_aspect=_shape(box))
    return axes


def _shape(box: Array) -> float:
    """Height over width at equal units, within what a tile can show: a sliver has no room."""
    width, height = abs(box[1] - box[0]), abs(box[3] - box[2])
    return float(np.clip(height / width, 0.25, 4)) if width > 0 else 1.0


def _density(picture: Picture) -> Array:
    """exp(log p), where a point that has no density counts as none."""
    return np.exp(np.minimum(np.nan_to_num(picture["density"], nan=-np.inf), 700.0))


def _common_top(columns: Sequence[tuple[Group, Picture]]) -> float:
    """Return what is drawn brightest: the 99.5th percentile of the best model's density."""
    scored = [(value, p) for s, p in columns if finite(value := s.likelihood[0])]
    best = max(scored, key=lambda pair: pair[0], default=(0.0, columns[0][1]))[1]
    density = _density(best)
    top = float(np.quantile(density, 0.995)) or float(density.max())
    return top if math.isfinite(top) and top > 0 else 1.0


def _histogram(data: Array, extent: Array) -> Array:
    """Density of the rows in cells of the picture, in the units of the models' densities."""
    bins = int(np.clip(math.sqrt(len(data)) / 1.7, 12, 60))  # a few rows to a cell, not a speckle
    left, right, low, high = map(float, extent)
    x, y = np.linspace(left, right, bins + 1), np.linspace(low, high, bins + 1)
    counts = np.histogram2d(data[:, 0], data[:, 1], bins=(x, y))[0].T
    return np.asarray(counts / (len(data) * (x[1] - x[0]) * (y[1] - y[0])), np.float64)
