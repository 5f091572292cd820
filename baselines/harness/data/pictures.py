"""A picture as a density in the plane, as the FFJORD repository offers (``train_img2d.py``)."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from baselines.harness.data.dataset import DataError, Dataset, Matrix
from baselines.harness.data.toys import splits

__all__ = ["SUFFIXES", "draw", "is_supported", "read"]

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")
HALF = 4.0  # the longer side reaches from -4 to 4


def read(path: str | Path, *, seed: int = 0, ink: Literal["dark", "bright"] = "dark") -> Dataset:
    """Draw points of a picture: a pixel by its darkness, then a place in it, uniformly.

    The longer side spans [-4, 4], the other one keeps the picture's proportions, y points up. What
    is transparent counts as white paper.

    Args:
        path: an image file.
        seed: of the points.
        ink: whether dark or bright pixels are probable.

    Raises:
        DataError: no such file, no image, one of a single shade, or pillow is not installed.

    """
    weights = _ink(Path(path), ink)
    return Dataset(
        Path(path).name,
        *splits(lambda n, stream: draw(weights, n, np.random.default_rng(stream)), seed),
        columns=("x", "y"),
        source=str(path),
        licence="not stated: the user's own file",
        kind="file",
    )


def draw(weights: Matrix, n: int, rng: np.random.Generator) -> Matrix:
    """Draw n points of a picture whose pixels have these weights, (height, width) -> (n, 2).

    Example:
        >>> left = np.array([[1.0, 0.0], [1.0, 0.0]])
        >>> points = draw(left, 1000, np.random.default_rng(0))
        >>> bool((points[:, 0] < 0).all()), bool((np.abs(points) <= 4).all())
        (True, True)

    """
    height, width = weights.shape
    cumulative = np.cumsum(weights)
    chosen = np.searchsorted(cumulative, rng.random(n) * cumulative[-1], side="right")
    row, column = np.divmod(chosen, width)
    pixels = np.column_stack([column, row]) + rng.random((n, 2))
    points: Matrix = (pixels - (width / 2, height / 2)) * (2 * HALF / max(height, width))
    return points * (1, -1)


def is_supported(path: str | Path) -> bool:
    """Return whether the suffix, in either case, is that of an image."""
    return Path(path).suffix.lower() in SUFFIXES


def _ink(path: Path, ink: Literal["dark", "bright"]) -> Matrix:
    if not path.is_file():
        raise DataError(f"{path}: file not found; check the path, relative to {Path.cwd()}")
    try:
        from PIL import Image
    except ImportError as error:
        raise DataError(
            f"{path}: reading an image needs pillow; install it with: pip install '.[bench]'"
        ) from error
    try:
        with Image.open(path) as image:
            grey: npt.NDArray[np.float64]
            if image.mode[0] in "IF":  # one channel of more than 8 bits, which convert would clip
                grey = np.asarray(image, np.float64)
            else:
                paper = Image.new("RGBA", image.size, "white")
                paper.alpha_composite(image.convert("RGBA"))
                grey = np.asarray(paper.convert("L"), np.float64)
    except Exception as error:  # pillow lets out what its decoders raise
        raise DataError(f"{path}: no image that pillow can read") from error
    if not np.isfinite(grey).all():
        raise DataError(f"{path}: has pixels that are not finite; fill them in")
    weights: Matrix = grey.max() - grey if ink == "dark" else grey - grey.min()
    if not weights.any():
        raise DataError(f"{path}: all pixels are of one shade; give a picture with two at least")
    return weights
