"""Intervals of mean differences: two models scored on the same rows, point by point.

The rows are drawn again with replacement, and both models with them (Efron 1987, "Better Bootstrap
Confidence Intervals", BCa). scipy's ``bootstrap`` is the judge of it in the tests; this one draws
all differences of a data set at once and has the mean's jackknife in closed form, where scipy's
builds N vectors of N - 1 values for each difference.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Interval", "intervals", "mean_and_error", "over_seeds"]

Array = NDArray[np.float64]

RESAMPLES = 2000
MOST_ROWS = 5000
_CHUNK = 2**22  # weights held at a time


class Interval(NamedTuple):
    """A mean and the ends of its interval, nan where a value is not finite."""

    mean: float
    low: float
    high: float


def intervals(
    differences: Array, *, level: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> list[Interval]:
    """BCa bootstrap intervals of mean differences, one a row of (P, N).

    Beyond ``MOST_ROWS`` rows, as many random groups of rows are drawn in place of single ones: the
    mean of a group varies as its rows say, and the interval is that of the mean of all.

    Args:
        differences: log p of one model less log p of another, for P pairs on the same N rows. The
            same draws serve all pairs.
        level: of coverage.
        resamples: draws.
        seed: of the draws.

    """
    values = np.atleast_2d(np.asarray(differences, np.float64))
    sound = np.isfinite(values).all(axis=1) & (values.shape[1] > 1)
    with np.errstate(invalid="ignore"):
        means = values.mean(axis=1) if values.shape[1] else np.full(len(values), math.nan)
    ends = np.full((len(means), 2), math.nan)
    if sound.any():
        rng = np.random.default_rng(seed)
        sums, sizes = _grouped(values[sound] - means[sound, None], rng)
        drawn = _drawn_means(sums, sizes, resamples, rng)
        ends[sound] = means[sound, None] + _bca_ends(drawn, _acceleration(sums), level)
    return [Interval(*triple) for triple in np.column_stack([means, ends]).tolist()]


def mean_and_error(values: Array) -> tuple[float, float]:
    """Mean and two standard errors over points; the error of fewer than two is not known."""
    if values.size < 2:
        return (float(values[0]) if values.size else math.nan), math.nan
    with np.errstate(invalid="ignore"):
        return float(values.mean()), float(2 * values.std(ddof=1) / math.sqrt(values.size))


def over_seeds(first: Array, second: Array) -> float | None:
    """Two standard errors, over seeds, of the difference of two models' mean log-likelihoods.

    The seeds of two models have nothing in common (Welch: 2 √(s₁²/n₁ + s₂²/n₂)); a model of one
    cell because it has nothing random, a closed form, is told by one value and counts as exact.

    Args:
        first: one mean a seed.
        second: likewise.

    Returns:
        None where neither has two seeds, or a value is not finite.

    """
    parts = [np.asarray(part, np.float64) for part in (first, second)]
    several = [part for part in parts if part.size > 1]
    if not several or not all(np.isfinite(part).all() for part in parts):
        return None
    return 2 * math.sqrt(sum(float(part.var(ddof=1)) / part.size for part in several))


def _grouped(centred: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """Sums and sizes of what is drawn: single rows, or random groups of them: (P, G) and (G,)."""
    rows = centred.shape[1]
    if rows <= MOST_ROWS:
        return centred, np.ones(rows)
    edges = np.linspace(0, rows, MOST_ROWS + 1).astype(np.int64)
    shuffled = centred[:, rng.permutation(rows)]
    return np.add.reduceat(shuffled, edges[:-1], axis=1), np.diff(edges).astype(np.float64)


def _drawn_means(sums: Array, sizes: Array, resamples: int, rng: np.random.Generator) -> Array:
    """Means of so many draws with replacement, (P, resamples)."""
    groups = len(sizes)
    parts, step = [], max(1, _CHUNK // groups)
    for first in range(0, resamples, step):
        count = min(step, resamples - first)
        # How often each group is drawn: one bincount for all draws of this chunk.
        drawn = rng.integers(groups, size=(count, groups))
        drawn += groups * np.arange(count)[:, None]
        weights = np.bincount(drawn.ravel(), minlength=count * groups).reshape(count, groups)
        parts.append((sums @ weights.T.astype(np.float64)) / (weights @ sizes))
    return np.concatenate(parts, axis=1)


def _acceleration(sums: Array) -> Array:
    """Efron's a, from the jackknife of a mean: Σd³ / 6 (Σd²)^1.5, d the deviations."""
    deviations = sums - sums.mean(axis=1, keepdims=True)
    squares = (deviations**2).sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        skewness: Array = (deviations**3).sum(axis=1) / (6 * squares**1.5)
    return np.nan_to_num(skewness, nan=0.0)


def _bca_ends(drawn: Array, acceleration: Array, level: float) -> Array:
    """Quantiles of the drawn means about zero, moved for bias and skewness: (P, 2)."""
    normal, resamples = NormalDist(), drawn.shape[1]
    below = ((drawn < 0).sum(axis=1) + (drawn <= 0).sum(axis=1)) / (2 * resamples)
    ends = []
    for row, share, a in zip(drawn, below, acceleration, strict=True):
        bias = normal.inv_cdf(float(np.clip(share, 0.5 / resamples, 1 - 0.5 / resamples)))
        levels = []
        for tail in ((1 - level) / 2, (1 + level) / 2):
            z = bias + normal.inv_cdf(tail)
            levels.append(normal.cdf(bias + z / (1 - float(a) * z)))
        ends.append(np.quantile(row, levels))
    return np.array(ends)
