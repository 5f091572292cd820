"""Bounds that the user gives of columns: waiting times from 0 on, shares between 0 and 1."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeAlias

import numpy as np

from baselines.harness.data.dataset import DataError, Dataset, Part
from baselines.harness.data.streams import Streamed
from cflows import Bounded
from cflows.core.arguments import listed, nearest

__all__ = ["Bounds", "Pair", "bounded", "parse", "refuse_unknown", "within"]

Pair: TypeAlias = tuple[float | None, float | None]
Bounds: TypeAlias = Mapping[str, Pair]
CHUNK = 2**18  # rows that are checked at a time


def parse(text: str) -> tuple[str, Pair]:
    """Read ``NAME=LOW:HIGH``, either of the two left out where there is none.

    Raises:
        ValueError: it is not of this form, or leaves no room; the message says which.

    Example:
        >>> parse("wait=0:"), parse("share=0:1")
        (('wait', (0.0, None)), ('share', (0.0, 1.0)))

    """
    name, equals, ends = text.rpartition("=")
    low, colon, high = ends.partition(":")
    try:
        pair = tuple(float(end) if end else None for end in (low, high))
    except ValueError:
        pair = (math.nan, None)
    known = [end for end in pair if end is not None]
    if not (name and equals and colon and known) or not all(map(math.isfinite, known)):
        raise ValueError(f"write NAME=LOW:HIGH, NAME=LOW: or NAME=:HIGH; got {text!r}")
    if len(known) == 2 and not known[0] < known[1]:
        raise ValueError(f"the lower bound must lie below the upper one; got {text!r}")
    return name, (pair[0], pair[1])


def bounded(pairs: Sequence[Pair] | None) -> Bounded | None:
    """The map into the bounds of D columns; None where there is none."""
    return None if pairs is None else Bounded(*map(list, zip(*pairs, strict=True)))


def within(
    rows: Dataset | Streamed, columns: Sequence[str], bounds: Bounds
) -> tuple[Pair, ...] | None:
    """The bounds of each of some columns, None where no column has any.

    Args:
        rows: all of which must lie inside; DataError where one lies on or outside of a bound.
        columns: names of those that are modelled.
        bounds: by name; names of other columns are passed over, see ``refuse_unknown``.

    """
    if not any(name in bounds for name in columns):
        return None
    for name in columns:
        if name in bounds:
            _refuse_outside(rows, name, bounds[name])
    return tuple(bounds.get(name, (None, None)) for name in columns)


def _refuse_outside(rows: Dataset | Streamed, name: str, pair: Pair) -> None:
    low = -math.inf if pair[0] is None else pair[0]
    high = math.inf if pair[1] is None else pair[1]
    at = rows.columns.index(name)
    outside = np.concatenate([part[~((part > low) & (part < high))] for part in _parts(rows, at)])
    if len(outside):
        where = rows.name if isinstance(rows, Dataset) and rows.kind != "file" else rows.source
        raise DataError(
            f"{where}: column {name!r} has {len(outside):,} rows on or outside of its bounds, such "
            f"as {outside[0]:g}; widen the bounds of {name}, or drop these rows"
        )


def refuse_unknown(tables: Iterable[Sequence[str]], bounds: Bounds) -> None:
    """Raise DataError for a name that is no column of any table."""
    names = list(dict.fromkeys(name for columns in tables for name in columns))
    for name in bounds:
        if name not in names:
            raise DataError(
                f"no column is called {name!r}, as --bounds has it; {nearest(name, names)}the "
                f"columns are {listed(names, 20)}"
            )


def _parts(rows: Dataset | Streamed, at: int) -> Iterator[Part]:
    """One column of all rows, with the noise that they are trained with."""
    if isinstance(rows, Dataset):
        yield from (part[:, at] for part in rows.splits)
        return
    for first in range(0, len(rows.array), CHUNK):
        yield rows.rows(np.arange(first, min(first + CHUNK, len(rows.array))))[:, at]
