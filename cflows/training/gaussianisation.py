r"""A chain of fixed maps that makes rows nearly normal: seconds of sorting, no training.

Chen and Gopinath 2000, "Gaussianization", take a map of each column, then a rotation, again and
again; Laparra, Camps-Valls and Malo 2011, "Iterative Gaussianization", take random rotations. Here
whitening stands in their place, and the radial map of Lyu and Simoncelli 2009 beside the columns'.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from cflows.bijectors.marginals import Margins, Radial
from cflows.core.base import Normal
from cflows.core.bijector import Bijector, Chain
from cflows.training.knots import ATOM, BEYOND, NORMAL, Knots, likeliest, log_chi
from cflows.training.preprocessing import CHUNK, map_dtype, standardise, whiten
from cflows.training.rows import Part
from cflows.training.sources import drop_pages

__all__ = ["gaussianise"]

SEARCHED, FITTED = 2**18, 2**25  # numbers of the rows that are looked at
TOGETHER = 2**17  # numbers of held-out columns that are scored together
FOR_EACH = 16  # columns, so many rows at least where the chain is searched
HELD_OUT = 5  # one row in as many, where no validation rows are given

Step = Callable[[Tensor, Tensor], Bijector]
"""Training and held-out rows -> a part that is fitted to them."""


def gaussianise(
    rows: Part, validation: Part | None = None, *, steps: int = 5, gain: float = 0.05
) -> Chain:
    r"""Fit a chain of closed-form maps behind which rows look like draws of a standard normal.

    The parts are whitening, ``Margins`` and ``Radial``. From a whitening, and from margins and a
    whitening, the chain grows greedily: of the radial map, and of margins and a whitening, it takes
    the one behind which held-out rows have the higher mean

        log N(z; 0, I) + log|det dz/dx|,

    as long as it wins ``gain`` nats a column. The better of the two chains is returned. It is the
    data end of a flow, ``behind(flow, gaussianise(rows))``: what it does in closed form need not be
    learnt. A chain that squeezes out the last hundredths leaves a flow less to win than it bends
    out of shape: on BSDS300 a field learns 3.4 nats behind whitening and the radial map, and none
    behind a further part that won .017 a column.

    The knots of a spline stand at quantiles that are equally far apart as normal scores; how many
    there are is chosen on held-out rows. No density is bought from ties: between two knots lie
    eight different values or more, none in more than a third of the rows there, and a column with
    one value in more than 5 % of its rows is standardised, with a warning.

    Args:
        rows: the training rows, (N, D): a tensor, or a memory-mapped array or row source, of which
            2^25 numbers at most are looked at, evenly spaced.
        validation: held-out rows, (N', D), likewise; None takes every fifth of the rows.
        steps: parts at most, a whitening with the margins before it counted as one.
        gain: nats a column that a further part must win; .005 for the chain's own likelihood.

    Returns:
        x = f(z), in the rows' dtype (float32 for rows on the disk).

    Raises:
        ValueError: a column is constant, not finite, or too far from zero for the dtype.

    Warns:
        UserWarning: a column has an atom.

    Example:
        >>> import torch
        >>> from cflows import gaussianise
        >>> skewed = torch.randn(1000, 2, generator=torch.Generator().manual_seed(0)).exp()
        >>> z = gaussianise(skewed).inverse(skewed)
        >>> bool(z.std(0).sub(1).abs().max() < 0.05), bool(z.median(0).values.abs().max() < 0.1)
        (True, True)

    """
    standardise(rows)  # which refuses what no map can hold
    searched = max(SEARCHED, FOR_EACH * rows.shape[1] ** 2)
    train, held_out = _parts(rows, validation, searched)
    standardise(train)
    _warn_of_atoms(train)
    starts: list[tuple[Step, ...]] = [(_whitening,), (_margins, _whitening)]
    asked = gain * rows.shape[1]
    best = max((_grown(train, held_out, start, steps, asked) for start in starts), key=_score)
    if not best.steps:  # columns that depend on each other are mapped one by one
        best = _Behind(train, held_out).then(_margins)
    if train.numel() < np.prod(rows.shape):
        best = _Behind(*_parts(rows, validation, FITTED)).then(*best.steps)
    device = rows.device if isinstance(rows, Tensor) else None
    return Chain(*reversed(best.parts)).to(device, map_dtype(rows))


@dataclass(frozen=True)
class _Behind:
    """Rows as they are behind a chain of parts, which stand from data to noise."""

    before: Tensor  # training rows ahead of the last part
    held_out: Tensor
    log_det: Tensor | float = 0.0
    parts: tuple[Bijector, ...] = ()
    steps: tuple[Step, ...] = ()

    @cached_property
    def train(self) -> Tensor:
        return self.parts[-1].inverse(self.before) if self.parts else self.before

    def then(self, *steps: Step) -> _Behind:
        """The same rows behind further parts."""
        behind = self
        for step in steps:
            part = step(behind.train, behind.held_out)
            held_out, log_det = part.inverse_and_log_det(behind.held_out)
            behind = _Behind(
                behind.train,
                held_out,
                behind.log_det + log_det,
                (*behind.parts, part),
                (*behind.steps, step),
            )
        return behind


def _score(behind: _Behind) -> float:
    """Mean log-likelihood of the held-out rows."""
    return _log_likelihood(behind.held_out, behind.log_det) if behind.steps else -math.inf


def _log_likelihood(z: Tensor, log_det: Tensor | float) -> float:
    return float((Normal(z.shape[1]).log_prob(z) + log_det).mean())


def _grown(
    train: Tensor, held_out: Tensor, start: tuple[Step, ...], steps: int, gain: float
) -> _Behind:
    """The chain that begins with these steps; no step at all where rows do not admit them."""
    best = _Behind(train, held_out)
    options: list[tuple[Step, ...]] = [start]
    for _ in range(steps):
        longer = []
        for option in options:
            with suppress(ValueError):  # such as columns that depend on each other
                longer.append(best.then(*option))
        top = max(longer, key=_score, default=best)
        if not _score(top) > _score(best) + gain:
            break
        best = top
        # A radial map after another one finds nothing to do.
        further: list[tuple[Step, ...]] = [(_radial,), (_margins, _whitening)]
        options = further[1:] if top.steps[-1] is _radial else further
    return best


def _whitening(rows: Tensor, held_out: Tensor) -> Bijector:
    return whiten(rows)


def _margins(rows: Tensor, held_out: Tensor) -> Bijector:
    columns, rest = rows.T.contiguous(), held_out.T.contiguous()
    few = -(-TOGETHER // len(held_out))
    knots = [
        found or _line(column)
        for first in range(0, len(columns), few)
        for found, column in zip(
            likeliest(columns[first : first + few], rest[first : first + few], NORMAL),
            columns[first : first + few],
            strict=True,
        )
    ]
    most = max(len(places) for places, _, _ in knots)
    return Margins(
        *map(torch.stack, zip(*(_lengthened(*spline, most) for spline in knots), strict=True))
    )


def _line(column: Tensor) -> Knots:
    """Two knots on a straight line, for a column with an atom, or of few rows."""
    ends, std = torch.tensor([-1.0, 1.0]).double(), column.std(correction=0)
    return column.mean() + std * ends, ends, 1 / std.expand(2)


def _radial(rows: Tensor, held_out: Tensor) -> Bijector:
    features = rows.shape[1]
    train, rest = (torch.linalg.vector_norm(part, dim=1).log() for part in (rows, held_out))
    (knots,) = likeliest(train[None], rest[None], log_chi(features))
    if knots is None:
        raise ValueError("too few rows for a radial map")
    return Radial(features, *knots)


def _lengthened(places: Tensor, values: Tensor, slopes: Tensor, knots: int) -> Knots:
    """The same spline with further knots on the line beyond the last one."""
    further = (places[-1] - places[-2]) * torch.arange(1, knots - len(places) + 1).to(places)
    return (
        torch.cat([places, places[-1] + further]),
        torch.cat([values, values[-1] + slopes[-1] * further]),
        torch.cat([slopes, slopes[-1].expand_as(further)]),
    )


def _parts(rows: Part, validation: Part | None, numbers: int) -> tuple[Tensor, Tensor]:
    """Training and held-out rows in double precision, evenly spaced ones of many."""
    train = _some(rows, numbers)
    if validation is not None:
        return train, _some(validation, numbers)
    chosen = torch.arange(len(train)) % HELD_OUT == 0
    return train[~chosen], train[chosen]


def _some(rows: Part, numbers: int) -> Tensor:
    every = -(-rows.shape[0] * rows.shape[1] // numbers)
    if isinstance(rows, Tensor):
        return rows[::every].detach().double().cpu()
    size = every * max(1, CHUNK // (every * rows.shape[1]))
    taken = []
    for first in range(0, len(rows), size):
        taken.append(np.array(rows[first : first + size : every], dtype=np.float64))
        drop_pages(rows)
    return torch.from_numpy(np.concatenate(taken))


def _warn_of_atoms(rows: Tensor) -> None:
    for number, column in enumerate(rows.T):
        values, counts = torch.unique(column, return_counts=True)
        atom, share = float(values[counts.argmax()]), float(counts.max()) / len(column)
        if share > ATOM and len(column) > 2 * BEYOND:
            warnings.warn(
                f"column {number} is {atom:g} in {share:.0%} of the rows, an atom, which no "
                "density has: it is standardised only. Fill it up with noise of its step "
                "(--dequantise), or leave it out",
                stacklevel=3,
            )
