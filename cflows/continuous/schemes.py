r"""Fitting a ``Scheme`` to the paths of one field, in closed form.

The states x(s_i) of rows on their true paths, and where these end, are known from a fine grid.
Where the nodes s_i stand, the slopes k_0, ..., k_{i-1} of the stages before are at hand, and the
numbers of the next stage are those of least squares,

    min over a_i  Σ_rows |x_0 ± Σ_j a_ij k_j - x(s_i)|²,

so are the weights b of the end, and the weights w of the rates, whose target is the log-density
that the fine solve found: what b leaves over is in it. So a scheme costs its evaluations, once, and
nothing is trained. A handful of placements of the nodes is tried.

Adams and Bashforth's methods are of this kind, with numbers that are right for polynomials; these
are right for the paths at hand, first stages included, which have few slopes to go by.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cflows.continuous.bespoke import Scheme
from cflows.continuous.stages import RightHandSide

__all__ = ["FINE", "Paths", "fit_scheme"]

FINE = 64  # parts of the way at whose ends the true states are known
RIDGE = 1e-7  # of the mean square of the slopes, which are nearly parallel on smooth paths
BENDS = (1.0, 1.5)  # how much closer nodes stand at the start, with few slopes to go by
LASTS = (1.0, 0.9, 0.8)  # the last node


@dataclass(frozen=True)
class Paths:
    """Rows on their way through a field.

    Attributes:
        field: the velocity and the log-determinant's rate at times s, as a solver asks for them.
        states: at s = 0, 1 / FINE, ..., 1 of the way, (FINE + 1, N, D).
        span: the ends of s.
        told: x' (N, D) -> what the log-determinant should be where rows end there, (N,).

    """

    field: RightHandSide
    states: Tensor
    span: tuple[float, float]
    told: Callable[[Tensor], Tensor]


@torch.no_grad()
def fit_scheme(paths: Paths, stages: int) -> Scheme:
    """The scheme of so many stages whose errors over these rows are smallest.

    Args:
        paths: what it is to follow.
        stages: S, evaluations of a solve, at most FINE.

    """
    tried = (_fitted(paths, nodes) for nodes in _placements(stages))
    return min(tried, key=lambda result: result[0])[1]


def _placements(stages: int) -> Iterator[list[int]]:
    """Nodes as numbers of states."""
    found: list[list[int]] = []
    for bend in BENDS:
        for last in LASTS:
            nodes: list[int] = []
            for index in range(stages):
                place = round((index / max(1, stages - 1)) ** bend * last * FINE)
                nodes.append(max(place, nodes[-1] + 1) if nodes else 0)
            if nodes[-1] <= FINE and nodes not in found:
                found.append(nodes)
                yield nodes


def _fitted(paths: Paths, nodes: Sequence[int]) -> tuple[float, Scheme]:
    """The scheme with these nodes, and the mean square of its errors, of log p and of the end."""
    start, end = paths.states[0], paths.states[-1]
    sign = paths.span[1] - paths.span[0]
    c = torch.tensor(nodes, dtype=torch.float64) / FINE
    slopes: list[Tensor] = []
    rates: list[Tensor] = []
    a: list[tuple[float, ...]] = []
    for node, stage in zip(nodes, paths.field((paths.span[0] + sign * c).to(start)), strict=True):
        a.append(_least_squares(slopes, paths.states[node] - start))
        velocity, rate = stage(_sum(start, slopes, a[-1]))
        assert rate is not None
        slopes.append(sign * velocity)
        rates.append(sign * rate[:, 0])
    b = _least_squares(slopes, end - start)
    reached = _sum(start, slopes, b)
    told = paths.told(reached)
    w = _least_squares(rates, told)
    gap = _sum(-told, rates, w)
    error = float((gap.square() + (reached - end).square().sum(1)).mean())
    scheme = Scheme(tuple(c.tolist()), tuple(a), b, w)
    return (error if math.isfinite(error) else math.inf), scheme


def _sum(start: Tensor, slopes: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    for slope, weight in zip(slopes, weights, strict=True):
        start = start.add(slope, alpha=weight)
    return start


def _least_squares(parts: Sequence[Tensor], target: Tensor) -> tuple[float, ...]:
    """The weights of the parts whose sum comes nearest to the target."""
    if not parts:
        return ()
    matrix = torch.stack([part.double().flatten() for part in parts], dim=1)
    square = matrix.mT @ matrix
    square.diagonal().add_(RIDGE * square.diagonal().mean() + torch.finfo(torch.float64).tiny)
    return tuple(torch.linalg.solve(square, matrix.mT @ target.double().flatten()).tolist())
