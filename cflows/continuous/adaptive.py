"""Solves by torchdiffeq, whose step control holds a tolerance at every step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch._functorch import config as functorch

from cflows.continuous.stages import RightHandSide, SolverError, SolveStats
from cflows.core.arguments import known
from cflows.core.first_order import first_order_only, refused
from cflows.core.registry import register

__all__ = ["ADAPTIVE", "FIXED_STEP", "Adaptive", "System"]

ADAPTIVE = ("dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun")
ADAMS = ("explicit_adams", "implicit_adams", "fixed_adams")
FIXED_STEP = ("euler", "midpoint", "heun2", "heun3", "rk4", *ADAMS)
ONCE = (
    "the gradient of an adjoint solve cannot be differentiated again: build the flow with "
    'gradient="backprop"'
)
NO_GRADIENT = (
    "a solve by scipy_solver cannot be differentiated: name a method of torchdiffeq's own, such as "
    'Adaptive("dopri5")'
)


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


@dataclass(eq=False)
class System:
    """The state and its integrals as one tensor (N, D + m), as torchdiffeq takes it.

    Attributes:
        rhs: the velocity and the rates.
        features: D.
        integrals: m; the first is held to the tolerance like x.
        solver: how.
        span: the ends of s.
        stats: where to write what was done.

    """

    rhs: RightHandSide
    features: int
    integrals: int
    solver: Adaptive
    span: tuple[float, float]
    stats: SolveStats
    _last: Tensor | None = None
    _backward: bool = False

    def __call__(self, u: Tensor, y: Tensor) -> Tensor:
        """dy/du with s = a + (b - a) u: torchdiffeq always runs upwards, over u in [0, 1]."""
        length = self.span[1] - self.span[0]
        self._last = self.span[0] + length * u
        if self.stats.nfe + self.stats.nfe_backward >= self.solver.max_nfe:
            raise self._failure("max_nfe was reached")
        if self._backward:
            self.stats.nfe_backward += 1
        else:
            self.stats.nfe += 1
        (stage,) = self.rhs(self._last.reshape(1))
        slope, rate = stage(y[:, : self.features])
        return length * (slope if rate is None else torch.cat([slope, rate], dim=1))

    def norm(self, y: Tensor) -> Tensor:
        """The largest row: root mean square of the state, magnitude of the first integral."""
        state = y[:, : self.features].square().mean(1).sqrt()
        if not self.integrals:
            return state.amax()
        return torch.maximum(state, y[:, self.features].abs()).amax()

    def solved(
        self, y: Tensor, parameters: Sequence[tuple[Tensor, Tensor]], adjoint: bool
    ) -> Tensor:
        """y at u = 1 (N, D + m), from y at u = 0, with a gradient in it and in the parameters."""
        from torchdiffeq import odeint, odeint_adjoint  # half a second, at the first such solve

        solver = self.solver
        ends = torch.tensor([0.0, 1.0], dtype=y.dtype, device=y.device)
        back: dict[str, object]
        if solver.method in ADAPTIVE:
            # Without it the last step overshoots the end, and the answer is interpolated.
            options = {"norm": self.norm, "step_t": ends[1:]}
            back = {"step_t": ends[:1]}
            self._count_steps()
        else:
            options = {"step_size": solver.step_size} if solver.step_size else {"solver": "LSODA"}
            # Adams methods of the default order, 12, are unstable at any step worth taking.
            options |= {"max_order": 4} if solver.method in ADAMS else {}
            back = options
        settings = {"rtol": solver.rtol, "atol": solver.atol, "method": solver.method}
        settings["options"] = options
        method: Callable[..., Tensor] = odeint
        needed = [outer for outer, _ in parameters if outer.requires_grad]
        leaves = tuple(leaf for outer, leaf in parameters if outer.requires_grad)
        if adjoint:
            settings |= {"adjoint_params": leaves, "adjoint_options": back | {"norm": "seminorm"}}
            method = odeint_adjoint
        try:
            if adjoint and torch.is_grad_enabled():
                end: Tensor = _Adjoint.apply(  # type: ignore[no-untyped-call]
                    lambda y: method(self, y, ends, **settings)[-1], leaves, y, *needed
                )
            else:
                end = method(self, y, ends, **settings)[-1]
        except AssertionError as error:
            # torchdiffeq's way of saying that its step vanished, or is not finite.
            raise self._failure(f"the step vanished ({error})") from None
        self._backward = True
        if solver.method == "scipy_solver" and torch.is_grad_enabled():
            return refused([end.detach()], [y, *needed], NO_GRADIENT)[0]
        return end

    def _count_steps(self) -> None:
        """Have torchdiffeq tell of each step; methods of fixed steps warn of such a wish."""

        def accept(*_: object) -> None:
            self.stats.accepted += 1

        def reject(*_: object) -> None:
            self.stats.rejected += 1

        self.callback_accept_step, self.callback_reject_step = accept, reject

    def _failure(self, reason: str) -> SolverError:
        self.stats.status = reason
        s = self.span[0] if self._last is None else float(self._last.detach())
        return SolverError(
            f"{reason} at s = {s:.4g} of [0, 1] after "
            f"{self.stats.nfe + self.stats.nfe_backward} evaluations ({self.solver}): the field is "
            "stiff or not finite there; train with a penalty or a smaller learning rate, check the "
            "inputs for outliers, or raise the tolerance or max_nfe"
        )


class _Adjoint(torch.autograd.Function):
    """A solve with a backward pass of its own, kept apart so that a second one is refused."""

    @staticmethod
    def forward(
        ctx: Any,
        solve: Callable[[Tensor], Tensor],
        leaves: tuple[Tensor, ...],
        y: Tensor,
        *parameters: Tensor,
    ) -> Tensor:
        with torch.enable_grad():
            start = y.detach().requires_grad_()
            ctx.end = solve(start)
        ctx.inputs = (start, *leaves)
        ctx.save_for_backward(y, *parameters)
        result: Tensor = ctx.end.detach()
        return result

    @staticmethod
    @first_order_only(ONCE)
    def backward(ctx: Any, gradient: Tensor) -> Any:
        # torchdiffeq keeps the field's graph; a compiled one must give no buffer of it away.
        with functorch.patch(donated_buffer=False):
            gradients = torch.autograd.grad(
                ctx.end, ctx.inputs, gradient, retain_graph=True, allow_unused=True
            )
        return None, None, *gradients
