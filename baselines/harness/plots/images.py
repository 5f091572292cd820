"""The picture of a set of images: some of the data, and some that each model drew."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from baselines.harness.plots import style
from baselines.harness.results.aggregate import name_of
from baselines.models.builtin import image_shape
from baselines.models.model import ModelError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["sheets"]

ACROSS = 4  # images in a row of a sheet
GAP = 1  # pixels between two images


def sheets(drawn: Sequence[tuple[Any, npt.NDArray[Any]]], width: int = 4) -> Figure | None:
    """Return a sheet of images for each setting, as many abreast as ``width``; None of no images.

    Args:
        drawn: each setting, or "Data", with its images as whole numbers, (N, D).
        width: sheets abreast.

    """
    if not drawn:
        return None
    try:
        shape = image_shape(drawn[0][1].shape[1])
    except ModelError:  # of another shape than a square
        return None
    across = min(width, len(drawn))
    top = max(int(images.max()) for _, images in drawn)
    with style.drawing():
        figure, grid = style.grid_of(math.ceil(len(drawn) / across), across, 2.2, 2.3, tight=True)
        for axes in grid.flat[len(drawn) :]:
            axes.remove()
        for axes, (setting, images) in zip(grid.flat, drawn, strict=False):
            title = setting if isinstance(setting, str) else name_of(setting, 22)
            axes.imshow(_sheet(images, shape, top), cmap="gray", vmin=0, vmax=1)
            axes.set_title(title, fontsize=9, fontweight="normal")
            axes.set_axis_off()
    return figure


def _sheet(
    images: npt.NDArray[Any], shape: tuple[int, int, int], top: int
) -> npt.NDArray[np.float64]:
    """(N, D) -> (height, width), or (height, width, 3), white between the images."""
    channels, height, width = shape
    down = math.ceil(len(images) / ACROSS)
    sheet = np.ones((down * (height + GAP) - GAP, ACROSS * (width + GAP) - GAP, channels))
    for place, image in enumerate(images):
        y, x = (height + GAP) * (place // ACROSS), (width + GAP) * (place % ACROSS)
        pixels = image.reshape(shape).transpose(1, 2, 0) / max(top, 1)
        sheet[y : y + height, x : x + width] = pixels
    return sheet[..., 0] if channels == 1 else sheet
