"""What scikit-learn ships: patches of its two photographs, and its handwritten digits.

The patches are a stand-in for BSDS300 that needs no download, by the recipe of Papamakarios et al.
2017, after Uria et al. 2013: x = (grey + u) / 256 with grey the integer value (ITU-R 601 luma) and
u ~ U[0, 1); the patch's mean is subtracted and its last pixel, now minus the sum of the others, is
dropped. DataError where scikit-learn or pillow is not installed.

Patches overlap, so the splits come from separate regions: see ``positions``. Training takes 60,000
positions of stride 1, drawn without replacement; validation and test take every patch of their
grids, in which no pixel is used twice, so that a standard error over rows is not flattered by
copies.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from baselines.harness.data.dataset import DataError, Dataset, Matrix, SplitName
from baselines.harness.data.images import image_set
from baselines.harness.data.pixels import Pixels

__all__ = ["DIGITS", "digits", "patches", "patches4", "positions"]

TRAIN_ROWS = 60_000
DIGITS = Pixels(levels=17, alpha=1e-6)

_PHOTOS, _HEIGHT, _WIDTH = 2, 427, 640
_BAND = 40  # a multiple of 4 and 8, so that patches fill a band, and a divisor of _WIDTH
_HELD_OUT = {"validation": 3, "test": 7}  # band index modulo 8


def patches4(seed: int = 0) -> Dataset:
    """Return 4 x 4 grey patches, D = 15; the seed fixes the training positions and the noise u.

    Example:
        >>> patches4().test.shape
        (4240, 15)

    """
    return _patch_set("patches4", 4, seed)


def patches(seed: int = 0) -> Dataset:
    """Return 8 x 8 grey patches, D = 63 as in BSDS300.

    Example:
        >>> patches().test.shape
        (1060, 63)

    """
    return _patch_set("patches", 8, seed)


def digits(seed: int = 0) -> Dataset:
    """Return scikit-learn's 1,797 digits of 8 x 8 pixels, D = 64, dequantised, on the logit scale.

    A pixel counts 0 to 16 dots, 17 levels; see ``pixels``. A tenth of the digits, drawn at random,
    validates and another tests; the seed fixes the splits and the noise.

    Example:
        >>> digits().sizes
        (1439, 179, 179)

    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError(
            "digits needs scikit-learn; install it with: pip install '.[bench]'"
        ) from error
    pixels = load_digits().data.astype(np.int64)
    drawn = np.random.default_rng([seed, 1]).permutation(pixels)  # image_set has the other stream
    held_out = len(pixels) // 10
    return image_set(
        "digits",
        DIGITS,
        drawn[held_out:],
        drawn[:held_out],
        held_out,
        seed,
        tuple(f"p{i}_{j}" for i in range(8) for j in range(8)),
        "Optical Recognition of Handwritten Digits, test set, Alpaydin and Kaynak, UCI 80; "
        "sklearn.datasets.load_digits",
        "CC BY 4.0",
    )


def _patch_set(name: str, side: int, seed: int) -> Dataset:
    grey = _photographs(name)
    draw, *noise = (np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(4))
    drawn = draw.choice(positions("train", side), TRAIN_ROWS, replace=False)
    corners = (drawn, positions("validation", side), positions("test", side))
    train, validation, test = (
        _patches(grey, at, rng, side) for at, rng in zip(corners, noise, strict=True)
    )
    return Dataset(
        name,
        train,
        validation,
        test,
        columns=tuple(f"p{i}" for i in range(side**2 - 1)),
        source="china.jpg and flower.jpg, sklearn.datasets.load_sample_images; retrieved from "
        "https://www.flickr.com/photos/danielbuechele/6061409035/ and "
        "https://www.flickr.com/photos/vultilion/6056698931/ by Robert Layton in 2011",
        licence="CC BY 2.0, https://creativecommons.org/licenses/by/2.0/; for both photographs "
        'scikit-learn states "Some rights reserved by danielbuechele" (flower.jpg is linked to '
        "the page of vultilion)",
        kind="image",
    )


def positions(split: SplitName, side: int = 4) -> npt.NDArray[np.int64]:
    """Return all positions a split may use, shape (M, 3): photograph, top row, left column.

    Each photograph is cut into 16 vertical bands of 40 pixels. Band i belongs to validation if
    i mod 8 = 3, to test if i mod 8 = 7, else to training, and a patch lies inside one band; hence
    no pixel is seen by two splits. Training has stride 1, the others that of the patch's side, 4 or
    8.

    Example:
        >>> positions("train").shape, positions("test").shape
        ((376512, 3), (4240, 3))

    """
    stride = 1 if split == "train" else side
    left = np.arange(0, _WIDTH, stride)
    band = left // _BAND % 8
    held_out = list(_HELD_OUT.values())
    ours = ~np.isin(band, held_out) if split == "train" else band == _HELD_OUT[split]
    inside = left % _BAND <= _BAND - side
    top = np.arange(0, _HEIGHT - side + 1, stride)
    grid = np.meshgrid(np.arange(_PHOTOS), top, left[ours & inside], indexing="ij")
    return np.stack(grid, axis=-1).reshape(-1, 3)


def _photographs(name: str) -> npt.NDArray[np.int64]:
    try:
        from sklearn.datasets import load_sample_images

        photographs = load_sample_images().images
    except ImportError as error:
        raise DataError(
            f"{name} needs the photographs of scikit-learn, and pillow to read them; "
            "install both with: pip install '.[bench]'"
        ) from error
    # In integers, so that rounding cannot differ between machines.
    rgb = np.stack(photographs).astype(np.int64)
    grey: npt.NDArray[np.int64] = (rgb @ np.array([299, 587, 114]) + 500) // 1000
    return grey


def _patches(
    grey: npt.NDArray[np.int64], at: npt.NDArray[np.int64], rng: np.random.Generator, side: int
) -> Matrix:
    windows = np.lib.stride_tricks.sliding_window_view(grey, (side, side), axis=(1, 2))
    pixels = windows[tuple(at.T)].reshape(len(at), -1)
    x = (pixels + rng.random(pixels.shape)) / 256
    x -= x.mean(axis=1, keepdims=True)
    return np.ascontiguousarray(x[:, :-1])
