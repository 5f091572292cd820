"""A loop over equal steps of an explicit Runge-Kutta method, with the estimate of its error."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from cflows.continuous.tableaus import Tableau

__all__ = ["Estimate", "Grid", "RightHandSide", "Slope", "SolveStats", "Stage"]

Stage = Callable[[Tensor], tuple[Tensor, Tensor | None]]
Slope = tuple[Tensor, Tensor | None]
RightHandSide = Callable[[Tensor], Iterable[Stage]]
"""Times (S,) -> S functions x -> (dx/ds (N, D), dq/ds (N, m) or None).

A grid asks for all its times at once, so that what depends on time alone is computed in one go.
"""


@dataclass
class SolveStats:
    """What a solve did.

    Attributes:
        nfe: evaluations of the right-hand side.
        nfe_backward: those of the adjoint's solve; backpropagation needs none.
        accepted: steps taken.
        rejected: steps tried and thrown away.
        error: the estimate of ``Lagged``, a scalar on the device; None for others.
        status: ``"ok"``, ``"adaptive"`` where ``Lagged`` gave up its grids, or why it stopped.

    Example:
        >>> import torch
        >>> from cflows import MLP, FixedGrid, ODEBijector
        >>> flow = ODEBijector(MLP(2), evaluation_solver=FixedGrid("rk4", steps=8)).eval()
        >>> _ = flow(torch.zeros(1, 2))
        >>> flow.stats.nfe, flow.stats.status
        (32, 'ok')

    """

    nfe: int = 0
    nfe_backward: int = 0
    accepted: int = 0
    rejected: int = 0
    error: Tensor | None = None
    status: str = "ok"


class Grid:
    """A loop over equal steps; all that is known beforehand stays on the Python side."""

    def __init__(
        self,
        tableau: Tableau,
        steps: int,
        span: tuple[float, float],
        estimates: bool,
        stats: SolveStats,
    ) -> None:
        self.tableau, self.steps, self.estimates, self.stats = tableau, steps, estimates, stats
        self.h = (span[1] - span[0]) / steps
        self.times = [span[0] + (k + c) * self.h for k in range(steps) for c in tableau.c]
        if estimates:
            self.times.append(span[1])

    def solved(
        self, rhs: RightHandSide, x: Tensor, *, recompute: bool
    ) -> tuple[Tensor, Tensor | None]:
        """X at the end and the integrals; the error's estimate goes into the statistics."""
        # One transfer for the whole solve.
        stages = iter(rhs(torch.tensor(self.times, dtype=x.dtype, device=x.device)))
        total: Tensor | None = None
        estimate = Estimate(self.tableau, self.h) if self.estimates else None
        for _ in range(self.steps):
            here = [next(stages) for _ in self.tableau.c]
            if recompute and torch.is_grad_enabled():
                x, gained, slopes = _checkpointed(self._step, here, x)
            else:
                x, gained, slopes = self._step(here, x)
            if gained is not None:
                total = gained if total is None else total + gained
            if estimate is not None:
                estimate.add(slopes)
        self.stats.nfe = len(self.times)
        self.stats.accepted = self.steps
        if estimate is not None:
            with torch.no_grad():
                estimate.close(next(stages)(x))
                self.stats.error = estimate.of_solve(x, total)
        return x, total

    def _step(self, stages: list[Stage], x: Tensor) -> tuple[Tensor, Tensor | None, list[Slope]]:
        slopes: list[Slope] = []
        for stage, earlier in zip(stages, self.tableau.a, strict=True):
            slopes.append(stage(advance(x, slopes, earlier, self.h)))
        rates = [rate for _, rate in slopes]
        gained = None if rates[0] is None else combine(rates, self.tableau.b, self.h)
        return advance(x, slopes, self.tableau.b, self.h), gained, slopes


class Estimate:
    """The embedded error of a solve, a step behind: it waits for the slope of the step's end."""

    def __init__(self, tableau: Tableau, h: float) -> None:
        self.weights, self.h = tableau.e, h
        self.open: list[Slope] = []
        self.x: Tensor | None = None
        self.total: Tensor | None = None

    @torch.no_grad()
    def add(self, slopes: list[Slope]) -> None:
        """Take a step's slopes; the first of them closes the step before."""
        if self.open:
            self.close(slopes[0])
        self.open = slopes

    @torch.no_grad()
    def close(self, end: Slope) -> None:
        """Add the errors of the open step, given the slope of its end."""
        velocities, rates = ([slope[k] for slope in [*self.open, end]] for k in (0, 1))
        error = combine(velocities, self.weights, self.h).square().mean(1).sqrt()
        self.x = error if self.x is None else self.x + error
        if rates[0] is not None:
            error = combine([r[:, 0] for r in rates if r is not None], self.weights, self.h).abs()
            self.total = error if self.total is None else self.total + error

    def of_solve(self, x: Tensor, total: Tensor | None) -> Tensor:
        """The 99 % quantile over rows, not a number where any row is not one; a scalar."""
        assert self.x is not None
        error = self.x / (1 + x.square().mean(1).sqrt())
        if self.total is not None and total is not None:
            error = torch.maximum(error, self.total / (1 + total[:, 0].abs()))
        worst = error.topk(math.ceil(0.01 * error.shape[0])).values[-1]
        return worst + 0 * error.sum()


def _checkpointed(
    step: Callable[..., tuple[Tensor, Tensor | None, list[Slope]]], *arguments: Any
) -> tuple[Tensor, Tensor | None, list[Slope]]:
    result: tuple[Tensor, Tensor | None, list[Slope]] = checkpoint(
        step, *arguments, use_reentrant=False, preserve_rng_state=False
    )
    x, gained, slopes = result
    # Kept for the estimate alone: with a graph they would hold the step's memory.
    return x, gained, [(v.detach(), None if r is None else r.detach()) for v, r in slopes]


def advance(x: Tensor, slopes: Sequence[Slope], weights: tuple[float, ...], h: float) -> Tensor:
    """x + h Σ_i weight_i velocity_i."""
    for (slope, _), weight in zip(slopes, weights, strict=True):
        if weight:
            x = x.add(slope, alpha=h * weight)
    return x


def combine(slopes: Sequence[Tensor | None], weights: tuple[float, ...], h: float) -> Tensor:
    """h Σ_i weight_i slope_i."""
    terms = [(s, h * w) for s, w in zip(slopes, weights, strict=True) if w and s is not None]
    total = terms[0][0] * terms[0][1]
    for slope, weight in terms[1:]:
        total = total.add(slope, alpha=weight)
    return total
