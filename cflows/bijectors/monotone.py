r"""One bin of a monotone rational-quadratic spline, both ways.

Gregory and Delbourgo 1982, "Piecewise Rational Quadratic Interpolation to Monotonic Data", as
Durkan, Bekasov, Murray and Papamakarios 2019, "Neural Spline Flows", write it. Between the knots
(x_0, y_0) and (x_1, y_1) with the derivatives δ_0 and δ_1, ξ = (x - x_0) / (x_1 - x_0) and the
slope s = (y_1 - y_0) / (x_1 - x_0),

    y = y_0 + (y_1 - y_0) (s ξ² + δ_0 ξ(1-ξ)) / (s + (δ_1 + δ_0 - 2s) ξ(1-ξ))
    dy/dx = s² (δ_1 ξ² + 2s ξ(1-ξ) + δ_0 (1-ξ)²) / (s + (δ_1 + δ_0 - 2s) ξ(1-ξ))²

(their equations 4 and 5); the inverse is a root of a quadratic (6 to 8).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["in_bin"]


def in_bin(inputs: Tensor, corners: Sequence[Tensor], *, inverse: bool) -> tuple[Tensor, Tensor]:
    """The spline within each element's bin: y and log dy/dx of x, or x and log dx/dy of y.

    Args:
        inputs: x (*S,), or y where ``inverse``.
        corners: x_0, x_1, y_0, y_1, δ_0, δ_1 of the bin that each element lies in, broadcastable to
            (*S,).
        inverse: whether y is given and x wanted.

    Example:
        >>> import torch
        >>> from cflows.bijectors.monotone import in_bin
        >>> bend = tuple(map(torch.tensor, (0.0, 1.0, 0.0, 2.0, 1.0, 3.0)))
        >>> y, log_slope = in_bin(torch.tensor(0.5), bend, inverse=False)
        >>> in_bin(y, bend, inverse=True)[0]
        tensor(0.5000)

    """
    x0, x1, y0, y1, d0, d1 = corners
    width, height = x1 - x0, y1 - y0
    slope = height / width
    excess = d0 + d1 - 2 * slope
    if inverse:
        share = _root((inputs - y0) / height, slope, d0, excess)
        outputs = x0 + share * width
    else:
        share = (inputs - x0) / width
    rest = 1 - share
    product = share * rest
    bottom = slope + excess * product
    if not inverse:
        outputs = y0 + height * share * (slope * share + d0 * rest) / bottom
    top = d1 * share.square() + 2 * slope * product + d0 * rest.square()
    log_slope = torch.log((slope / bottom).square() * top)
    return outputs, -log_slope if inverse else log_slope


def _root(share: Tensor, slope: Tensor, d0: Tensor, excess: Tensor) -> Tensor:
    """ξ in [0, 1] where a ξ² + b ξ = s η: the bin's quadratic divided by its height, η of it up.

    b = δ_0 - η (δ_1 + δ_0 - 2s) and a = s - b. Of the two ways to write the root the one that adds
    numbers of one sign is taken; the discriminant is a square up to rounding.
    """
    b = d0 - share * excess
    a = slope - b
    discriminant = b.square() + 4 * a * slope * share
    # clamp: no gradient below, and a finite one of the root above.
    root = discriminant.clamp(min=torch.finfo(b.dtype).eps ** 2).sqrt()
    adds = b >= 0
    top = torch.where(adds, 2 * slope * share, root - b)
    bottom = torch.where(adds, b + root, 2 * a)
    return (top / bottom).clamp(0, 1)
