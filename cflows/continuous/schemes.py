r"""Fitting a ``Scheme`` to the paths of one field, in closed form.

The states x(s_i) of rows on their true paths, and where these end, are known from a fine grid.
Where the nodes s_i stand, the slopes k_0, ..., k_{i-1} of the stages before are at hand, and the
numbers of the next stage are those of least squares,

    min over a_i  Σ_rows |x_0 ± Σ_j a_ij k_j - x(s_i)|²,

so are the weights b of the end, and the weights w of the rates, whose target is the log-density
that the fine solve found: what b leaves over is in it. So a scheme costs its evaluations, once, and
nothing is trained. A handful of placements of the nodes is tried.

The trace is the dear part of a slope, and its integral asks for other nodes than the path does.
The rates at all the fine states say which few of them tell the log-determinant best, as a Gauss
rule's nodes do of polynomials; the stages that are added for the path's sake have no trace.

Adams and Bashforth's methods are of this kind, with numbers that are right for polynomials; these
are right for the paths at hand, first stages included, which have few slopes to go by.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from cflows.continuous.bespoke import Scheme
from cflows.continuous.stages import RightHandSide

__all__ = ["FINE", "Paths", "best_nodes", "fit_scheme"]

FINE = 64  # parts of the way at whose ends the true states are known
RIDGE = 1e-7  # of the mean square of the slopes, which are nearly parallel on smooth paths
# How much closer nodes stand at the start, with few slopes to go by, or, below 1, at the end,
# where a path to the data bends.
BENDS = (1.0, 1.5, 0.8)
LASTS = (1.0, 0.9, 0.8)  # the last node
FINALISTS = 2  # placements whose gaps are measured, of those that are tried
STARTS = 3  # sets of nodes from which an exchange begins

Equations = tuple[Tensor, Tensor]


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

    @cached_property
    def quadrature(self) -> Equations:
        """G (FINE + 1, FINE + 1) and r (FINE + 1,) of the rates at the true states."""
        sign = self.span[1] - self.span[0]
        times = self.span[0] + sign * torch.arange(FINE + 1, dtype=torch.float64) / FINE
        rates = []
        for stage, state in zip(self.field(times.to(self.states)), self.states, strict=True):
            rate = stage(state)[1]
            assert rate is not None
            rates.append(sign * rate[:, 0])
        return _normal_equations(rates, self.told(self.states[-1]))


@torch.no_grad()
def fit_scheme(paths: Paths, stages: int, traces: int | None = None) -> Scheme:
    """The scheme of so many stages whose errors over these rows are smallest.

    Args:
        paths: what it is to follow.
        stages: S, evaluations of a solve, at most FINE.
        traces: stages with a trace, fewer than S; None for all of them.

    """
    told = paths.told(paths.states[-1]).double()
    best = best_nodes(*paths.quadrature, traces) if traces else None
    tried = []
    for nodes in _placements(stages):
        traced = nodes if best is None else best
        nodes = nodes if best is None else _moved(nodes, best)
        # The gap that the true states at these nodes would leave.
        missed = float(told.square().sum()) - _explained(*paths.quadrature, [traced])[0]
        error, _ = _fitted(paths, nodes, ())
        tried.append((error + missed / len(told), nodes, traced))
    tried.sort(key=lambda result: result[0])
    finalists = (_fitted(paths, nodes, traced) for _, nodes, traced in tried[:FINALISTS])
    return min(finalists, key=lambda result: result[0])[1]


def _placements(stages: int) -> Iterator[list[int]]:
    """Nodes as numbers of states."""
    found: list[list[int]] = []
    for bend in BENDS:
        for last in LASTS:
            nodes: list[int] = []
            for index in range(stages):
                part = index / max(1, stages - 1)
                part = part**bend if bend >= 1 else 1 - (1 - part) ** (1 / bend)
                nodes.append(max(round(part * last * FINE), nodes[-1] + 1) if nodes else 0)
            if nodes[-1] <= FINE and nodes not in found:
                found.append(nodes)
                yield nodes


def _moved(nodes: Sequence[int], targets: Sequence[int]) -> list[int]:
    """The nodes, after the first, the nearest of which move to the targets."""
    left = [node for node in nodes[1:] if node not in targets]
    for target in targets:
        if target not in nodes and left:
            left.remove(min(left, key=lambda node: abs(node - target)))
    return sorted({nodes[0], *targets, *left})


def best_nodes(square: Tensor, moments: Tensor, count: int) -> list[int]:
    """The parts of a sum by which least squares comes nearest, in their order.

    The parts that are missed least are left out one by one: of weights w = G⁻¹ r it is the one with
    the least w_i² / (G⁻¹)_ii, which is what the sum of squares rises by. From there, and from the
    placements that schemes try, parts are exchanged one for another as long as that helps.

    Args:
        square: G, normal equations of all parts, (FINE + 1, FINE + 1).
        moments: r, (FINE + 1,).
        count: of those that stay.

    """
    kept = list(range(len(moments)))
    while len(kept) > count:
        inverse = square[kept][:, kept].inverse()
        rise = (inverse @ moments[kept]).square() / inverse.diagonal()
        del kept[int(rise.argmin())]
    starts = [kept, *_placements(count)]
    order = torch.tensor(_explained(square, moments, starts)).argsort(descending=True)
    ends = [_exchanged(square, moments, starts[index]) for index in order[:STARTS].tolist()]
    return max(ends)[1]


def _exchanged(square: Tensor, moments: Tensor, kept: list[int]) -> tuple[float, list[int]]:
    """What is explained when no exchange of one part for another explains more, and by which."""
    (explained,) = _explained(square, moments, [kept])
    while True:
        others = sorted(set(range(len(moments))) - set(kept))
        moves = [
            [*kept[:place], other, *kept[place + 1 :]]
            for place in range(len(kept))
            for other in others
        ]
        worth = _explained(square, moments, moves)
        best = max(range(len(moves)), key=worth.__getitem__)
        if not worth[best] > explained * (1 + 1e-12):
            return explained, sorted(kept)
        kept, explained = moves[best], worth[best]


def _explained(square: Tensor, moments: Tensor, choices: Sequence[Sequence[int]]) -> list[float]:
    """By how much least squares over each choice of parts lowers the sum of squares."""
    chosen = torch.tensor(choices, device=moments.device)
    r = moments[chosen].unsqueeze(2)
    g = square[chosen.unsqueeze(2), chosen.unsqueeze(1)]
    worth: list[float] = (torch.linalg.solve(g, r) * r).sum((1, 2)).tolist()
    return worth


def _fitted(paths: Paths, nodes: Sequence[int], traced: Sequence[int]) -> tuple[float, Scheme]:
    """The scheme with these nodes, and the mean square of its errors, of log p and of the end.

    Args:
        paths: what it is to follow.
        nodes: as numbers of states.
        traced: those with a trace; of none, the error is that of the end.

    """
    start, end = paths.states[0], paths.states[-1]
    sign = paths.span[1] - paths.span[0]
    c = torch.tensor(nodes, dtype=torch.float64) / FINE
    slopes: list[Tensor] = []
    rates: list[Tensor] = []
    a: list[tuple[float, ...]] = []
    for node, stage in zip(nodes, paths.field((paths.span[0] + sign * c).to(start)), strict=True):
        a.append(_least_squares(slopes, paths.states[node] - start))
        velocity, rate = stage(_sum(start, slopes, a[-1]), node in traced)
        slopes.append(sign * velocity)
        rates += [] if rate is None else [sign * rate[:, 0]]
    b = _least_squares(slopes, end - start)
    reached = _sum(start, slopes, b)
    errors = (reached - end).square().sum(1)
    weights: Iterator[float] = iter(())
    if traced:
        told = paths.told(reached)
        found = _least_squares(rates, told)
        errors += _sum(-told, rates, found).square()
        weights = iter(found)
    w = tuple(next(weights) if node in traced else 0.0 for node in nodes)
    error = float(errors.mean())
    return (error if math.isfinite(error) else math.inf), Scheme(tuple(c.tolist()), tuple(a), b, w)


def _sum(start: Tensor, slopes: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    for slope, weight in zip(slopes, weights, strict=True):
        start = start.add(slope, alpha=weight)
    return start


def _least_squares(parts: Sequence[Tensor], target: Tensor) -> tuple[float, ...]:
    """The weights of the parts whose sum comes nearest to the target."""
    if not parts:
        return ()
    return tuple(torch.linalg.solve(*_normal_equations(parts, target)).tolist())


def _normal_equations(parts: Sequence[Tensor], target: Tensor) -> tuple[Tensor, Tensor]:
    """G (S, S), with a ridge, and r (S,) of least squares: the weights are G⁻¹ r."""
    matrix = torch.stack([part.double().flatten() for part in parts], dim=1)
    square = matrix.mT @ matrix
    square.diagonal().add_(RIDGE * square.diagonal().mean() + torch.finfo(torch.float64).tiny)
    return square, matrix.mT @ target.double().flatten()
