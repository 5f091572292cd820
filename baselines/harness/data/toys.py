"""The eight two-dimensional toys of FFJORD's experiments (Grathwohl et al., 2019).

The densities are those of ``lib/toy_data.py`` in the paper's repository, rtqichen/ffjord. Three
things differ from that file, none of them a density. Every draw comes from one generator, where it
mixes a seeded one with the global one. Rows are independent, where it puts equal counts on each
component and even steps on each circle. Any number of rows can be had, where it rounds some toys
down to a multiple of their components.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np

from baselines.harness.data.dataset import DataError, Dataset, Matrix
from cflows.core.arguments import Array

__all__ = ["LICENCE", "SIZES", "SOURCE", "TOYS", "dataset", "toy"]

SIZES = (50_000, 5_000, 10_000)  # training, validation, test
SOURCE = "drawn here by the recipe of Grathwohl et al. 2019 (rtqichen/ffjord)"
LICENCE = "none needed: synthetic"


def toy(name: str, n: int, seed: int | np.random.SeedSequence = 0) -> Matrix:
    """Draw n independent rows of a toy, shape (n, 2).

    Args:
        name: a key of ``TOYS``.
        n: the number of rows, 0 or more.
        seed: the same seed gives the same bits.

    Raises:
        DataError: an unknown name.

    Example:
        >>> toy("moons", 3, seed=0).shape
        (3, 2)

    """
    if name not in TOYS:
        raise DataError(f"no toy is called {name!r}; the toys are {', '.join(TOYS)}")
    return TOYS[name](n, np.random.default_rng(seed))


def dataset(name: str, seed: int = 0) -> Dataset:
    """Return a toy as three splits of ``SIZES`` rows, each from a random stream of its own.

    Example:
        >>> dataset("rings").test.shape
        (10000, 2)

    """
    parts = splits(partial(toy, name), seed)
    return Dataset(name, *parts, ("x0", "x1"), SOURCE, LICENCE, "toy")


def splits(
    draw: Callable[[int, np.random.SeedSequence], Matrix], seed: int
) -> tuple[Matrix, Matrix, Matrix]:
    """What is drawn in three splits of ``SIZES`` rows, each from a random stream of its own."""
    train, validation, test = map(draw, SIZES, np.random.SeedSequence(seed).spawn(len(SIZES)))
    return train, validation, test


def _gaussians(n: int, rng: np.random.Generator) -> Matrix:
    centre = 4 * _unit(np.pi / 4 * rng.integers(8, size=n))
    return (centre + rng.normal(scale=0.5, size=(n, 2))) / 1.414


def _spirals(n: int, rng: np.random.Generator) -> Matrix:
    t = 3 * np.pi * np.sqrt(rng.random(n))
    arm = t[:, None] * _unit(np.pi - t) + rng.uniform(0, 0.5, (n, 2))
    return rng.choice((-1, 1), (n, 1)) * arm / 3 + rng.normal(scale=0.1, size=(n, 2))


def _checkerboard(n: int, rng: np.random.Generator) -> Matrix:
    x = rng.uniform(-2, 2, n)
    y = rng.random(n) - 2 * rng.integers(2, size=n) + np.floor(x) % 2
    return 2 * np.column_stack((x, y))


def _circles(n: int, rng: np.random.Generator) -> Matrix:
    # Uniform angles: scikit-learn's even steps have the same density, but dependent rows.
    circle = rng.choice((0.5, 1.0), (n, 1)) * _unit(rng.uniform(0, 2 * np.pi, n))
    return 3 * (circle + rng.normal(scale=0.08, size=(n, 2)))


def _moons(n: int, rng: np.random.Generator) -> Matrix:
    upper = _unit(rng.uniform(0, np.pi, n))
    moon = np.where(rng.random((n, 1)) < 0.5, upper, (1.0, 0.5) - upper)
    return 2 * (moon + rng.normal(scale=0.1, size=(n, 2))) + (-1.0, -0.2)


def _pinwheel(n: int, rng: np.random.Generator) -> Matrix:
    along, across = rng.normal((1.0, 0.0), (0.3, 0.1), (n, 2)).T
    angle = 2 * np.pi / 5 * rng.integers(5, size=n) + 0.25 * np.exp(along)
    # The original multiplies row vectors by the rotation matrix, which turns them clockwise.
    z = 2 * (along + 1j * across) * np.exp(-1j * angle)
    return np.column_stack((z.real, z.imag))


def _rings(n: int, rng: np.random.Generator) -> Matrix:
    ring = rng.integers(1, 5, (n, 1)) / 4 * _unit(rng.uniform(0, 2 * np.pi, n))
    return 3 * ring + rng.normal(scale=0.08, size=(n, 2))


def _swissroll(n: int, rng: np.random.Generator) -> Matrix:
    t = rng.uniform(1.5 * np.pi, 4.5 * np.pi, n)
    return (t[:, None] * _unit(t) + rng.normal(size=(n, 2))) / 5


def _unit(angle: Array) -> Matrix:
    return np.column_stack((np.cos(angle), np.sin(angle)))


TOYS: Mapping[str, Callable[[int, np.random.Generator], Matrix]] = {
    "8gaussians": _gaussians,
    "2spirals": _spirals,
    "checkerboard": _checkerboard,
    "circles": _circles,
    "moons": _moons,
    "pinwheel": _pinwheel,
    "rings": _rings,
    "swissroll": _swissroll,
}
