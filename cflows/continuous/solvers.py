r"""Solving dx/ds = f(s, x) over s in [0, 1], with integrals along the path.

The state of a solve is x (N, D) together with integrals q (N, m), dq/ds = g(s, x), which do not
feed back: the log-determinant is one of them. Three specifications say how:

``Adaptive`` hands the system to torchdiffeq, whose step control holds a tolerance at every step.
``FixedGrid`` is a short loop of its own: in training, the Python and the host synchronisations of
an adaptive step cost more than the network. A fixed grid says nothing of its error, though, and a
field that learns grows stiff. So ``Lagged`` runs the same loop, keeps the embedded estimate of its
error on the device, and lets it choose the number of steps of the next solve.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from cflows.continuous.runge_kutta import Grid, RightHandSide, SolveStats
from cflows.continuous.tableaus import TABLEAUS
from cflows.core.bijector import exported, transformed
from cflows.core.first_order import first_order_only, refused
from cflows.core.messages import known
from cflows.core.registry import register

__all__ = [
    "ADAPTIVE",
    "FIXED_STEP",
    "GRADIENTS",
    "SIZES",
    "Adaptive",
    "FixedGrid",
    "Lagged",
    "SolveStats",
    "Solver",
    "SolverError",
    "solve",
]

ADAPTIVE = ("dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun")
FIXED_STEP = (
    "euler", "midpoint", "heun2", "heun3", "rk4", "explicit_adams", "implicit_adams",
    "fixed_adams",
)  # fmt: skip
SIZES = (2, 4, 6, 8, 12, 16, 24, 32)
GRADIENTS = ("backprop", "checkpoint", "adjoint")
ONCE = (
    "the gradient of an adjoint solve cannot be differentiated again: build the flow with "
    'gradient="backprop"'
)
NO_GRADIENT = (
    "a solve by scipy_solver cannot be differentiated: name a method of torchdiffeq's own, such as "
    'Adaptive("dopri5")'
)


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
        method: a name of torchdiffeq's registry: one of ``ADAPTIVE``; one of ``FIXED_STEP``, which
            takes steps of ``step_size`` and heeds no tolerance; or ``"scipy_solver"``, SciPy's
            LSODA on the CPU and without gradient.
        rtol: relative tolerance.
        atol: absolute tolerance.
        max_nfe: evaluations after which the solve ends in a SolverError.
        step_size: of the methods in ``FIXED_STEP``, as a part of [0, 1].

    Example:
        >>> from cflows import Adaptive
        >>> Adaptive("dopri5", rtol=1e-4, atol=1e-5).tightened(2).rtol
        5e-05

    """

    method: str = "dopri5"
    rtol: float = 1e-5
    atol: float = 1e-5
    max_nfe: int = 20_000
    step_size: float | None = None

    def __post_init__(self) -> None:
        known("method", self.method, (*ADAPTIVE, *FIXED_STEP, "scipy_solver"))
        if min(self.rtol, self.atol) < 0 or self.rtol + self.atol <= 0 or self.max_nfe < 1:
            raise ValueError(f"tolerances and max_nfe must be positive: {self}")
        if (self.step_size is not None) != (self.method in FIXED_STEP):
            raise ValueError(
                f"step_size is needed by {', '.join(FIXED_STEP)}, and by no other method: {self}"
            )
        if self.step_size is not None and not 0 < self.step_size <= 1:
            raise ValueError(f"step_size must lie in (0, 1], got {self.step_size}")

    def tightened(self, factor: float = 10.0) -> Adaptive:
        """The same with tolerances, or steps, smaller by ``factor``."""
        if self.step_size is not None:
            return replace(self, step_size=self.step_size / factor)
        return replace(self, rtol=self.rtol / factor, atol=self.atol / factor)


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


Solver = Adaptive | FixedGrid | Lagged


def solve(
    rhs: RightHandSide,
    x: Tensor,
    solver: Solver,
    *,
    integrals: int,
    span: tuple[float, float] = (0.0, 1.0),
    steps: int = SIZES[3],
    gradient: str = "backprop",
    parameters: Sequence[Tensor] = (),
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
        parameters: the tensors whose gradient the adjoint is to find.
        stats: where to write what was done, also where the solve fails; by default a new one.

    Returns:
        x at the end (N, D); the integrals (N, m) or None; what was done.

    Raises:
        SolverError: the solve left the numbers, its steps vanished, or max_nfe was passed.
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
        system = _System(rhs, x.shape[1], integrals, solver, span, stats)
        y = torch.cat([x, x.new_zeros(len(x), integrals)], dim=1) if integrals else x
        y = system.solved(y, parameters, gradient == "adjoint")
        x, total = y[:, : x.shape[1]], y[:, x.shape[1] :] if integrals else None
    else:
        lagged = isinstance(solver, Lagged)
        count = steps if lagged else solver.steps  # type: ignore[union-attr]
        # What estimates the error of many solves at once would outlive the transform.
        estimates = lagged and not (transformed() or exported())
        grid = Grid(TABLEAUS[solver.method], count, span, estimates, stats)
        x, total = grid.solved(rhs, x, recompute=gradient == "checkpoint")
    return x, total, stats


class _System:
    """The state and its integrals as one tensor (N, D + m), as torchdiffeq takes it."""

    def __init__(
        self,
        rhs: RightHandSide,
        features: int,
        integrals: int,
        solver: Adaptive,
        span: tuple[float, float],
        stats: SolveStats,
    ) -> None:
        self.rhs, self.features, self.integrals = rhs, features, integrals
        self.solver, self.start, self.length = solver, span[0], span[1] - span[0]
        self.stats = stats
        self.backward = False
        self.last: Tensor | None = None

    def __call__(self, u: Tensor, y: Tensor) -> Tensor:
        """dy/du with s = a + (b - a) u: torchdiffeq always runs upwards, over u in [0, 1]."""
        self.last = u
        if self.stats.nfe + self.stats.nfe_backward >= self.solver.max_nfe:
            raise self._failure("max_nfe was reached")
        if self.backward:
            self.stats.nfe_backward += 1
        else:
            self.stats.nfe += 1
        (stage,) = self.rhs((self.start + self.length * u).reshape(1))
        slope, rate = stage(y[:, : self.features])
        return self.length * (slope if rate is None else torch.cat([slope, rate], dim=1))

    def _count_steps(self) -> None:
        """Have torchdiffeq tell of each step; methods of fixed steps warn of such a wish."""

        def accept(*_: Any) -> None:
            self.stats.accepted += 1

        def reject(*_: Any) -> None:
            self.stats.rejected += 1

        self.callback_accept_step, self.callback_reject_step = accept, reject

    def norm(self, y: Tensor) -> Tensor:
        """The largest row: root mean square of the state, magnitude of the first integral."""
        state = y[:, : self.features].square().mean(1).sqrt()
        if not self.integrals:
            return state.amax()
        return torch.maximum(state, y[:, self.features].abs()).amax()

    def solved(self, y: Tensor, parameters: Sequence[Tensor], adjoint: bool) -> Tensor:
        """Y at u = 1, from y at u = 0, with a gradient in y and in the parameters."""
        from torchdiffeq import odeint, odeint_adjoint  # half a second, at the first such solve

        solver = self.solver
        ends = torch.tensor([0.0, 1.0], dtype=y.dtype, device=y.device)
        options: dict[str, Any] = {"norm": self.norm}
        if solver.method in ADAPTIVE:
            # Without it the last step overshoots the end, and the answer is interpolated.
            options["step_t"] = ends[1:]
            self._count_steps()
        elif solver.method in FIXED_STEP:
            # Adams methods of the default order, 12, are unstable at any step worth taking.
            options = {"step_size": solver.step_size}
            options |= {"max_order": 4} if "adams" in solver.method else {}
        else:
            options = {"solver": "LSODA"}
        settings: dict[str, Any] = {
            "rtol": solver.rtol, "atol": solver.atol, "method": solver.method, "options": options,
        }  # fmt: skip
        method: Callable[..., Tensor] = odeint
        needed = [p for p in parameters if p.requires_grad]
        if adjoint:
            settings["adjoint_params"] = tuple(needed)
            back = {"step_t": ends[:1]} if solver.method in ADAPTIVE else options
            settings["adjoint_options"] = back | {"norm": "seminorm"}
            method = odeint_adjoint
        try:
            if adjoint and torch.is_grad_enabled():
                end: Tensor = _Adjoint.apply(  # type: ignore[no-untyped-call]
                    lambda y: method(self, y, ends, **settings)[-1], y, *needed
                )
            else:
                end = method(self, y, ends, **settings)[-1]
        except AssertionError as error:
            # torchdiffeq's way of saying that its step vanished, or left the numbers.
            raise self._failure(f"the step vanished ({error})") from None
        self.backward = True
        if solver.method == "scipy_solver" and torch.is_grad_enabled():
            return refused([end.detach()], [y, *needed], NO_GRADIENT)[0]
        return end

    def _failure(self, reason: str) -> SolverError:
        self.stats.status = reason
        u = 0.0 if self.last is None else float(self.last.detach())
        return SolverError(
            f"{reason} at s = {self.start + self.length * u:.4g} of [0, 1] after "
            f"{self.stats.nfe + self.stats.nfe_backward} evaluations ({self.solver}): the field is "
            "stiff or not finite there; train with a penalty or a smaller learning rate, check the "
            "inputs for outliers, or raise the tolerance or max_nfe"
        )


class _Adjoint(torch.autograd.Function):
    """A solve with a backward pass of its own, kept apart so that a second one is refused."""

    @staticmethod
    def forward(
        ctx: Any, solve: Callable[[Tensor], Tensor], y: Tensor, *parameters: Tensor
    ) -> Tensor:
        with torch.enable_grad():
            ctx.start = y.detach().requires_grad_()
            ctx.end = solve(ctx.start)
        ctx.save_for_backward(y, *parameters)
        return ctx.end.detach()  # type: ignore[no-any-return]

    @staticmethod
    @first_order_only(ONCE)
    def backward(ctx: Any, gradient: Tensor) -> Any:
        inputs = (ctx.start, *ctx.saved_tensors[1:])
        found = torch.autograd.grad(ctx.end, inputs, gradient, retain_graph=True, allow_unused=True)
        return None, *found
