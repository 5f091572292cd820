"""Fixed maps fitted to the training rows, which a flow carries at its data end.

Their log-determinant is part of the density, so ``log_prob`` and ``sample`` speak the data's units.
They are fitted in double precision, whatever the rows are in.
"""

from __future__ import annotations

import copy
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from cflows.bijectors.elementwise import Affine
from cflows.continuous.solvers import SolverError
from cflows.core.arrays import Array
from cflows.core.bijector import Bijector, Chain
from cflows.core.flow import Flow, dtype_of
from cflows.core.saving import LoadError, register
from cflows.training.fit import fit
from cflows.training.precision import check_resolution
from cflows.training.rows import Data, RowSource, drop_pages, weights_for
from cflows.training.trainer import TrainingError

__all__ = [
    "MAPS",
    "Choice",
    "Whitening",
    "behind",
    "choose",
    "extent",
    "inside",
    "standardise",
    "whiten",
]

NO_DIRECTION = 1e-8  # an eigenvalue below this, relative to the largest, is rounding
CHUNK = 2**22  # numbers that are read at a time

RowsOnDisk = Array | RowSource


def standardise(rows: Tensor | RowsOnDisk, *, weights: Any = None) -> Affine:
    """Map of each column on its own: x = mean + std z.

    Args:
        rows: the training rows, (N, D), N at least 2: a tensor, or a memory-mapped array or row
            source, which is read in chunks and gives a map in float32.
        weights: (N,), how much each row counts in mean and std, as ``fit`` takes them.

    Raises:
        ValueError: a column is constant or not finite; the message names it. Or weights that
            ``fit`` refuses.

    Example:
        >>> import torch
        >>> from cflows import standardise
        >>> standardise(torch.tensor([[9.0], [11.0]])).inverse(torch.tensor([12.0]))
        tensor([2.])

    """
    dtype = _dtype(rows)
    if isinstance(rows, Tensor):
        check_resolution("the rows", rows, dtype)
    if isinstance(rows, Tensor) and weights is None:
        mean, std = rows.double().mean(0), rows.double().std(0, correction=0)
    else:
        mean, covariance = _mean_and_covariance(rows, weights)
        std = covariance.diagonal().sqrt()
    _check_spread(std)
    return Affine(mean.to(dtype), std.to(dtype))


def whiten(
    rows: Tensor | RowsOnDisk,
    floor: float | None = None,
    *,
    kind: str = "zca",
    weights: Any = None,
) -> Whitening:
    """Map to zero mean and identity covariance: x = mean + A z with A Aᵀ = Σ.

    With the correlation matrix P = V Λ Vᵀ and the standard deviations S, ``"zca"`` is
    A = S V Λ^½ Vᵀ and ``"pca"`` is A = S V Λ^½ with Λ descending (Kessy, Lewin and Strimmer 2018,
    "Optimal Whitening and Decorrelation", table 1: ZCA-cor and PCA-cor). The first keeps z as near
    to the standardised x as a white variable can be, the second makes z's coordinates the principal
    components in their order; a coordinate's sign is such that its largest weight is positive.

    Args:
        rows: the training rows, (N, D), N larger than D, as ``standardise`` takes them.
        floor: eigenvalues below floor times the largest are raised to it, with a warning that says
            how many: log-densities then count a spread in directions in which the rows have less.
            None refuses rows that have no density, those with a direction below 1e-8.
        kind: ``"zca"`` or ``"pca"``.
        weights: (N,), how much each row counts in mean and covariance, as ``fit`` takes them.

    Raises:
        ValueError: a column is constant or not finite, or, without a floor, a linear combination of
            others.

    Example:
        >>> import torch
        >>> from cflows import whiten
        >>> rows = torch.tensor([[0.0, 1.0], [2.0, 1.5], [1.0, 4.0]])
        >>> z = whiten(rows).inverse(rows)
        >>> (z.T @ z / 3).round(decimals=4).abs()
        tensor([[1., 0.],
                [0., 1.]])

    """
    if kind not in ("zca", "pca"):
        raise ValueError(f'kind must be "zca" or "pca", got {kind!r}')
    if floor is not None and not 0 < floor < 1:
        raise ValueError(f"floor must lie between 0 and 1, got {floor}")
    dtype = _dtype(rows)
    if isinstance(rows, Tensor):
        check_resolution("the rows", rows, dtype)
    mean, std, correlation = _moments(rows, weights)
    eigenvalues, vectors = torch.linalg.eigh(correlation)
    eigenvalues = _floored(eigenvalues, floor)
    eigenvalues, vectors = eigenvalues.flip(0), vectors.flip(1)
    vectors = vectors * vectors.gather(0, vectors.abs().argmax(0, keepdim=True)).sign()
    turn = vectors.T if kind == "zca" else torch.eye(len(std)).to(vectors)
    root = std[:, None] * (vectors * eigenvalues.sqrt() @ turn)
    inverse_root = turn.T @ (vectors / eigenvalues.sqrt()).T / std
    return Whitening(
        mean.to(dtype),
        root.to(dtype),
        inverse_root.to(dtype),
        float(std.log().sum() + 0.5 * eigenvalues.log().sum()),
    )


MAPS: Mapping[str, Callable[[Any], Bijector]] = {"standardise": standardise, "whiten": whiten}


class Choice(NamedTuple):
    """What ``choose`` found.

    Attributes:
        name: of the map that is kept.
        map: fitted to the training rows.
        scores: the mean validation log-likelihood behind each map; -inf where it could not be had.
        seconds: that it took, those of a training that was interrupted included.

    """

    name: str
    map: Bijector
    scores: dict[str, float]
    seconds: float = 0.0


def choose(
    build: Callable[[Bijector], Flow],
    train: Data,
    validation: Data,
    maps: Mapping[str, Callable[[Any], Bijector]] = MAPS,
    *,
    steps: int = 200,
    checkpoint: str | os.PathLike[str] | None = None,
    **settings: Any,
) -> Choice:
    """Train the same flow behind each map for the same steps, and keep the map that won.

    The measure is the validation log-likelihood in the data's units, in which the maps compare.
    Steps and not seconds, so that the choice repeats.

    Args:
        build: a fitted map -> a new flow that ends in it, with the same first weights each time.
        train: (N, D), or a pair of rows and context, as ``fit`` takes them.
        validation: (N', D), likewise.
        maps: functions rows -> map, by name; the first wins a tie. They see neither context
            nor weights.
        steps: optimiser steps behind each map.
        checkpoint: a path, from which each map's training has its own, PATH.NAME: a choice that was
            interrupted goes on from these. They are left for the caller to remove.
        settings: further keywords of ``fit``; a warm-up lasts a tenth of the steps at most.

    Raises:
        ValueError: no map can be fitted to these rows; the message is the last map's.
        TrainingError: no training came to an end; likewise.
        LoadError: a checkpoint belongs to another run.

    Example:
        >>> import torch
        >>> from cflows import FFJORD, choose
        >>> from cflows.training.preprocessing import behind
        >>> x = torch.randn(200, 1) @ torch.ones(1, 2) + 0.1 * torch.randn(200, 2)
        >>> build = lambda end: behind(FFJORD(2, hidden=(8,)), end)
        >>> choose(build, x[:150], x[150:], steps=1, progress=False).name
        'whiten'

    """
    settings["warmup"] = min(settings.get("warmup", 0), steps // 10)
    rows = train[0] if isinstance(train, tuple) else train
    place = rows.device if isinstance(rows, Tensor) else torch.device("cpu")
    found: dict[str, Bijector] = {}
    scores: dict[str, float] = {}
    failure: Exception = ValueError("maps is empty: give one at least")
    seconds = 0.0
    for name, fit_map in maps.items():
        scores[name] = float("-inf")
        own = None if checkpoint is None else f"{os.fspath(checkpoint)}.{name}"
        started = time.perf_counter()
        try:
            data_end = fit_map(rows)
            history = fit(
                build(data_end), train, validation, steps=steps, checkpoint=own, **settings
            )
            best = history.best_validation
            seconds += max(history.seconds, time.perf_counter() - started)
        except LoadError:
            raise  # another run's checkpoint is no reason to leave out a map
        except (ValueError, TrainingError, SolverError) as error:
            failure = error
            continue
        if best is not None:  # and it is not, with validation rows
            # Training has moved the flow, and with it the map, to its device.
            found[name], scores[name] = data_end.to(place), best
    if not found:
        raise failure
    name = max(found, key=lambda key: scores[key])
    return Choice(name, found[name], scores, seconds)


def extent(rows: Tensor | RowsOnDisk) -> Tensor:
    """The lowest and the highest value of each column and its standard deviation, (3, D).

    Args:
        rows: (N, D), as ``standardise`` takes them.

    Example:
        >>> import torch
        >>> from cflows.training.preprocessing import extent
        >>> extent(torch.tensor([[1.0, 0.0], [3.0, 8.0]]))
        tensor([[1., 0.],
                [3., 8.],
                [1., 4.]])

    """
    if isinstance(rows, Tensor):
        low, high = rows.aminmax(dim=0)
        spread = rows.double().std(0, correction=0)
    else:
        ends = [chunk.aminmax(dim=0) for chunk, _ in _chunks(rows, None)]
        low = torch.stack([end.min for end in ends]).amin(0)
        high = torch.stack([end.max for end in ends]).amax(0)
        spread = _mean_and_covariance(rows, None)[1].diagonal().sqrt()
    return torch.stack([part.to(_dtype(rows)) for part in (low, high, spread)])


def behind(core: Flow, data_end: Bijector | None) -> Flow:
    """Flow whose samples go through a further map: x = data_end(core); None leaves it as it is.

    The map is cast to the core's dtype, in place.

    Example:
        >>> import torch
        >>> from cflows import Affine, Flow, behind, standardise
        >>> rows = torch.tensor([[9.0], [11.0]])
        >>> core = Flow(Affine([0.0], [1.0]))
        >>> behind(core, standardise(rows)).bijector(torch.tensor([0.0]))
        tensor([10.])

    """
    if data_end is None:
        return core
    return Flow(Chain(core.bijector, data_end.to(dtype=dtype_of(core))), core.base)


def inside(
    bounds: Bijector | None, fit_map: Callable[[Any], Bijector]
) -> Callable[[Any], Bijector]:
    """The same map, fitted to the rows as they are behind their bounds: x = bounds(map(z)).

    Args:
        bounds: such as a ``Bounded``; None leaves the map as it is.
        fit_map: ``standardise``, ``whiten``, or another function rows -> map.

    Example:
        >>> import torch
        >>> from cflows import Bounded, inside, standardise
        >>> waiting = torch.tensor([[1.0], [4.0]])
        >>> end = inside(Bounded([0.0], [None]), standardise)(waiting)
        >>> round(end(torch.zeros(1, 1)).item(), 3)  # exp of the mean logarithm
        2.0

    """
    if bounds is None:
        return fit_map

    def fitted(rows: Any) -> Bijector:
        exact = copy.deepcopy(bounds).double().eval()
        if isinstance(rows, Tensor):
            seen: Any = exact.to(rows.device).inverse(rows.double()).to(rows.dtype)
        else:
            seen = _Unbounded(rows, exact)
        return Chain(fit_map(seen), copy.deepcopy(bounds).to(_dtype(rows)))

    return fitted


@dataclass(frozen=True)
class _Unbounded:
    """Rows on the disk, seen through the inverse of their bounds."""

    rows: RowsOnDisk
    bounds: Bijector

    @property
    def shape(self) -> tuple[int, ...]:
        return self.rows.shape

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, chosen: Any) -> Array:
        seen = self.bounds.inverse(torch.from_numpy(np.array(self.rows[chosen], dtype=np.float64)))
        drop_pages(self.rows)
        return seen.numpy()


@register
class Whitening(Bijector):
    """A fixed x = loc + A z, with log|det dx/dz| = log|det A|.

    Args:
        loc: (D,).
        matrix: A, (D, D).
        inverse_matrix: A⁻¹, (D, D), given so that no triangular solve is needed at run time.
        log_abs_det: log|det A|, computed in double precision by ``whiten``.

    Example:
        >>> import torch
        >>> from cflows import Whitening
        >>> matrix, inverse = [[2.0, 0.0], [1.0, 1.0]], [[0.5, 0.0], [-0.5, 1.0]]
        >>> white = Whitening([0.0, 0.0], matrix, inverse, log_abs_det=0.6931)
        >>> white.forward_and_log_det(torch.ones(2))
        (tensor([2., 2.]), tensor(0.6931))

    """

    loc: Tensor
    matrix: Tensor
    inverse_matrix: Tensor
    log_abs_det: Tensor

    def __init__(
        self,
        loc: Sequence[float] | Tensor,
        matrix: Sequence[Sequence[float]] | Tensor,
        inverse_matrix: Sequence[Sequence[float]] | Tensor,
        log_abs_det: float,
    ) -> None:
        loc = torch.as_tensor(loc)
        super().__init__(len(loc))
        for name, value in (
            ("loc", loc),
            ("matrix", torch.as_tensor(matrix)),
            ("inverse_matrix", torch.as_tensor(inverse_matrix)),
            ("log_abs_det", torch.tensor(log_abs_det, dtype=loc.dtype)),
        ):
            self.register_buffer(name, value.detach().clone())

    def forward_and_log_det(
        self, z: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Loc + A z."""
        z, _ = self.broadcast(z, context)
        with torch.autocast(z.device.type, enabled=False):
            x = self.loc + z @ self.matrix.mT
        return x, self.log_abs_det.expand(z.shape[:-1])

    def inverse_and_log_det(
        self, x: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """A⁻¹ (x - loc)."""
        x, _ = self.broadcast(x, context)
        with torch.autocast(x.device.type, enabled=False):
            z = (x - self.loc) @ self.inverse_matrix.mT
        return z, -self.log_abs_det.expand(x.shape[:-1])


def _moments(rows: Tensor | RowsOnDisk, weights: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (D,), standard deviation (D,) and correlation (D, D), in double precision."""
    if isinstance(rows, Tensor) and weights is None:
        exact = rows.double()
        mean, std = exact.mean(0), exact.std(0, correction=0)
        _check_spread(std)
        correlation = torch.cov(((exact - mean) / std).T, correction=0).reshape(len(std), -1)
        return mean, std, correlation
    mean, covariance = _mean_and_covariance(rows, weights)
    std = covariance.diagonal().sqrt()
    _check_spread(std)
    return mean, std, covariance / std.outer(std)


def _mean_and_covariance(rows: Tensor | RowsOnDisk, weights: Any) -> tuple[Tensor, Tensor]:
    """Two readings: sums of squares that are not taken around the mean would cancel."""
    counted = None if weights is None else weights_for(weights, len(rows)).unsqueeze(1)
    sums = [_counted(chunk, of).sum(0) for chunk, of in _chunks(rows, counted)]
    mean = torch.stack(sums).sum(0) / len(rows)
    squares = mean.new_zeros(len(mean), len(mean))
    for chunk, of in _chunks(rows, counted):
        centred = chunk - mean
        squares += _counted(centred, of).T @ centred
    return mean, squares / len(rows)


def _counted(values: Tensor, weights: Tensor | None) -> Tensor:
    return values if weights is None else values * weights


def _chunks(
    rows: Tensor | RowsOnDisk, weights: Tensor | None
) -> Iterator[tuple[Tensor, Tensor | None]]:
    size = max(1, CHUNK // rows.shape[1])
    for first in range(0, len(rows), size):
        part = rows[first : first + size]
        if isinstance(part, Tensor):
            chunk = part.double()
        else:
            chunk = torch.from_numpy(np.array(part, dtype=np.float64))
            drop_pages(rows)
        yield chunk, None if weights is None else weights[first : first + size].to(chunk.device)


def _dtype(rows: Tensor | RowsOnDisk) -> torch.dtype:
    return rows.dtype if isinstance(rows, Tensor) else torch.float32


def _floored(eigenvalues: Tensor, floor: float | None) -> Tensor:
    """Eigenvalues, ascending, none below the floor; refused or warned of where some are."""
    largest = float(eigenvalues[-1])
    if floor is None:
        if float(eigenvalues[0]) < NO_DIRECTION * largest:
            raise ValueError(
                f"the columns are linearly dependent (least eigenvalue of their correlation "
                f"{float(eigenvalues[0]):.1e}): drop one, give a floor, or standardise instead"
            )
        return eigenvalues
    low = int((eigenvalues < floor * largest).sum())
    if low:
        warnings.warn(
            f"{low} of {len(eigenvalues)} directions have less than {floor:g} of the largest "
            "variance, and were given that: columns are nearly linear combinations of others",
            stacklevel=3,
        )
    return eigenvalues.clamp(min=floor * largest)


def _check_spread(std: Tensor) -> None:
    bad = (~(std.isfinite() & (std > 0))).nonzero().flatten().tolist()
    if bad:
        raise ValueError(f"column {bad[0]} of the rows is constant or not finite: drop it")
