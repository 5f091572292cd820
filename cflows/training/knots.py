"""Knots of a monotone spline at quantiles: how many there are, held-out values choose."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from cflows.bijectors.monotone import in_bin

__all__ = ["ATOM", "BEYOND", "NORMAL", "Knots", "Law", "likeliest", "log_chi", "log_chi_quantiles"]

BINS = (4, 8, 16, 32, 64, 128, 256, 512, 1024)  # of a spline; held-out rows choose
WORSE = 2  # numbers of bins in a row that make held-out rows less likely: no more are tried
BEYOND = 5  # rows beyond an outer knot
ROWS = 8  # in a bin, on average at least; and different values in each bin
TIED = 1 / 3  # of a bin's rows that may be one value
ATOM = 0.05  # of a column's rows: a value that stands in more has no density
RESOLVED = 1e-5  # between two knots, relative to where they stand

Vector = NDArray[np.float64]
Knots = tuple[Tensor, Tensor, Tensor]
"""Places, values and slopes of a spline, (K,) each, or of several, (C, K)."""


@dataclass(frozen=True)
class Law:
    """The distribution that a spline's values are to have, and its outer slopes."""

    quantile: Callable[[Tensor], Tensor]
    log_density: Callable[[Tensor], Tensor]  # but for a constant
    below: Callable[[Tensor, Tensor, Tensor], Tensor]  # outer value, distances beyond it, slope
    above: Callable[[Tensor, Tensor, Tensor], Tensor]


def likeliest(values: Tensor, held_out: Tensor, law: Law) -> list[Knots | None]:
    """For each column, of splines of more and more knots the one that held-out values prefer.

    Args:
        values: C columns, or lengths of rows, (C, N).
        held_out: likewise, (C, N').
        law: that the spline is to give them.

    Returns:
        None for a column with an atom, or of too few rows.

    """
    ordered, held_out, rows = _sorted(values), _sorted(held_out), values.shape[1]
    best: list[Knots | None] = [None] * len(values)
    if rows <= 2 * BEYOND:
        return best
    highest, worse = [-math.inf] * len(values), [0] * len(values)
    many = int(ATOM * rows)
    left = (ordered[:, many:] > ordered[:, : rows - many]).all(1).nonzero().flatten().tolist()
    outer = -float(torch.special.ndtri(torch.tensor(BEYOND / rows).double()))
    for bins in BINS:
        if bins * ROWS > rows or not left:
            break
        levels = torch.special.ndtr(torch.linspace(-outer, outer, bins + 1).double())
        for columns, kept in _admitted(ordered, levels, left):
            knots = _splines(ordered[columns], kept, law)
            scores = _scores(knots, held_out[columns], law).tolist()
            for column, score, *spline in zip(columns, scores, *knots, strict=True):
                if score > highest[column]:
                    places, heights, slopes = spline
                    best[column], highest[column] = (places, heights, slopes), score
                    worse[column] = 0
                else:
                    worse[column] += 1
        left = [column for column in left if worse[column] < WORSE]
    return best


def _splines(ordered: Tensor, levels: Tensor, law: Law) -> Knots:
    """Places, values and slopes of the splines of some columns, (C, K) each."""
    places = _quantiles(ordered, levels)
    values = law.quantile(levels).expand_as(places)
    slopes = _slopes(places, values)
    below = (places[:, :1] - ordered[:, : BEYOND + 1]).clamp(min=0)
    above = (ordered[:, -BEYOND - 1 :] - places[:, -1:]).clamp(min=0)
    slopes[:, 0] = law.below(values[0, 0], below, slopes[:, 0])
    slopes[:, -1] = law.above(values[0, -1], above, slopes[:, -1])
    return places, values, slopes


def _scores(knots: Knots, ordered: Tensor, law: Law) -> Tensor:
    """Mean log-likelihood of ascending values behind each spline, but for a constant, (C,)."""
    places, _, slopes = knots
    inside = torch.minimum(torch.maximum(ordered, places[:, :1]), places[:, -1:])
    ends = torch.searchsorted(ordered, places[:, 1:-1].contiguous())
    ends = pad(ends, (1, 0))
    ends = pad(ends, (0, 1), value=ordered.shape[1])
    counts = ends.diff().flatten()
    corners = [
        part.flatten().repeat_interleave(counts).view_as(ordered)
        for knot in knots
        for part in (knot[:, :-1], knot[:, 1:])
    ]
    values, log_slope = in_bin(inside, corners, inverse=False)
    beyond = ordered - inside
    values += torch.where(beyond < 0, slopes[:, :1], slopes[:, -1:]) * beyond
    return (law.log_density(values) + log_slope).mean(1)


def _quantiles(ordered: Tensor, levels: Tensor) -> Tensor:
    """Of ascending columns (C, N), on straight lines between the values, (C, K)."""
    rows = ordered.shape[1]
    place = (levels * rows - 0.5).clamp(0, rows - 1)
    low = place.long().clamp(max=rows - 2)
    return torch.lerp(ordered[:, low], ordered[:, low + 1], place - low)


def _admitted(
    ordered: Tensor, levels: Tensor, columns: Sequence[int]
) -> Iterator[tuple[list[int], Tensor]]:
    """Columns, and the levels at which their knots may stand: together where at all of them."""
    some = ordered[columns]
    places = _quantiles(some, levels)
    least = RESOLVED * places.abs()
    far = places.diff() > torch.maximum(least[:, :-1], least[:, 1:])
    differ = pad((some.diff() > 0).cumsum(1), (1, 0)) + 1
    below = pad(differ, (1, 0)).gather(1, torch.searchsorted(some, places))
    thrice = (some[:, 2:] == some[:, :-2]).any(1)
    free = ((far & (below.diff() >= ROWS)).all(1) & ~thrice).tolist()
    if together := [column for column, is_free in zip(columns, free, strict=True) if is_free]:
        yield together, levels
    for row, column in enumerate(columns):
        if not free[row]:
            kept = _apart(some[row].numpy(), places[row].numpy())
            if len(kept) > 2:
                yield [column], levels[kept]


def _apart(ordered: Vector, places: Vector) -> list[int]:
    """Knots with enough different values between two of them; the outermost stay."""
    different, counts = np.unique(ordered, return_counts=True)
    bins = np.searchsorted(different, places)
    least = (RESOLVED * np.abs(places)).tolist()
    # A value that stands twice is no third of eight others.
    thrice = np.append(0, np.cumsum(counts > 2))[bins].tolist()
    at, ends = places.tolist(), bins.tolist()

    def fits(low: int, high: int) -> bool:
        if ends[high] - ends[low] < ROWS or at[high] - at[low] <= max(least[low], least[high]):
            return False
        inside = counts[ends[low] : ends[high]]
        return thrice[high] == thrice[low] or bool(inside.max() <= TIED * inside.sum())

    kept = [0]
    for knot in range(1, len(places)):
        if fits(kept[-1], knot):
            kept.append(knot)
    kept[-1] = len(places) - 1  # the last bin takes what was left over
    return kept


def _sorted(values: Tensor) -> Tensor:
    return torch.from_numpy(np.sort(values.numpy()))  # ten times as fast as torch's


def _slopes(places: Tensor, values: Tensor) -> Tensor:
    """Of a monotone curve: weighted harmonic means of the chords (Fritsch and Butland 1984)."""
    widths = places.diff()
    chords = values.diff() / widths
    one, two = 2 * widths[:, 1:] + widths[:, :-1], widths[:, 1:] + 2 * widths[:, :-1]
    inner = (one + two) / (one / chords[:, :-1] + two / chords[:, 1:])
    return torch.cat([chords[:, :1], inner, chords[:, -1:]], dim=1)


def _normal_tail(value: Tensor, beyond: Tensor, chord: Tensor) -> Tensor:
    """The slope a behind which the values beyond an outer knot are likeliest.

    Of Σ log a - (value + a e)²/2 over their distances e: the root of a² Σe² + a value Σe = n.
    """
    count = (beyond > 0).sum(1)
    first, second = value * beyond.sum(1), beyond.square().sum(1)
    slope = (torch.sqrt(first**2 + 4 * count * second) - first) / (2 * second)
    return torch.where(count > 0, slope, chord)


NORMAL = Law(
    torch.special.ndtri,
    lambda z: -z.square() / 2,
    lambda value, beyond, slope: _normal_tail(-value, beyond, slope),
    _normal_tail,
)


def _chi_tail(value: Tensor, beyond: Tensor, features: int, chord: Tensor) -> Tensor:
    """The power a behind which the lengths beyond the outer knot are likeliest.

    Of Σ log a + D (value + a e) - exp(2 (value + a e))/2, over the logarithms' distances e.
    """
    beyond = beyond[beyond > 0]
    if len(beyond) == 0:
        return chord
    powers = torch.logspace(-2, 1, 301).double()
    lengths = value + powers[:, None] * beyond
    likelihood = powers.log()[:, None] + features * lengths - (2 * lengths).exp() / 2
    return powers[likelihood.sum(1).argmax()]


def log_chi(features: int) -> Law:
    """Of logarithms of lengths: z² D-fold, and slope 1 below the first knot."""
    return Law(
        lambda levels: log_chi_quantiles(levels, features),
        lambda z: features * z - (2 * z).exp() / 2,
        lambda value, beyond, slope: torch.ones_like(slope),
        lambda value, beyond, slope: _chi_tail(value, beyond, features, slope),
    )


def log_chi_quantiles(levels: Tensor, features: int) -> Tensor:
    """Logarithms of the χ distribution's quantiles, by bisection."""
    half = torch.full_like(levels, features / 2)
    low, high = torch.full_like(levels, -50.0), torch.full_like(levels, 25.0)
    for _ in range(60):
        middle = (low + high) / 2
        short = torch.special.gammainc(half, (2 * middle).exp() / 2) < levels
        low, high = torch.where(short, middle, low), torch.where(short, high, middle)
    return (low + high) / 2
