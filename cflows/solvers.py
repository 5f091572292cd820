r"""Solving dx/ds = f(s, x) over s in [0, 1], with integrals along the path.

The state of a solve is x (N, D) together with integrals q (N, m), dq/ds = g(s, x), which do not
feed back: the log-determinant is one of them. ``Adaptive`` hands the system to torchdiffeq, whose
step control holds a tolerance; ``FixedGrid`` is a short loop of its own for training, where the
Python and the host synchronisations of an adaptive step would cost more than the network.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .storage import register

__all__ = ["Adaptive", "FixedGrid", "SolveStats", "Solver", "SolverError", "solve"]

Stage = Callable[[Tensor], tuple[Tensor, Tensor | None]]
ADAPTIVE = ("dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun")

RightHandSide = Callable[[Tensor], list[Stage]]
"""Times (S,) -> S functions x -> (dx/ds (N, D), dq/ds (N, m) or None).

A grid asks for all its times at once, so that what depends on time alone is computed in one go.
"""


class SolverError(RuntimeError):
    """A solve that did not reach its end; the message names the time, the work and the remedy."""


@register
@dataclass(frozen=True)
class Adaptive:
    """Step control by torchdiffeq (Chen 2018), the error a maximum over rows.

    A step is accepted where, for every row on its own, the estimated error of x (root mean square
    over D) and of each integral is within atol + rtol |y|. So a row's answer does not depend on the
    rows beside it, beyond the tolerance.

    Args:
        method: ``"dopri5"``, or another name in ``ADAPTIVE``, torchdiffeq's adaptive methods.
        rtol: relative tolerance.
        atol: absolute tolerance.
        max_nfe: evaluations after which the solve ends in a SolverError.

    """

    method: str = "dopri5"
    rtol: float = 1e-5
    atol: float = 1e-5
    max_nfe: int = 20_000

    def __post_init__(self) -> None:
        if self.method not in ADAPTIVE:
            raise ValueError(f"method must be one of {', '.join(ADAPTIVE)}; got {self.method!r}")
        if min(self.rtol, self.atol) < 0 or self.rtol + self.atol <= 0 or self.max_nfe < 1:
            raise ValueError(f"tolerances and max_nfe must be positive: {self}")

    def tightened(self, factor: float = 10.0) -> Adaptive:
        """The same with tolerances smaller by ``factor``."""
        return Adaptive(self.method, self.rtol / factor, self.atol / factor, self.max_nfe)


@register
@dataclass(frozen=True)
class FixedGrid:
    """Equal steps of an explicit Runge-Kutta method: no error control, no host synchronisation.

    Args:
        method: ``"midpoint"`` (order 2) or ``"rk4"`` (order 4).
        steps: the number of steps over [0, 1].

    """

    method: str = "rk4"
    steps: int = 8

    def __post_init__(self) -> None:
        if self.method not in TABLEAUX:
            raise ValueError(f"method must be one of {', '.join(TABLEAUX)}; got {self.method!r}")
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")

    def tightened(self, factor: float = 10.0) -> FixedGrid:
        """The same method on as many steps as make its error about ``factor`` times smaller."""
        order = TABLEAUX[self.method].order
        return FixedGrid(
            self.method, max(self.steps + 1, round(self.steps * factor ** (1 / order)))
        )


Solver = Adaptive | FixedGrid


@dataclass
class SolveStats:
    """What a solve did.

    Attributes:
        nfe: evaluations of the right-hand side.
        status: ``"ok"``, or why it stopped.

    """

    nfe: int = 0
    status: str = "ok"


@dataclass(frozen=True)
class Tableau:
    """An explicit Runge-Kutta method: nodes c, lower-triangular stages a, weights b."""

    order: int
    c: tuple[float, ...]
    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]


TABLEAUX = {
    "midpoint": Tableau(2, (0.0, 1 / 2), ((), (1 / 2,)), (0.0, 1.0)),
    "rk4": Tableau(
        4,
        (0.0, 1 / 2, 1 / 2, 1.0),
        ((), (1 / 2,), (0.0, 1 / 2), (0.0, 0.0, 1.0)),
        (1 / 6, 1 / 3, 1 / 3, 1 / 6),
    ),
}


def solve(
    rhs: RightHandSide, x: Tensor, solver: Solver, *, integrals: int, reverse: bool = False
) -> tuple[Tensor, Tensor | None, SolveStats]:
    """Integrate from s = 0 to 1, or back from 1 to 0.

    Args:
        rhs: the velocity and the rates, see ``RightHandSide``.
        x: the state at the start, (N, D).
        solver: how.
        integrals: m; 0 where rhs returns None.
        reverse: whether to go from s = 1 to 0; the integrals then are ∫₁⁰, with that sign.

    Returns:
        x at the end (N, D); the integrals (N, m) or None; what was done.

    Raises:
        SolverError: the solve left the numbers, its steps vanished, or max_nfe was passed.

    """
    stats = SolveStats()

    if x.shape[0] == 0:
        return x, x.new_zeros(0, integrals) if integrals else None, stats
    if isinstance(solver, FixedGrid):
        end, total = _fixed_grid(rhs, x, solver, reverse, stats)
    else:
        end, total = _adaptive(rhs, x, solver, integrals, reverse, stats)
    return end, total, stats


def _fixed_grid(
    rhs: RightHandSide, x: Tensor, solver: FixedGrid, reverse: bool, stats: SolveStats
) -> tuple[Tensor, Tensor | None]:
    tableau, h = TABLEAUX[solver.method], 1.0 / solver.steps
    times = [(step + c) * h for step in range(solver.steps) for c in tableau.c]
    if reverse:
        times, h = [1.0 - time for time in times], -h
    # One transfer for the whole solve; the steps' sizes stay on the Python side.
    stages = iter(rhs(torch.tensor(times, dtype=x.dtype, device=x.device)))
    total: Tensor | None = None
    for _ in range(solver.steps):
        slopes: list[Tensor] = []
        for earlier, weight in zip(tableau.a, tableau.b, strict=True):
            slope, rate = next(stages)(_advance(x, slopes, earlier, h))
            slopes.append(slope)
            if rate is not None and weight:
                total = rate * (h * weight) if total is None else total.add(rate, alpha=h * weight)
        x = _advance(x, slopes, tableau.b, h)
    stats.nfe += len(times)
    return x, total


def _advance(x: Tensor, slopes: list[Tensor], weights: tuple[float, ...], h: float) -> Tensor:
    for slope, weight in zip(slopes, weights, strict=True):
        if weight:
            x = x.add(slope, alpha=h * weight)
    return x


def _adaptive(
    rhs: RightHandSide,
    x: Tensor,
    solver: Adaptive,
    integrals: int,
    reverse: bool,
    stats: SolveStats,
) -> tuple[Tensor, Tensor | None]:
    from torchdiffeq import odeint  # half a second of import, paid at the first adaptive solve

    features = x.shape[1]
    last: Tensor = x.new_zeros(())

    def system(u: Tensor, y: Tensor) -> Tensor:
        nonlocal last
        last = u
        if stats.nfe >= solver.max_nfe:
            raise _failure("max_nfe was reached", u, stats, solver, reverse)
        stats.nfe += 1
        # torchdiffeq runs upwards; backwards in s, u = 1 - s and the sign turns.
        (stage,) = rhs((1 - u if reverse else u).reshape(1))
        slope, rate = stage(y[:, :features])
        change = slope if rate is None else torch.cat([slope, rate], dim=1)
        return -change if reverse else change

    def norm(y: Tensor) -> Tensor:
        state = y[:, :features].square().mean(1).sqrt()
        return (
            torch.maximum(state, y[:, features:].abs().amax(1)).amax()
            if integrals
            else state.amax()
        )

    start = torch.cat([x, x.new_zeros(len(x), integrals)], dim=1) if integrals else x
    ends = torch.tensor([0.0, 1.0], dtype=x.dtype, device=x.device)
    # Without step_t the last step overshoots the end, and the answer is interpolated.
    options: dict[str, Any] = {"norm": norm, "step_t": ends[1:]}
    try:
        end = odeint(
            system, start, ends,
            rtol=solver.rtol, atol=solver.atol, method=solver.method, options=options,
        )[-1]  # fmt: skip
    except AssertionError as error:
        # torchdiffeq's way of saying that its step vanished, or left the numbers.
        raise _failure(f"the step vanished ({error})", last, stats, solver, reverse) from None
    return end[:, :features], end[:, features:] if integrals else None


def _failure(
    reason: str, u: Tensor, stats: SolveStats, solver: Adaptive, reverse: bool
) -> SolverError:
    stats.status = reason
    time = 1 - float(u) if reverse else float(u)
    return SolverError(
        f"{reason} at s = {time:.4g} of [0, 1] after {stats.nfe} evaluations ({solver}): the field "
        "is stiff or not finite there; train with a penalty or a smaller learning rate, check the "
        "inputs for outliers, or raise the tolerance or max_nfe"
    )
