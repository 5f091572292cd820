"""Columns whose values lie on a grid, or repeat: how to find them, and noise that fills the steps.

A density of values on a grid has no upper bound: a flow that is trained on them finds spikes, and
its log-likelihood says how narrow they are. Uniform noise of a step's width gives the values a
density whose integral over a step is the probability of the value (Uria et al. 2013, section 5).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from baselines.harness.data.dataset import Matrix
from cflows.core.arguments import listed

__all__ = ["EXAMINED", "Repeats", "Width", "notes", "repeats_of", "uniform", "widths"]

EXAMINED = 100_000  # rows that are looked at, evenly spaced
DISTINCT = 0.95  # of the values, below which a column repeats itself
# Chance makes one value in twenty repeat on a grid where its neighbours are about ten steps away.
NEAR = 20  # steps
# Rounded readings of a coarse device keep one distance; random distances vary five-fold.
EVEN = 2  # between the quartiles of distances
COARSE = 1000  # steps in the range of a column, up to which they are its grid, however filled
FEW, COARSE_FOR_FEW = 10, 100_000  # likewise of a column of ten values or fewer: levels, codes
SPIKE = 0.01  # of the rows, at one value
SPIKE_OVER = 10  # times the rows of a usual value
SPIKE_OVER_STEP = 100  # times the rows of a step nearby
NEARBY = 10  # distinct values on either side

Width: TypeAlias = float | Literal["auto"]
Vector: TypeAlias = npt.NDArray[np.float64]
Counts: TypeAlias = npt.NDArray[np.intp]
Bits: TypeAlias = npt.NDArray[np.uint64]


class Repeats(NamedTuple):
    """How the values of a column repeat; false where they do not.

    Attributes:
        step: of the grid that they lie on, 0 where there is none.
        spikes: single values with far more rows than there are around them, and how many; the most
            frequent first.
        apart: whether further values repeat which are so far from their neighbours that the digits
            they were written with do not explain it.

    """

    step: float = 0.0
    spikes: tuple[tuple[float, int], ...] = ()
    apart: bool = False

    def __bool__(self) -> bool:
        return self != Repeats()


def repeats_of(values: Matrix) -> list[Repeats]:
    """Say of each column (N, D) what grid its values lie on, and which of them repeat on none.

    Beside single values with many rows, only columns in which values repeat count, less than 95
    distinct ones in 100: a few decimals that are cut off are no matter. All that was written with
    decimals has a common step. It is a grid where the values that repeat have neighbours within a
    few steps, or where it is no less than a thousandth of the range.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> x = rng.normal(size=1000)
        >>> table = np.column_stack([x, x.round(1), np.floor(9 * x) + 0.5, np.maximum(x, 0)])
        >>> [column.step for column in repeats_of(table.round(9))]
        [0.0, 0.1, 1.0, 0.0]
        >>> repeats_of(table)[3].spikes
        ((0.0, 534),)

    """
    return [_repeats(column) for column in values.T]


def widths(repeats: Sequence[Repeats], width: Width) -> Vector:
    """How wide each column's noise is, (D,): its own step, or this width; 0 for none."""
    return np.array([c.step if width == "auto" else width * bool(c) for c in repeats])


def uniform(rows: npt.NDArray[np.int64], columns: int, seed: int) -> Matrix:
    """Draws from U[0, 1), (N, D), each a function of its row's number, its column and the seed.

    SplitMix64 (Steele, Lea and Flood 2014) at place row D + column of its stream: the noise of a
    row is the same however rows are read.

    Example:
        >>> whole, row = uniform(np.arange(5), 2, seed=0), uniform(np.array([3]), 2, seed=0)
        >>> np.array_equal(whole[3:4], row)
        True

    """
    start = _mixed(np.array([seed], np.uint64) + np.uint64(1))
    at = rows.astype(np.uint64)[:, None] * np.uint64(columns) + np.arange(columns, dtype=np.uint64)
    at *= np.uint64(0x9E3779B97F4A7C15)
    return (_mixed(np.add(start, at)) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def notes(
    source: str,
    columns: Sequence[str],
    values: Matrix,
    repeats: Sequence[Repeats],
    dequantise: Width | None = None,
) -> tuple[str, ...]:
    """What is to be warned of, a line each: grids, single values, copies of rows and of columns.

    Args:
        source: the file, for the messages.
        columns: D names.
        values: the rows that were looked at, (N, D).
        repeats: what ``repeats_of`` said of them.
        dequantise: noise that columns have: a step's leaves what repeats on none.

    """
    lines = []
    named = list(zip(columns, repeats, strict=True)) if dequantise in (None, "auto") else []
    grids = [f"{name!r} ({column.step:g})" for name, column in named if column.step]
    if grids and dequantise is None:
        lines.append(
            f"quantised columns, with their steps: {listed(grids, 5)}; their density has no upper "
            "bound: --dequantise adds noise of a step's width"
        )
    spikes = [_spiked(name, column.spikes, len(values)) for name, column in named if column.spikes]
    if spikes:
        lines.append(
            f"{listed(spikes, 5)}; a density has no upper bound there: --dequantise WIDTH adds "
            "noise of that width, or drop such rows or the column"
        )
    apart = [j for j, column in enumerate(repeats) if column.apart and named]
    distinct = np.unique(values, axis=0) if apart and values.shape[1] > 1 else values
    copies = len(values) - len(distinct)
    if copies and not any(column.apart for column in repeats_of(distinct[:, apart])):
        lines.append(
            f"{copies:,} of {len(values):,} rows are copies of others; their density has no upper "
            "bound, and rows to test are among those to train: drop the copies"
        )
    elif apart:
        lines.append(
            "columns that repeat values far from their neighbours: "
            f"{listed([repr(columns[j]) for j in apart], 5)}; their density has no upper bound: "
            "--dequantise WIDTH adds noise of that width, or drop them"
        )
    equal = [f"{columns[j]!r} of {columns[i]!r}" for i, j in _duplicates(values)]
    if equal:
        lines.append(
            f"columns that are copies: {listed(equal, 5)}; rows on a line have no density: drop "
            "the copies"
        )
    return tuple(f"{source}: {line}" for line in lines)


def _spiked(name: str, spikes: Sequence[tuple[float, int]], rows: int) -> str:
    (value, count), *others = spikes
    more = [f"{count:,} exactly {value:.6g}" for value, count in others]
    behind = f" ({listed(more, 2)})" if more else ""
    return f"{count:,} of {rows:,} rows of {name!r} are exactly {value:.6g}{behind}"


def _repeats(values: Vector) -> Repeats:
    distinct, counts = np.unique(values, return_counts=True)
    if len(distinct) < 2 or (_varied(counts) and counts.max() < SPIKE * len(values)):
        return Repeats()
    spiked = _spiked_places(distinct, counts)
    order = np.argsort(-counts[spiked], kind="stable")
    values, rows = distinct[spiked][order].tolist(), counts[spiked][order].tolist()
    spikes = tuple(zip(values, rows, strict=True))
    distinct, counts = distinct[~spiked], counts[~spiked]
    if len(distinct) < 2 or _varied(counts):
        return Repeats(spikes=spikes)
    step = _step(distinct)
    if _coarse(distinct, step) or _neighbourly(distinct, counts, step):
        return Repeats(step, spikes)
    return Repeats(0.0, spikes, apart=True)


def _varied(counts: Counts) -> bool:
    return len(counts) >= DISTINCT * int(counts.sum())


def _spiked_places(distinct: Vector, counts: Counts) -> npt.NDArray[np.bool_]:
    """Which values have so many rows that neither others nor the steps around explain them."""
    many: npt.NDArray[np.bool_] = counts >= max(
        5, SPIKE * counts.sum(), SPIKE_OVER * float(np.median(counts))
    )
    step = _step(distinct) if many.any() else 0.0
    if not step:
        return many
    if _coarse(distinct, step):
        return np.zeros_like(many)
    for i in np.flatnonzero(many):
        near = slice(max(0, i - NEARBY), i + NEARBY + 1)
        rows = counts[near].sum() - counts[i]
        many[i] = counts[i] * np.ptp(distinct[near]) > SPIKE_OVER_STEP * rows * step
    return many


def _coarse(distinct: Vector, step: float) -> bool:
    most = COARSE_FOR_FEW if len(distinct) <= FEW else COARSE
    return bool(step > 0 and distinct[-1] / step - distinct[0] / step <= most)


def _neighbourly(distinct: Vector, counts: Counts, step: float) -> bool:
    """Whether values that repeat have neighbours within a few steps, or at an even distance."""
    gaps = np.concatenate([[np.inf], np.diff(distinct), [np.inf]])
    nearest = np.minimum(gaps[1:], gaps[:-1])[counts > 1]
    quarter, middle, three_quarters = np.quantile(nearest, [0.25, 0.5, 0.75]).tolist()
    even: bool = middle <= COARSE * step and three_quarters <= EVEN * quarter
    near: bool = middle <= NEAR * step
    return even or near


def _step(distinct: Vector) -> float:
    """The common step of ascending values, that of the digits they were written with or 0."""
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows lies on no grid
        return _spacing(distinct) or _decimal(distinct) or 0.0


def _spacing(distinct: Vector) -> float | None:
    """The least difference, where all differences are multiples of it."""
    differences = np.diff(distinct)
    error = 4 * _rounding(distinct) * np.abs(distinct).max()
    least = differences.min()
    if not 16 * error <= least < np.inf:
        return None
    counts = np.round(differences / least)
    step = float(differences.sum() / counts.sum())
    for candidate in (float(f"{step:.3g}"), step):
        nearest = distinct[0] + candidate * np.round((distinct - distinct[0]) / candidate)
        if (np.abs(distinct - nearest) <= error).all():
            return candidate
    return None


def _decimal(distinct: Vector) -> float | None:
    """The largest of ..., 10, 5, 2, 1, 0.5, ... of which all values are multiples."""
    rounding = _rounding(distinct)
    exponent = math.floor(math.log10(min(float(np.ptp(distinct)), 1e308)))
    steps = (float(f"{digit}e{e}") for e in range(exponent, -300, -1) for digit in (5, 2, 1))
    for step in steps:
        if step < 2 * rounding * np.abs(distinct).max():
            break
        for part in (distinct[:50], distinct):  # most steps fail early
            nearest = np.round(part / step) * step
            if rounding > 1e-10:  # stored as float32
                off = nearest.astype(np.float32) != part.astype(np.float32)
            else:
                off = ~(np.abs(nearest - part) <= 4 * rounding * np.abs(part))
            if off.any():
                break
        else:
            return step
    return None


def _rounding(values: Vector) -> float:
    """Relative spacing of the numbers that these were stored in: float32, or float64."""
    with np.errstate(over="ignore"):
        single = (values.astype(np.float32) == values).all() and (values != np.round(values)).any()
    return float(np.finfo(np.float32 if single else np.float64).eps)


def _duplicates(values: Matrix) -> list[tuple[int, int]]:
    """Pairs of columns, each with the first that it equals."""
    first: dict[bytes, int] = {}
    pairs = [(first.setdefault(c.tobytes(), j), j) for j, c in enumerate(values.T)]
    return [(i, j) for i, j in pairs if i != j]


def _mixed(state: Bits) -> Bits:
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: Bits = state ^ (state >> np.uint64(31))
    return mixed
