"""Names beside points, placed where they touch nothing."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.transforms import Bbox

__all__ = ["name_diagonal", "name_points", "remove_names"]

Array = NDArray[np.float64]

_NAME = "name"  # marks what this module wrote
_AROUND = [0, 180, 315, 135, 90, 270, 45, 225, 345, 165, 300, 120]  # degrees, the best place first


def name_diagonal(axes: Axes, points: Sequence[tuple[float, float]], text: str) -> None:
    """Write along the diagonal of equal log axes, where it is farthest from all points."""
    low, high = np.log10(axes.get_xlim())
    places = np.linspace(0.1, 0.88, 27)
    at = (np.log10(points) - low) / (high - low)
    nearest = np.hypot(*(places[:, None, None] - at[None]).transpose(2, 0, 1)).min(axis=1)
    farthest = float(places[nearest.argmax()])
    axes.annotate(
        text,
        (farthest, farthest),
        xycoords="axes fraction",
        xytext=(3, -3),
        textcoords="offset points",
        rotation=45,
        rotation_mode="anchor",
        ha="center",
        va="top",
        fontsize=8,
        color="#666666",
    )


def name_points(axes: Axes, paths: Mapping[str, Sequence[tuple[float, float]]]) -> bool:
    """Write each path's name beside its last point; say whether all found a free place.

    Args:
        axes: drawn once, so that it is known where things lie.
        paths: by name, points in the axes' units. Names keep off the diagonal, the points, the
            lines that join a path's points, and each other.

    """
    scale = axes.figure.dpi / 72
    taken: list[Array] = [_extents(text.get_window_extent()) for text in axes.texts]
    lines = [axes.transAxes.transform([(0, 0), (1, 1)])]
    lines += [axes.transData.transform(list(path)) for path in paths.values()]
    for i, line in enumerate(lines):
        half = (4.5 if i else 1.0) * scale
        for first, second in zip(line, [*line[1:], line[-1]], strict=True):
            places = np.linspace(first, second, 12 if i else 100)
            taken += list(np.hstack([places - half, places + half]))
    for name, path in paths.items():
        if (box := _place(axes, name, path[-1], np.array(taken), scale)) is None:
            return False
        taken.append(box)
    return True


def remove_names(axes: Axes) -> None:
    """Take back what ``name_points`` wrote."""
    for text in [text for text in axes.texts if text.get_gid() == _NAME]:
        text.remove()


def _place(
    axes: Axes, name: str, point: tuple[float, float], taken: Array, scale: float
) -> Array | None:
    """Write a name where it keeps off boxes (n, 4) in pixels, left to top; None where it cannot."""
    from matplotlib.text import Text

    text = axes.annotate(
        name,
        point,
        xytext=(0, 0),
        textcoords="offset points",
        fontsize=8.5,
        gid=_NAME,
        arrowprops={"arrowstyle": "-", "color": "#AAAAAA", "lw": 0.6, "shrinkA": 1, "shrinkB": 6},
    )
    text.set_in_layout(False)
    canvas: Any = axes.figure.canvas
    room = _extents(axes.get_window_extent())
    here = axes.transData.transform(point)
    others = taken[~_overlap(taken, np.tile(here, 2))]
    for distance, angle in itertools.product((7, 11, 17, 25, 34, 44), _AROUND):
        x, y = distance * math.cos(math.radians(angle)), distance * math.sin(math.radians(angle))
        text.set_position((x, y))
        text.set_horizontalalignment("left" if x > 1 else "right" if x < -1 else "center")
        text.set_verticalalignment("bottom" if y > 1 else "top" if y < -1 else "center")
        text.update_positions(canvas.get_renderer())
        box = _extents(Text.get_window_extent(text).padded(scale))  # without the leader
        leader = here + np.linspace(0, scale, 12)[:, None] * (x, y)
        free = not _overlap(taken, box).any()
        free &= not any(_overlap(others, np.tile(dot, 2)).any() for dot in leader)
        if free and (box[:2] >= room[:2]).all() and (box[2:] <= room[2:]).all():
            if distance < 12 and text.arrow_patch is not None:
                text.arrow_patch.set_visible(False)  # a name this near needs no leader
            return box
    return None


def _overlap(boxes: Array, box: Array) -> NDArray[np.bool_]:
    """Tell which of the boxes (n, 4) meet a box (4,); a point is a box without size."""
    meet: NDArray[np.bool_] = (boxes[:, :2] < box[2:]) & (box[:2] < boxes[:, 2:])
    return np.logical_and(meet[:, 0], meet[:, 1])


def _extents(box: Bbox) -> Array:
    return np.asarray(box.extents, np.float64)
