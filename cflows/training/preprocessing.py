"""Fixed maps fitted to the training rows, which a flow carries at its data end.

Their log-determinant is part of the density, so ``log_prob`` and ``sample`` speak the data's units.
They are fitted in double precision, whatever the rows are in.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cflows.bijectors.elementwise import Affine
from cflows.bijectors.whitening import Whitening
from cflows.core.arguments import Array
from cflows.core.bijector import Bijector, Chain
from cflows.training.rows import Part, Weights, check_resolution, finite, weights_for
from cflows.training.sources import drop_pages

__all__ = ["Fit", "extent", "inside", "standardise", "whiten"]

Fit = Callable[..., Bijector]
"""Training rows, and held-out ones for some -> the map that is fitted to them."""

NO_DIRECTION = 1e-8  # an eigenvalue below this, relative to the largest, is rounding
CHUNK = 2**22  # numbers that are read at a time


def standardise(rows: Part, *, weights: Weights | None = None) -> Affine:
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
    dtype = map_dtype(rows)
    if isinstance(rows, Tensor):
        check_resolution("the rows", rows, dtype)
    mean, std, _ = _moments(rows, weights)
    _refuse_constant(std)
    return Affine(mean.to(dtype), std.to(dtype))


def whiten(
    rows: Part,
    floor: float | None = None,
    *,
    kind: str = "zca",
    weights: Weights | None = None,
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
    dtype = map_dtype(rows)
    if isinstance(rows, Tensor):
        check_resolution("the rows", rows, dtype)
    mean, std, covariance = _moments(rows, weights)
    _refuse_constant(std)
    if covariance is None:
        assert isinstance(rows, Tensor)
        white = (rows.double() - mean) / std
        correlation = torch.cov(white.T, correction=0).reshape(len(std), -1)
    else:
        correlation = covariance / std.outer(std)
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


def inside(bounds: Bijector | None, fit_map: Fit) -> Fit:
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

    def behind_them(rows: Part) -> Part:
        exact = copy.deepcopy(bounds).double().eval()
        if isinstance(rows, Tensor):
            return exact.to(rows.device).inverse(rows.double()).to(rows.dtype)
        return _Unbounded(rows, exact)

    def fitted(rows: Part, *held_out: Part) -> Bijector:
        data_end = fit_map(*map(behind_them, (rows, *held_out)))
        return Chain(data_end, copy.deepcopy(bounds).to(map_dtype(rows)))

    return fitted


def extent(rows: Part) -> Tensor:
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
    ends = [chunk.aminmax(dim=0) for chunk, _ in _chunks(rows, None)]
    low = torch.stack([end.min for end in ends]).amin(0)
    high = torch.stack([end.max for end in ends]).amax(0)
    return torch.stack([low, high, _moments(rows, None)[1]]).to(map_dtype(rows))


def _moments(rows: Part, weights: Weights | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Mean (D,), standard deviation (D,) and covariance (D, D), None for rows in memory.

    Two readings: sums of squares that are not taken around the mean would cancel.
    """
    if isinstance(rows, Tensor) and weights is None:
        return rows.double().mean(0), rows.double().std(0, correction=0), None
    counted = None if weights is None else weights_for(weights, len(rows)).unsqueeze(1)
    sums = [(chunk * of).sum(0) for chunk, of in _chunks(rows, counted)]
    mean = torch.stack(sums).sum(0) / len(rows)
    squares = mean.new_zeros(len(mean), len(mean))
    for chunk, of in _chunks(rows, counted):
        centred = chunk - mean
        squares += (centred * of).T @ centred
    covariance = squares / len(rows)
    return mean, covariance.diagonal().sqrt(), covariance


def _chunks(rows: Part, weights: Tensor | None) -> Iterator[tuple[Tensor, Tensor | float]]:
    size = max(1, CHUNK // rows.shape[1])
    for first in range(0, len(rows), size):
        part = rows[first : first + size]
        if isinstance(part, Tensor):
            chunk = part.double()
        else:
            values = torch.from_numpy(np.array(part, dtype=np.float64))
            drop_pages(rows)
            chunk = finite("the table", values, range(first, first + size))
        yield chunk, 1.0 if weights is None else weights[first : first + size].to(chunk.device)


def map_dtype(rows: Part) -> torch.dtype:
    """The dtype of a map that is fitted to these rows."""
    if isinstance(rows, Tensor):
        return rows.dtype if rows.is_floating_point() else torch.get_default_dtype()
    return torch.float32


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


def _refuse_constant(std: Tensor) -> None:
    bad = (~(std.isfinite() & (std > 0))).nonzero().flatten().tolist()
    if bad:
        raise ValueError(f"column {bad[0]} of the rows is constant or not finite: drop it")


@dataclass(frozen=True)
class _Unbounded:
    """Rows on the disk, seen through the inverse of their bounds."""

    rows: Part
    bounds: Bijector

    @property
    def shape(self) -> tuple[int, ...]:
        return self.rows.shape

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, chosen: slice | Array) -> Array:
        values = torch.from_numpy(np.array(self.rows[chosen], dtype=np.float64))
        drop_pages(self.rows)
        numbers = range(len(self))[chosen] if isinstance(chosen, slice) else chosen
        finite("the table", values, numbers)
        return self.bounds.inverse(values).numpy()
