r"""Solving dx/ds = f(s, x) over s in [0, 1], with integrals along the path.

The state of a solve is x (N, D) together with integrals q (N, m), dq/ds = g(s, x), which do not
feed back: the log-determinant is one of them. Four specifications say how:

``Adaptive`` hands the system to torchdiffeq, whose step control holds a tolerance at every step.
``FixedGrid`` is a short loop of its own: in training, the Python and the host synchronisations of
an adaptive step cost more than the network. A fixed grid says nothing of its error, though, and a
field that learns grows stiff. So ``Lagged`` runs the same loop, keeps the embedded estimate of its
error on the device, and lets it choose the number of steps of the next solve. ``Bespoke`` runs the
loop once, on stages that were fitted to the paths of one field.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from cflows.continuous.adaptive import Adaptive, System
from cflows.continuous.bespoke import Bespoke
from cflows.continuous.stages import RightHandSide, Slope, SolverError, SolveStats, Stage
from cflows.continuous.tableaus import TABLEAUS, Tableau
from cflows.core.arguments import known
from cflows.core.bijector import exported, transformed
from cflows.core.registry import register

__all__ = [
    "GRADIENTS",
    "SIZES",
    "Adaptive",
    "Bespoke",
    "FixedGrid",
    "Lagged",
    "Solver",
    "SolverError",
    "solve",
]

SIZES = (2, 4, 6, 8, 12, 16, 24, 32)
GRADIENTS = ("backprop", "checkpoint", "adjoint")


@register
@dataclass(frozen=True)
class FixedGrid:
    """Equal steps of an explicit Runge-Kutta method: no error control, no host synchronisation.

    Args:
        method: ``"midpoint"`` (order 2), ``"bosh3"`` (3), ``"rk4"``, ``"rk4_38"`` (4) or
            ``"dopri5"`` (5).
        steps: the number of steps over [0, 1].

    Example:
        >>> from cflows import FixedGrid
        >>> FixedGrid("rk4", steps=8).tightened(16)  # half the step, a sixteenth of the error
        FixedGrid(method='rk4', steps=16)

    """

    method: str = "rk4"
    steps: int = 8

    def __post_init__(self) -> None:
        known("method", self.method, TABLEAUS)
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")

    def tightened(self, factor: float = 10.0) -> FixedGrid:
        """The same on as many steps as make its error about ``factor`` times smaller."""
        ratio = factor ** (1 / TABLEAUS[self.method].order)
        return FixedGrid(self.method, max(self.steps + 1, round(self.steps * ratio)))


@register
@dataclass(frozen=True)
class Lagged:
    """A fixed grid whose number of steps follows the error of the solve before.

    The error of a solve is the sum over its steps of the embedded estimates, for x (root mean
    square over D) and for each integral, relative to 1 + |y|; a row's is the largest of these, and
    what counts is the 99 % quantile over rows. It stays on the device until the next solve begins,
    or until ``review`` asks for it. The next solve takes the fewest steps out of ``SIZES`` that
    keep half the tolerance (the largest: all of it); beyond the largest it is solved adaptively at
    the tolerance, and ``SolveStats.status`` and a warning say so.

    Args:
        method: ``"dopri5"``, ``"bosh3"`` or ``"rk4"``, the pairs that have an estimate.
        tolerance: of the error above.

    Example:
        >>> from cflows import Lagged
        >>> solver = Lagged("rk4", tolerance=1e-3)
        >>> solver.steps_for(error=1e-5, steps=8), solver.steps_for(error=1e-2, steps=8)
        (4, 24)

    """

    method: str = "dopri5"
    tolerance: float = 1e-3

    def __post_init__(self) -> None:
        known("method", self.method, [name for name, tableau in TABLEAUS.items() if tableau.e])
        if not 0 < self.tolerance < math.inf:
            raise ValueError(f"tolerance must be positive and finite, got {self.tolerance}")

    def tightened(self, factor: float = 10.0) -> Lagged:
        """The same with a tolerance smaller by ``factor``."""
        return replace(self, tolerance=self.tolerance / factor)

    def steps_for(self, error: float, steps: int) -> int:
        """The steps of the next solve, after one of ``steps`` (0: adaptive) with this error.

        0 stands for an adaptive solve. One that was adaptive comes back to the largest grid.
        """
        if steps == 0:
            return SIZES[-1]
        if not math.isfinite(error):
            return 0
        order = TABLEAUS[self.method].estimate
        for size in SIZES:
            # Half the tolerance, since a field grows stiffer; the largest grid has no room to give.
            room = self.tolerance if size == SIZES[-1] else self.tolerance / 2
            if error * (steps / size) ** order <= room:
                return size
        return 0


Solver = Adaptive | Bespoke | FixedGrid | Lagged


def solve(
    rhs: RightHandSide,
    x: Tensor,
    solver: Solver,
    *,
    integrals: int,
    span: tuple[float, float] = (0.0, 1.0),
    steps: int = SIZES[3],
    gradient: str = "backprop",
    parameters: Sequence[tuple[Tensor, Tensor]] = (),
    stats: SolveStats | None = None,
) -> tuple[Tensor, Tensor | None, SolveStats]:
    """Integrate from one end of a span of s to the other.

    Args:
        rhs: the velocity and the rates, see ``RightHandSide``.
        x: the state at the start, (N, D).
        solver: how.
        integrals: m; 0 where rhs returns None. The first is held to the tolerance like x; the
            others ride along.
        span: (a, b); with a > b the path is run backwards, and the integrals are ∫_a^b as written.
        steps: of a ``Lagged`` solve; 0 for an adaptive one.
        gradient: ``"backprop"`` through the steps; ``"checkpoint"``, the same with each step of a
            grid computed again on the way back, which keeps memory flat; ``"adjoint"``, a second
            adaptive solve backwards (Chen et al. 2018), with a seminorm (Kidger et al. 2021).
        parameters: the tensors whose gradient the adjoint is to find, each with what ``rhs`` reads
            in its place: itself, or a detached copy where it depends on another of them.
        stats: where to write what was done, also where the solve fails; by default a new one.

    Returns:
        x at the end (N, D); the integrals (N, m) or None; what was done.

    Raises:
        SolverError: the state is not finite, the steps vanished, or max_nfe was passed.
        RuntimeError: an adaptive solve within a torch.func transform or torch.export.

    """
    stats = SolveStats() if stats is None else stats
    if x.shape[0] == 0:
        return x, x.new_zeros(0, integrals) if integrals else None, stats
    if isinstance(solver, Lagged) and steps == 0:
        solver = Adaptive("dopri5", solver.tolerance, solver.tolerance)
        stats.status = "adaptive"
    if isinstance(solver, Adaptive):
        if transformed() or exported():
            raise RuntimeError(
                "an adaptive solve looks at its values, which torch.func transforms and "
                "torch.export do not show it: build the flow with a FixedGrid solver, or call it "
                'under flow.using(solver=FixedGrid("dopri5", 16))'
            )
        system = System(rhs, x.shape[1], integrals, solver, span, stats)
        y = torch.cat([x, x.new_zeros(len(x), integrals)], dim=1) if integrals else x
        y = system.solved(y, parameters, gradient == "adjoint")
        return y[:, : x.shape[1]], y[:, x.shape[1] :] if integrals else None, stats
    # What estimates the error of many solves at once would outlive the transform.
    estimates = isinstance(solver, Lagged) and not (transformed() or exported())
    if isinstance(solver, Bespoke):
        tableau, steps = solver.scheme(span, integrals > 0).tableau, 1
    else:
        tableau = TABLEAUS[solver.method]
        steps = solver.steps if isinstance(solver, FixedGrid) else steps
    recompute = gradient == "checkpoint" and torch.is_grad_enabled()
    x, total = _on_grid(rhs, x, tableau, steps, span, stats, estimates, recompute)
    if total is None and integrals:  # of weights that are all zero
        total = x.new_zeros(len(x), integrals)
    return x, total, stats


def _on_grid(
    rhs: RightHandSide,
    x: Tensor,
    tableau: Tableau,
    steps: int,
    span: tuple[float, float],
    stats: SolveStats,
    estimates: bool,
    recompute: bool,
) -> tuple[Tensor, Tensor | None]:
    """A loop over equal steps; all that is known beforehand stays on the Python side."""
    h = (span[1] - span[0]) / steps
    times = [span[0] + (k + c) * h for k in range(steps) for c in tableau.c]
    times += [span[1]] if estimates else []
    # One transfer for the whole solve.
    stages = iter(rhs(torch.tensor(times, dtype=x.dtype, device=x.device)))
    total: Tensor | None = None
    estimate = _Estimate(tableau.e, h) if estimates else None
    for _ in range(steps):
        step = [next(stages) for _ in tableau.c]
        if recompute:
            x, gained, slopes = checkpoint(
                _stepped,
                tableau,
                h,
                step,
                x,
                estimates,
                use_reentrant=False,
                preserve_rng_state=False,
            )
            # Kept for the estimate alone: with a graph they would hold the step's memory.
            slopes = [(v.detach(), None if r is None else r.detach()) for v, r in slopes]
        else:
            x, gained, slopes = _stepped(tableau, h, step, x, estimates)
        if gained is not None:
            total = gained if total is None else total + gained
        if estimate is not None:
            estimate.add(slopes)
    stats.nfe, stats.accepted = len(times), steps
    if estimate is not None:
        with torch.no_grad():
            estimate.close(next(stages)(x))
            stats.error = estimate.of_solve(x, total)
    return x, total


def _stepped(
    tableau: Tableau, h: float, stages: list[Stage], x: Tensor, estimates: bool
) -> tuple[Tensor, Tensor | None, list[Slope]]:
    """The state after a step, what it adds to the integrals, and its slopes.

    Rates, the dear part of a slope, are asked for where they have a weight.
    """
    slopes: list[Slope] = []
    weights = tableau.w or tableau.b
    asked = tableau.e if estimates else (0.0,) * len(weights)
    for stage, earlier, *own in zip(stages, tableau.a, weights, asked, strict=False):
        slopes.append(stage(_advanced(x, slopes, earlier, h), any(own)))
    gained = _combined([rate for _, rate in slopes], weights, h)
    return _advanced(x, slopes, tableau.b, h), gained, slopes


@dataclass
class _Estimate:
    """The embedded error of a solve, a step behind: it waits for the slope of the step's end."""

    weights: tuple[float, ...]
    h: float
    open: list[Slope] = field(default_factory=list)
    errors: list[Tensor] = field(default_factory=list)
    """Of x and, where there is one, of the first integral, (N,)."""

    @torch.no_grad()
    def add(self, slopes: list[Slope]) -> None:
        """Take a step's slopes; the first of them closes the step before."""
        if self.open:
            self.close(slopes[0])
        self.open = slopes

    @torch.no_grad()
    def close(self, end: Slope) -> None:
        """Add the errors of the open step, given the slope of its end."""
        slopes = [*self.open, end]
        velocity = _combined([slope for slope, _ in slopes], self.weights, self.h)
        rates = [None if rate is None else rate[:, 0] for _, rate in slopes]
        rate = _combined(rates, self.weights, self.h)
        assert velocity is not None
        errors = [velocity.square().mean(1).sqrt(), *([] if rate is None else [rate.abs()])]
        self.errors = (
            [a + b for a, b in zip(self.errors, errors, strict=True)] if self.errors else errors
        )

    def of_solve(self, x: Tensor, total: Tensor | None) -> Tensor:
        """The 99 % quantile over rows, not a number where any row is not one; a scalar."""
        sizes = [x.square().mean(1).sqrt(), *([] if total is None else [total[:, 0].abs()])]
        relative = [e / (1 + size) for e, size in zip(self.errors, sizes, strict=True)]
        error = relative[0] if total is None else torch.maximum(*relative)
        worst = error.topk(math.ceil(0.01 * error.shape[0])).values[-1]
        return worst + 0 * error.sum()


def _advanced(x: Tensor, slopes: list[Slope], weights: tuple[float, ...], h: float) -> Tensor:
    """x + h Σ_i weight_i velocity_i."""
    for (slope, _), weight in zip(slopes, weights, strict=True):
        if weight:
            x = x.add(slope, alpha=h * weight)
    return x


def _combined(
    slopes: Sequence[Tensor | None], weights: tuple[float, ...], h: float
) -> Tensor | None:
    """h Σ_i weight_i slope_i; None where no slope has a weight."""
    total: Tensor | None = None
    for slope, weight in zip(slopes, weights, strict=True):
        if weight and slope is not None:
            total = slope * (h * weight) if total is None else total.add(slope, alpha=h * weight)
    return total
