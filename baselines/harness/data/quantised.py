"""Columns whose values lie on a grid, or repeat: how to find them, and noise that fills the steps.

A density of values on a grid has no upper bound: a flow that is trained on them finds spikes, and
its log-likelihood says how narrow they are. Uniform noise of a step's width gives the values a
density whose integral over a step is the probability of the value (Uria et al. 2013, section 5).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from .dataset import Matrix, listed

__all__ = ["EXAMINED", "Width", "notes", "steps_of", "uniform", "widths"]

EXAMINED = 100_000  # rows that are looked at, evenly spaced
DISTINCT = 0.95  # of the values, below which a column repeats itself

Width: TypeAlias = float | Literal["auto"]
Vector: TypeAlias = npt.NDArray[np.float64]
Bits: TypeAlias = npt.NDArray[np.uint64]


def steps_of(values: Matrix) -> list[float | None]:
    """Say of each column (N, D) what step its values keep, 0 where they repeat without; else None.

    Only columns in which values repeat count, less than 95 distinct ones in 100: a few decimals
    that are cut off are no matter.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> x = rng.normal(size=1000)
        >>> steps_of(np.column_stack([x, x.round(1), np.floor(9 * x) + 0.5, np.maximum(x, 0)]))
        [None, 0.1, 1.0, 0.0]

    """
    return [_step(column) for column in values.T]


def widths(steps: Sequence[float | None], width: Width) -> Vector:
    """How wide each column's noise is, (D,): its own step, or the given one; 0 for none."""
    given = 0.0 if width == "auto" else width
    return np.array([0.0 if step is None else given or step for step in steps])


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
    place: str, columns: Sequence[str], values: Matrix, steps: Sequence[float | None]
) -> tuple[str, ...]:
    """What is to be warned of, a line each: quantised, repeating and duplicate columns.

    Args:
        place: the file, for the messages.
        columns: D names.
        values: the rows that were looked at, (N, D).
        steps: what ``steps_of`` said of them, None for columns that have noise already.

    """
    found = []
    grids = [f"{name!r} ({s:g})" for name, s in zip(columns, steps, strict=True) if s]
    if grids:
        found.append(
            f"{place}: quantised columns, with their steps: {listed(grids, 5)}; their density has "
            "no upper bound: --dequantise adds noise of a step's width"
        )
    spikes = [repr(name) for name, s in zip(columns, steps, strict=True) if s == 0]
    if spikes:
        found.append(
            f"{place}: columns that repeat values on no common step: {listed(spikes, 5)}; their "
            "density has no upper bound: --dequantise WIDTH adds noise of that width, or drop them"
        )
    copies = [f"{columns[j]!r} of {columns[i]!r}" for i, j in _duplicates(values)]
    if copies:
        found.append(
            f"{place}: columns that are copies: {listed(copies, 5)}; rows on a line have no "
            "density: drop the copies"
        )
    return tuple(found)


def _step(values: Vector) -> float | None:
    distinct = np.unique(values)
    if len(distinct) < 2 or len(distinct) >= DISTINCT * len(values):
        return None
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
    single = _rounding(distinct) > 1e-10
    largest = min(float(np.ptp(distinct)), 1e308)
    for step in _decimals(largest, _rounding(distinct) * np.abs(distinct).max()):
        for part in (distinct[:50], distinct):  # most steps fail early
            nearest = np.round(part / step) * step
            if single:
                off = nearest.astype(np.float32) != part.astype(np.float32)
            else:
                off = ~(np.abs(nearest - part) <= 4 * _rounding(distinct) * np.abs(part))
            if off.any():
                break
        else:
            return step
    return None


def _decimals(largest: float, least: float) -> Iterator[float]:
    for exponent in range(math.floor(math.log10(largest)), -300, -1):
        for digit in (5, 2, 1):
            step = float(f"{digit}e{exponent}")
            if step < 2 * least:
                return
            yield step


def _rounding(values: Vector) -> float:
    """Relative spacing of the numbers that these were stored in: float32, or float64."""
    with np.errstate(over="ignore"):
        single = (values.astype(np.float32) == values).all() and (values != np.round(values)).any()
    return float(np.finfo(np.float32 if single else np.float64).eps)


def _duplicates(values: Matrix) -> list[tuple[int, int]]:
    """Pairs of columns, each with the first that it equals."""
    first: dict[bytes, int] = {}
    pairs = []
    for j, column in enumerate(values.T):
        i = first.setdefault(column.tobytes(), j)
        if i != j:
            pairs.append((i, j))
    return pairs


def _mixed(state: Bits) -> Bits:
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    found: Bits = state ^ (state >> np.uint64(31))
    return found
