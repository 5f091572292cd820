r"""Inverting an autoregressive layer by passes of its network.

Wanted is y with y_d = τ(g_d; h_d(y_<d)) for every coordinate d, the parameters h_d a MADE's
outputs: a sample of a MAF, or the noise behind a point under an IAF. Three ways lead to the same
values:

* ``sequential``: D passes of the MADE, one coordinate more right after each. The yardstick.
* ``jacobi``: all coordinates at once from the last sweep's, y ← τ(g; h(y)). After k sweeps the
  first k coordinates are exact, so that D are enough; it stops where a sweep changes nothing more
  (Song, Meng, Liao and Ermon 2021, "Accelerating Feedforward Computation via Parallel Nonlinear
  Equation Solving").
* ``cached``: about one pass, each hidden unit computed once; see ``degree_sweep``.

Under torch.func, compilation and tracing all three are ``sequential``: what decides by values, or
writes in place, has no place there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from baselines.networks.made import MADE
from baselines.transforms.univariate import Pullback, pull_back
from cflows.core.bijector import fusible
from cflows.core.first_order import Context, first_order_only

__all__ = ["ONCE", "Solve", "jacobi", "sequential"]

ONCE = (
    "the gradient through a cached or jacobi inversion cannot be differentiated again: "
    'build the layer with inversion="sequential"'
)

# values (*S), parameters (*S, P) -> images (*S), log-derivatives (*S)
Solve = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def sequential(
    made: MADE, given: Tensor, context: Tensor | None, solve: Solve, _: Pullback | None = None
) -> tuple[Tensor, Tensor]:
    """D passes: y (*B, D) and Σ_d log|dy_d/dg_d| (*B,)."""
    # Coordinates not reached yet stay at zero: their garbage would grow from pass to pass, and an
    # infinity times a masked weight of zero is NaN.
    y, log_det, weights = torch.zeros_like(given), torch.zeros_like(given), made.weights()
    for degree in range(1, made.features + 1):
        reached = made.degrees == degree
        parameters = made.parameters_of(y, context, weights)
        value, slope = solve(given, parameters.to(given.dtype))
        y, log_det = torch.where(reached, value, y), torch.where(reached, slope, log_det)
    return y, log_det.sum(-1)


def jacobi(
    made: MADE, given: Tensor, context: Tensor | None, solve: Solve, _: Pullback | None = None
) -> tuple[Tensor, Tensor]:
    """At most D sweeps: y (*B, D) and Σ_d log|dy_d/dg_d| (*B,).

    Sweeps end when none moved a coordinate by more than a few units in the last place. Gradients
    are those of the fixed point, by as many sweeps of the transposed equation; they cannot be
    differentiated again.
    """
    if not fusible(given):
        return sequential(made, given, context, solve)
    weights = made.weights()

    def sweep(y: Tensor) -> tuple[Tensor, Tensor]:
        return solve(given, made.parameters_of(y, context, weights).to(given.dtype))

    with torch.no_grad():
        y = _settled(lambda y: sweep(y)[0], torch.zeros_like(given), made.features)
    leaves = [v for v in (given, context, *made.parameters()) if v is not None]
    if not torch.is_grad_enabled() or not any(v.requires_grad for v in leaves):
        # At the fixed point one sweep more gives y again, and its log-determinant.
        value, slope = sweep(y)
        return value, slope.sum(-1)
    start = y.requires_grad_()
    value, slope = sweep(start)
    value, slope = _FixedPoint.apply(value, slope, start, made.features)  # type: ignore[no-untyped-call]
    return value, slope.sum(-1)


def _settled(sweep: Callable[[Tensor], Tensor], y: Tensor, most: int) -> Tensor:
    """Iterate y ← sweep(y), exact after ``most`` times, until it moves no more.

    What is not finite in the end is so in truth: everything that it depends on was exact.
    """
    tolerance = 4 * torch.finfo(y.dtype).eps
    y = y.nan_to_num(0.0, 0.0, 0.0)
    for _ in range(most):
        image = sweep(y)
        # What is not exact yet may overflow; where it does, any finite number serves.
        after = image.nan_to_num(0.0, 0.0, 0.0)
        moved = ((after - y).abs() > tolerance * (1 + after.abs())).any()
        y = after
        if not bool(moved):
            break
    return image


class _Context(Context, Protocol):
    most: int


class _FixedPoint(torch.autograd.Function):
    """The identity on (y, log-derivatives), whose gradient accounts for y being a fixed point.

    With y = F(y, θ) and cotangents (v, w) of y and of the log-derivatives L(y, θ), the cotangent of
    F is u = v + (∂L/∂y)ᵀ w + (∂F/∂y)ᵀ u. ∂F/∂y is strictly triangular, so that iterating ends.
    """

    @staticmethod
    def forward(
        ctx: _Context, value: Tensor, slope: Tensor, start: Tensor, most: int
    ) -> tuple[Tensor, Tensor]:
        ctx.most = most
        ctx.save_for_backward(value, slope, start)
        return value.clone(), slope.clone()

    @staticmethod
    @first_order_only(ONCE)
    def backward(ctx: _Context, for_value: Tensor, for_slope: Tensor) -> tuple[Tensor | None, ...]:
        value, slope, start = ctx.saved_tensors

        def sweep(u: Tensor) -> Tensor:
            (back,) = pull_back((value, slope), (start,), (u, for_slope))
            return for_value + back

        return _settled(sweep, for_value, ctx.most + 1), for_slope, None, None
