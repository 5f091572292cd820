"""Small patches of natural images, from the two photographs that scikit-learn ships.

A stand-in for BSDS300 that needs no download: the same preparation, on 4 x 4 patches.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

from .dataset import DataError, Dataset, Matrix

__all__ = ["TRAIN_ROWS", "patches4", "positions"]

TRAIN_ROWS = 60_000

_PHOTOS, _HEIGHT, _WIDTH = 2, 427, 640
_SIDE = 4
_BAND = 40  # a multiple of _SIDE, so that the grid of patches fills a band, and a divisor of _WIDTH
_HELD_OUT = {"validation": 3, "test": 7}  # band index modulo 8


def patches4(seed: int = 0) -> Dataset:
    """Return 4 x 4 grey patches with their mean removed, D = 15 (columns p0 to p14).

    The recipe is that of BSDS300 in Papamakarios et al. (2017), after Uria et al. (2013):
    x = (grey + u) / 256 with grey the integer value (ITU-R 601 luma) and u ~ U[0, 1); the
    patch's mean is subtracted and its last pixel, now minus the sum of the others, is dropped.

    Patches overlap, so the splits come from separate regions: see ``positions``. Training takes
    60,000 positions of stride 1, drawn without replacement; validation and test take every patch of
    their grids, in which no pixel is used twice, so that a standard error over rows is not
    flattered by copies.

    Args:
        seed: fixes the training positions and the noise u.

    Raises:
        DataError: scikit-learn or pillow is not installed.

    Example:
        >>> patches4().test.shape
        (4240, 15)

    """
    grey = _photographs()
    draw, *noise = (np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(4))
    drawn = draw.choice(positions("train"), TRAIN_ROWS, replace=False)
    places = (drawn, positions("validation"), positions("test"))
    train, validation, test = (
        _patches(grey, at, rng) for at, rng in zip(places, noise, strict=True)
    )
    return Dataset(
        "patches4",
        train,
        validation,
        test,
        columns=tuple(f"p{i}" for i in range(_SIDE**2 - 1)),
        source="china.jpg and flower.jpg, sklearn.datasets.load_sample_images; retrieved from "
        "https://www.flickr.com/photos/danielbuechele/6061409035/ and "
        "https://www.flickr.com/photos/vultilion/6056698931/ by Robert Layton in 2011",
        licence="CC BY 2.0, https://creativecommons.org/licenses/by/2.0/; for both photographs "
        'scikit-learn states "Some rights reserved by danielbuechele" (flower.jpg is linked to '
        "the page of vultilion)",
        kind="image",
    )


def positions(split: Literal["train", "validation", "test"]) -> npt.NDArray[np.int64]:
    """Return all positions a split may use, shape (M, 3): photograph, top row, left column.

    Each photograph is cut into 16 vertical bands of 40 pixels. Band i belongs to validation if
    i mod 8 = 3, to test if i mod 8 = 7, else to training, and a patch lies inside one band; hence
    no pixel is seen by two splits. Training has stride 1, the others stride 4.

    Example:
        >>> positions("train").shape, positions("test").shape
        ((376512, 3), (4240, 3))

    """
    stride = 1 if split == "train" else _SIDE
    left = np.arange(0, _WIDTH, stride)
    band = left // _BAND % 8
    held_out = list(_HELD_OUT.values())
    ours = ~np.isin(band, held_out) if split == "train" else band == _HELD_OUT[split]
    inside = left % _BAND <= _BAND - _SIDE
    top = np.arange(0, _HEIGHT - _SIDE + 1, stride)
    grid = np.meshgrid(np.arange(_PHOTOS), top, left[ours & inside], indexing="ij")
    return np.stack(grid, axis=-1).reshape(-1, 3)


def _photographs() -> npt.NDArray[np.int64]:
    try:
        from sklearn.datasets import load_sample_images

        photographs = load_sample_images().images
    except ImportError as error:
        raise DataError(
            "patches4 needs the photographs of scikit-learn, and pillow to read them; "
            "install both with: pip install '.[bench]'"
        ) from error
    # In integers, so that rounding cannot differ between machines.
    rgb = np.stack(photographs).astype(np.int64)
    grey: npt.NDArray[np.int64] = (rgb @ np.array([299, 587, 114]) + 500) // 1000
    return grey


def _patches(
    grey: npt.NDArray[np.int64], at: npt.NDArray[np.int64], rng: np.random.Generator
) -> Matrix:
    windows = np.lib.stride_tricks.sliding_window_view(grey, (_SIDE, _SIDE), axis=(1, 2))
    pixels = windows[tuple(at.T)].reshape(len(at), -1)
    x = (pixels + rng.random(pixels.shape)) / 256
    x -= x.mean(axis=1, keepdims=True)
    return np.ascontiguousarray(x[:, :-1])
