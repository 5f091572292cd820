r"""Roots of strictly increasing functions of one variable, a whole batch at a time.

Each row has a function g of its own and a target t, and wants the one a with g(a) = t. Newton's
step a - (g(a) - t) / g'(a) is taken where it stays within the row's bracket and is at most half as
long as the step before; elsewhere the bracket is halved (Dekker's safeguard; Press et al. 2007,
"Numerical Recipes", section 9.4). So no function, however flat, takes more than about twice the
steps of plain bisection, and an ordinary one takes five or six.

The iteration itself is not differentiated. By the implicit function theorem
∂a/∂θ = (∂t/∂θ - ∂g/∂θ) / g'(a), which autograd finds in a Newton step taken from the root with its
slope held fixed. A second step, its slope differentiated too, squares what error is left: first to
third derivatives are exact, fourth ones are not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from cflows.core.bijector import may_read

__all__ = ["InversionError", "InversionStatus", "monotone_root", "tanh_root"]

MAX_ITERATIONS = 150
CHECK_EVERY = 4
UNREAD_ITERATIONS = (40, 64)  # of float32, float64; the worst at slopes of 1e-3 to 1e9: 37, 51
DOUBLINGS = 64
ROUNDINGS = 8

ScalarFunction = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class InversionStatus:
    """What a numerical inverse reports of itself.

    Attributes:
        converged: whether every row reached its root, to rounding or to the tolerance asked for.
        iterations: evaluations of g, the most that any row needed; after a scalar root's bracket,
            rounded up to the next test.
        residual: the largest over rows, relative: |g(a) - t| / (1 + |t|) of a scalar root, before
            the two steps that carry its gradient; the last step's length of a fixed point.

    Example:
        >>> import torch
        >>> from baselines import Planar
        >>> planar = Planar(3)
        >>> _ = planar.inverse(torch.ones(5, 3))
        >>> planar.inversion_status.converged
        True

    """

    converged: bool
    iterations: int
    residual: float


class InversionError(RuntimeError):
    """A numerical inverse that did not reach its root; ``status`` has the figures."""

    def __init__(self, message: str, status: InversionStatus) -> None:
        super().__init__(message)
        self.status = status


def monotone_root(
    function: ScalarFunction,
    target: Tensor,
    bracket: tuple[Tensor, Tensor] | None = None,
    *,
    max_iterations: int = MAX_ITERATIONS,
) -> tuple[Tensor, InversionStatus | None]:
    """The a with g(a) = t for a strictly increasing g, row by row, and how it was found.

    A row is at its root where |g(a) - t| is within a few roundings of |a| + |t|, or where no number
    lies between a and its next step. Rows that are there rest, so that a row's answer does not
    depend on the rows beside it. Rows whose target is not finite become NaN.

    The gradient, in t and in whatever g is made of, is exact to the third order.

    Under torch.func's transforms, compilation and export no number may be read: a fixed count of
    iterations is made, at most 40 (float64: 64), and rows not at their root by then become NaN.

    Args:
        function: a (*B) to g(a) and g'(a), both (*B), with g' > 0; element by element.
        target: t, (*B).
        bracket: low and high (*B) with g(low) <= t <= g(high), to rounding; by default grown from
            [-1, 1] by doubling.
        max_iterations: evaluations of g allowed after the bracket.

    Returns:
        a (*B) and its InversionStatus, None where no number may be read; the device is read once
        every few iterations.

    Raises:
        InversionError: a row has no bracket, or is not at its root after max_iterations.

    Example:
        >>> import torch
        >>> from baselines.inversion.roots import monotone_root
        >>> cubic = lambda a: (a**3 + a, 3 * a**2 + 1)
        >>> root, status = monotone_root(cubic, torch.tensor([2.0, 10.0]))
        >>> root, status.converged
        (tensor([1., 2.]), True)

    """
    with torch.no_grad():
        goal = target.detach()
        low, high = _grown(function, goal) if bracket is None else bracket
        root, status = _newton(function, goal, low.detach(), high.detach(), max_iterations)
    value, slope = function(root)
    root = root - (value - target) / slope.detach()
    value, slope = function(root)
    return root - (value - target) / slope, status


def tanh_root(
    target: Tensor, slope: Tensor, *, max_iterations: int = MAX_ITERATIONS
) -> tuple[Tensor, InversionStatus | None]:
    """The s with s + (m - 1) tanh(s) = t, for m > 0: the equation behind planar and Sylvester maps.

    m is the slope at s = 0, and the left-hand side is never further than |m - 1| from s.

    Args:
        target: t, (*B).
        slope: m, broadcastable to (*B).
        max_iterations: as for ``monotone_root``.

    Returns:
        s (*B) and its InversionStatus, None where no number may be read.

    Raises:
        InversionError: as for ``monotone_root``.

    """
    excess = (slope - 1).expand(target.shape)

    def function(s: Tensor) -> tuple[Tensor, Tensor]:
        t = torch.tanh(s)
        return torch.addcmul(s, excess, t), tanh_slope(t, slope)

    reach = excess.detach().abs()
    return monotone_root(
        function, target, (target - reach, target + reach), max_iterations=max_iterations
    )


def tanh_slope(t: Tensor, slope: Tensor) -> Tensor:
    """1 + (m - 1) tanh'(s) at t = tanh(s), as the sum of positives t² + m (1 - t²)."""
    square = t * t
    return square + slope * (1 - square)


def _newton(
    function: ScalarFunction, target: Tensor, low: Tensor, high: Tensor, max_iterations: int
) -> tuple[Tensor, InversionStatus | None]:
    limits = torch.finfo(target.dtype)
    a, step = torch.lerp(low, high, 0.5), high - low
    done = ~target.isfinite()
    residual = torch.zeros_like(target)
    allowed = ROUNDINGS * limits.eps * target.abs() + limits.tiny
    reads, iterations = may_read(target), 0
    if not reads:
        max_iterations = min(max_iterations, UNREAD_ITERATIONS[target.dtype == torch.float64])
    while iterations < max_iterations:
        iterations += 1
        value, slope = function(a)
        error = value - target
        residual = torch.where(done, residual, error.abs())
        low, high = torch.where(error < 0, a, low), torch.where(error > 0, a, high)
        newton = a - error / slope
        inside = (newton > low) & (newton < high) & ((newton - a).abs() < step / 2)
        following = torch.where(inside, newton, torch.lerp(low, high, 0.5))
        step, size = (following - a).abs(), a.abs()
        at_root = residual <= torch.add(allowed, size, alpha=ROUNDINGS * limits.eps)
        done = done | at_root | (step <= limits.eps * size)
        a = torch.where(done, a, following)
        if reads and iterations % CHECK_EVERY == 0 and bool(done.all()):
            break
    if not reads:
        return torch.where(done, a, torch.nan), None
    relative = residual / (1 + target.abs())
    largest = float(relative.max()) if relative.numel() else 0.0
    failed = int((~done).sum())
    status = InversionStatus(failed == 0, iterations, largest)
    if failed:
        raise InversionError(
            f"{failed} of {done.numel()} rows were not inverted in {iterations} iterations, their "
            f"residual up to {largest:.1e}: allow more max_iterations, and check that the "
            "parameters are finite",
            status,
        )
    return a, status


def _grown(function: ScalarFunction, target: Tensor) -> tuple[Tensor, Tensor]:
    """Ends at ±2^k with g(low) <= t <= g(high)."""
    low, high = torch.full_like(target, -1.0), torch.full_like(target, 1.0)
    finite = target.isfinite()
    for doubling in range(1, DOUBLINGS + 1):
        above = finite & (function(low)[0] > target)
        below = finite & (function(high)[0] < target)
        low, high = torch.where(above, 2 * low, low), torch.where(below, 2 * high, high)
        if may_read(target) and doubling % CHECK_EVERY == 0 and not bool((above | below).any()):
            return low, high
    if not may_read(target):
        return low, high
    raise InversionError(
        f"{int((above | below).sum())} of {target.numel()} targets are outside the function's "
        "range: only a function that grows without bound can be inverted everywhere",
        InversionStatus(False, 0, float("inf")),
    )
