r"""A chain of fixed maps that makes rows nearly normal: seconds of sorting, no training.

Chen and Gopinath 2000, "Gaussianization", take a map of each column, then a rotation, again and
again; Laparra, Camps-Valls and Malo 2011, "Iterative Gaussianization", take random rotations. Here
whitening stands in their place, and the radial map of Lyu and Simoncelli 2009 beside the columns'.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cflows.bijectors.marginals import Margins, Radial
from cflows.bijectors.monotone import in_bin
from cflows.core.base import Normal
from cflows.core.bijector import Bijector, Chain
from cflows.training.preprocessing import map_dtype, standardise, whiten
from cflows.training.rows import Part
from cflows.training.sources import drop_pages

__all__ = ["gaussianise"]

BINS = (4, 8, 16, 32, 64, 128, 256, 512, 1024)  # of a spline; held-out rows choose
WORSE = 2  # numbers of bins in a row that make held-out rows less likely: no more are tried
BEYOND = 5  # rows beyond an outer knot
ROWS = 8  # in a bin, on average at least; and different values in each bin
TIED = 1 / 3  # of a bin's rows that may be one value
ATOM = 0.05  # of a column's rows: a value that stands in more has no density
RESOLVED = 1e-5  # between two knots, relative to where they stand
SEARCHED, FITTED = 2**20, 2**25  # numbers of the rows that are looked at
HELD_OUT = 5  # one row in as many, where no validation rows are given
GAIN = 0.05  # nats that a further part must win

Knots = tuple[Tensor, Tensor, Tensor]
"""Places, values and slopes of a spline, (K,) each."""

Step = Callable[[Tensor, Tensor], Bijector]
"""Training and held-out rows -> a part that is fitted to them."""


def gaussianise(rows: Part, validation: Part | None = None, *, steps: int = 5) -> Chain:
    r"""Fit a chain of closed-form maps behind which rows look like draws of a standard normal.

    The parts are whitening, ``Margins`` and ``Radial``. From a whitening, and from margins and a
    whitening, the chain grows greedily: of the radial map, and of margins and a whitening, it takes
    the one behind which held-out rows have the higher mean

        log N(z; 0, I) + log|det dz/dx|,

    as long as .05 nats are won. The better of the two chains is returned. It is the data end of a
    flow, ``behind(flow, gaussianise(rows))``: what it does in closed form need not be learnt.

    The knots of a spline stand at quantiles that are equally far apart as normal scores; how many
    there are is chosen on held-out rows. No density is bought from ties: between two knots lie
    eight different values or more, none in more than a third of the rows there, and a column with
    one value in more than 5 % of its rows is standardised, with a warning.

    Args:
        rows: the training rows, (N, D): a tensor, or a memory-mapped array or row source, of which
            2^25 numbers at most are looked at, evenly spaced.
        validation: held-out rows, (N', D), likewise; None takes every fifth of the rows.
        steps: parts at most, a whitening with the margins before it counted as one.

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
    train, held_out = _parts(rows, validation, SEARCHED)
    _warn_of_atoms(train)
    starts: list[tuple[Step, ...]] = [(_whitening,), (_margins, _whitening)]
    best = max((_grown(train, held_out, start, steps) for start in starts), key=_score)
    if not best.steps:  # columns that depend on each other are mapped one by one
        best = _Behind(train, held_out).then(_margins)
    if train.numel() < np.prod(rows.shape):
        best = _Behind(*_parts(rows, validation, FITTED)).then(*best.steps)
    device = rows.device if isinstance(rows, Tensor) else None
    return Chain(*reversed(best.parts)).to(device, map_dtype(rows))


@dataclass(frozen=True)
class _Behind:
    """Rows as they are behind a chain of parts, which stand from data to noise."""

    train: Tensor
    held_out: Tensor
    log_det: Tensor | float = 0.0
    parts: tuple[Bijector, ...] = ()
    steps: tuple[Step, ...] = ()

    def then(self, *steps: Step) -> _Behind:
        """The same rows behind further parts."""
        behind = self
        for step in steps:
            part = step(behind.train, behind.held_out)
            held_out, log_det = part.inverse_and_log_det(behind.held_out)
            behind = _Behind(
                part.inverse(behind.train),
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


def _grown(train: Tensor, held_out: Tensor, start: tuple[Step, ...], steps: int) -> _Behind:
    """The chain that begins with these steps; no step at all where rows do not admit them."""
    best = _Behind(train, held_out)
    options: list[tuple[Step, ...]] = [start]
    for _ in range(steps):
        longer = []
        for option in options:
            with suppress(ValueError):  # such as columns that depend on each other
                longer.append(best.then(*option))
        top = max(longer, key=_score, default=best)
        if not _score(top) > _score(best) + GAIN:
            break
        best = top
        # A radial map after another one finds nothing to do.
        further: list[tuple[Step, ...]] = [(_radial,), (_margins, _whitening)]
        options = further[1:] if top.steps[-1] is _radial else further
    return best


def _whitening(rows: Tensor, held_out: Tensor) -> Bijector:
    return whiten(rows)


def _margins(rows: Tensor, held_out: Tensor) -> Bijector:
    columns = [
        _knots(_Quantiles(column), rest, _NORMAL) or _line(column)
        for column, rest in zip(rows.T.contiguous(), held_out.T.contiguous(), strict=True)
    ]
    most = max(len(places) for places, _, _ in columns)
    longer = [_lengthened(*knots, most) for knots in columns]
    return Margins(*map(torch.stack, zip(*longer, strict=True)))


def _line(column: Tensor) -> Knots:
    """Two knots on a straight line, for a column with an atom, or of few rows."""
    ends, std = torch.tensor([-1.0, 1.0]).double(), column.std(correction=0)
    return column.mean() + std * ends, ends, 1 / std.expand(2)


def _radial(rows: Tensor, held_out: Tensor) -> Bijector:
    features = rows.shape[1]
    train, rest = (torch.linalg.vector_norm(part, dim=1).log() for part in (rows, held_out))
    knots = _knots(_Quantiles(train), rest, _log_chi_law(features))
    if knots is None:
        raise ValueError("too few rows for a radial map")
    return Radial(features, *knots)


@dataclass(frozen=True)
class _Law:
    """The distribution that a spline's values are to have, and its outer slopes."""

    quantile: Callable[[Tensor], Tensor]
    log_density: Callable[[Tensor], Tensor]  # but for a constant
    below: Callable[[Tensor, Tensor, Tensor], Tensor]  # outer value, distances beyond it, slope
    above: Callable[[Tensor, Tensor, Tensor], Tensor]


def _knots(quantiles: _Quantiles, held_out: Tensor, law: _Law) -> Knots | None:
    """Of splines of more and more knots the one behind which held-out values are likeliest."""
    best, highest, worse = None, -math.inf, 0
    held_out = _sorted(held_out)
    for levels in quantiles.levels():
        places, values = quantiles.at(levels), law.quantile(levels)
        slopes = _slopes(places, values)
        slopes[0] = law.below(values[0], quantiles.below(places[0]), slopes[0])
        slopes[-1] = law.above(values[-1], quantiles.above(places[-1]), slopes[-1])
        score = _score_behind((places, values, slopes), held_out, law)
        if score > highest:
            best, highest, worse = (places, values, slopes), score, 0
        else:
            worse += 1
        if worse == WORSE:
            break
    return best


def _score_behind(knots: Knots, ordered: Tensor, law: _Law) -> float:
    """Mean log-likelihood of ascending values behind a spline, but for a constant."""
    places, _, slopes = knots
    inside = ordered.clamp(places[0], places[-1])
    inner = torch.searchsorted(ordered, places[1:-1]).tolist()
    counts = torch.tensor([*inner, len(ordered)]) - torch.tensor([0, *inner])
    corners = [part.repeat_interleave(counts) for knot in knots for part in (knot[:-1], knot[1:])]
    values, log_slope = in_bin(inside, corners, inverse=False)
    beyond = ordered - inside
    values += torch.where(beyond < 0, slopes[0], slopes[-1]) * beyond
    return float((law.log_density(values) + log_slope).mean())


class _Quantiles:
    """Values of one column, or lengths of rows, and where knots may stand among them."""

    def __init__(self, values: Tensor) -> None:
        self.ordered = _sorted(values)
        self.different, self.counts = torch.unique_consecutive(self.ordered, return_counts=True)

    def levels(self) -> Iterator[Tensor]:
        """Probabilities of the knots, for each number of bins that these values admit."""
        rows = len(self.ordered)
        if rows <= 2 * BEYOND or int(self.counts.max()) > ATOM * rows:
            return
        outer = -float(torch.special.ndtri(torch.tensor(BEYOND / rows).double()))
        for bins in BINS:
            if bins * ROWS <= rows:
                scores = torch.linspace(-outer, outer, bins + 1).double()
                kept = self._apart(torch.special.ndtr(scores))
                if len(kept) > 2:
                    yield kept

    def at(self, levels: Tensor) -> Tensor:
        """Quantiles, on straight lines between the values."""
        place = (levels * len(self.ordered) - 0.5).clamp(0, len(self.ordered) - 1)
        low = place.long().clamp(max=len(self.ordered) - 2)
        return torch.lerp(self.ordered[low], self.ordered[low + 1], place - low)

    def below(self, place: Tensor) -> Tensor:
        """How far values lie below a place, of those that do."""
        return place - self.ordered[: torch.searchsorted(self.ordered, place)]

    def above(self, place: Tensor) -> Tensor:
        """How far values lie above a place, of those that do."""
        return self.ordered[torch.searchsorted(self.ordered, place, right=True) :] - place

    def _apart(self, levels: Tensor) -> Tensor:
        """Those with enough different values between two of them; the outermost stay."""
        places = self.at(levels).numpy()
        bins = np.searchsorted(self.different.numpy(), places).tolist()
        least, counts = RESOLVED * np.abs(places), self.counts.numpy()
        has_ties = len(self.different) < len(self.ordered)

        def fits(low: int, high: int) -> bool:
            if bins[high] - bins[low] < ROWS or not (
                places[high] - places[low] > max(least[low], least[high])
            ):
                return False
            inside = counts[bins[low] : bins[high]]
            return not has_ties or inside.max() == 1 or inside.max() <= TIED * inside.sum()

        kept = [0]
        for knot in range(1, len(places)):
            if fits(kept[-1], knot):
                kept.append(knot)
        kept[-1] = len(places) - 1  # the last bin takes what was left over
        return levels[kept]


def _sorted(values: Tensor) -> Tensor:
    return torch.from_numpy(np.sort(values.numpy()))  # ten times as fast as torch's


def _slopes(places: Tensor, values: Tensor) -> Tensor:
    """Of a monotone curve: weighted harmonic means of the chords (Fritsch and Butland 1984)."""
    widths = places.diff()
    chords = values.diff() / widths
    one, two = 2 * widths[1:] + widths[:-1], widths[1:] + 2 * widths[:-1]
    inner = (one + two) / (one / chords[:-1] + two / chords[1:])
    return torch.cat([chords[:1], inner, chords[-1:]])


def _normal_tail(value: Tensor, beyond: Tensor, chord: Tensor) -> Tensor:
    """The slope a behind which the values beyond an outer knot are likeliest.

    Of Σ log a - (value + a e)²/2 over their distances e: the root of a² Σe² + a value Σe = n.
    """
    if len(beyond) == 0:
        return chord
    first, second = value * beyond.sum(), beyond.square().sum()
    return (torch.sqrt(first**2 + 4 * len(beyond) * second) - first) / (2 * second)


_NORMAL = _Law(
    torch.special.ndtri,
    lambda z: -z.square() / 2,
    lambda value, beyond, slope: _normal_tail(-value, beyond, slope),
    _normal_tail,
)


def _chi_tail(value: Tensor, beyond: Tensor, features: int, chord: Tensor) -> Tensor:
    """The power a behind which the lengths beyond the outer knot are likeliest.

    Of Σ log a + D (value + a e) - exp(2 (value + a e))/2, over the logarithms' distances e.
    """
    if len(beyond) == 0:
        return chord
    powers = torch.logspace(-2, 1, 301).double()
    lengths = value + powers[:, None] * beyond
    likelihood = powers.log()[:, None] + features * lengths - (2 * lengths).exp() / 2
    return powers[likelihood.sum(1).argmax()]


def _log_chi_law(features: int) -> _Law:
    """Of logarithms of lengths: z² D-fold, and slope 1 below the first knot."""
    return _Law(
        lambda levels: _log_chi(levels, features),
        lambda z: features * z - (2 * z).exp() / 2,
        lambda value, beyond, slope: torch.ones_like(slope),
        lambda value, beyond, slope: _chi_tail(value, beyond, features, slope),
    )


def _log_chi(levels: Tensor, features: int) -> Tensor:
    """Logarithms of the χ distribution's quantiles, by bisection."""
    half = torch.full_like(levels, features / 2)
    low, high = torch.full_like(levels, -50.0), torch.full_like(levels, 25.0)
    for _ in range(60):
        middle = (low + high) / 2
        short = torch.special.gammainc(half, (2 * middle).exp() / 2) < levels
        low, high = torch.where(short, middle, low), torch.where(short, high, middle)
    return (low + high) / 2


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
    taken = torch.from_numpy(np.array(rows[::every], dtype=np.float64))
    drop_pages(rows)
    return taken


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
