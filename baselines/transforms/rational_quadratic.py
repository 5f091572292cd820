r"""Monotone rational-quadratic splines.

Durkan, Bekasov, Murray and Papamakarios 2019, "Neural Spline Flows", section 3.1, after Gregory and
Delbourgo 1982. K bins between the knots (x_0, y_0) = (-B, -B) and (x_K, y_K) = (B, B), a positive
derivative δ_k at each knot, 1 at both ends; `cflows.bijectors.monotone` has the formula of a bin,
both ways. Outside [-B, B] the map is the identity, which meets the spline with the same slope.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from baselines.transforms.univariate import AffineScale, UnivariateTransform
from cflows import register
from cflows.bijectors.monotone import in_bin
from cflows.core.bijector import Mapped

__all__ = ["AffineSpline", "RationalQuadratic", "rational_quadratic"]

LEAST_SHARE = 1e-3
LEAST_SLOPE = 1e-3
# softplus(OFFSET) + LEAST_SLOPE = 1.
OFFSET = math.log(math.expm1(1 - LEAST_SLOPE))


@register
@dataclass(frozen=True)
class RationalQuadratic(UnivariateTransform):
    """A spline as a transformer: an elementwise map x = f(z; 3K - 1 parameters an element).

    Parameters of zero give the identity.

    Args:
        bins: K.
        bound: B; the map is the identity outside [-B, B].

    Raises:
        ValueError: bins or bound is out of range.

    Example:
        >>> import torch
        >>> from baselines import RationalQuadratic
        >>> spline = RationalQuadratic(bins=4, bound=2.0)
        >>> z, parameters = torch.tensor([0.5, 7.0]), torch.zeros(2, 11)
        >>> spline.forward(z, parameters)[0]
        tensor([0.5000, 7.0000])

    """

    bins: int = 8
    bound: float = 3.0

    def __post_init__(self) -> None:
        if not 1 <= self.bins < 1 / LEAST_SHARE:
            raise ValueError(f"bins must be from 1 to {1 / LEAST_SHARE - 1:.0f}, got {self.bins}")
        if not 0 < self.bound < math.inf:
            raise ValueError(f"bound must be positive and finite, got {self.bound}")

    @property
    def size(self) -> int:
        """3K - 1: K widths, K heights, K - 1 derivatives at the inner knots."""
        return 3 * self.bins - 1

    def forward(self, z: Tensor, parameters: Tensor) -> Mapped:
        """z (*S,) and parameters (*S, 3K - 1) -> x and log dx/dz, (*S,) each."""
        return self._map(z, parameters, inverse=False)

    def inverse(self, x: Tensor, parameters: Tensor) -> Mapped:
        """x (*S,) and parameters (*S, 3K - 1) -> z and log dz/dx, (*S,) each."""
        return self._map(x, parameters, inverse=True)

    def _map(self, value: Tensor, parameters: Tensor, *, inverse: bool) -> Mapped:
        parts = torch.split(parameters, [self.bins, self.bins, self.bins - 1], dim=-1)
        return rational_quadratic(value, *parts, inverse=inverse, bound=self.bound)


@register
@dataclass(frozen=True)
class AffineSpline(UnivariateTransform):
    """x = μ + exp(α) s(z), s a `RationalQuadratic`: 3K + 1 parameters an element.

    They are μ, α before its bound, and the spline's.

    A spline alone is the identity on rows outside [-B, B]: there, a column of heavy tails has the
    tails of the base, whatever the other columns say. Here z is bent where the base has its mass,
    and α as in `AffineScale` gives each row's tails a scale.

    Args:
        bins: K.
        bound: B, in units of z; outside [-B, B] the map is affine.

    Raises:
        ValueError: bins or bound is out of range.

    Example:
        >>> import torch
        >>> from baselines import AffineSpline
        >>> z, parameters = torch.tensor([0.5, 7.0]), torch.zeros(2, 13)
        >>> parameters[:, 0] = 1.0
        >>> AffineSpline(bins=4, bound=2.0).forward(z, parameters)[0]
        tensor([1.5000, 8.0000])

    """

    bins: int = 8
    bound: float = 3.0

    def __post_init__(self) -> None:
        _ = self._spline  # which refuses what is out of range

    @property
    def size(self) -> int:
        """3K + 1."""
        return _AFFINE.size + self._spline.size

    def forward(self, z: Tensor, parameters: Tensor) -> Mapped:
        """z (*S,) and parameters (*S, 3K + 1) -> x and log dx/dz, (*S,) each."""
        affine, spline = self._split(parameters)
        bent, first = self._spline.forward(z, spline)
        x, second = _AFFINE.forward(bent, affine)
        return x, first + second

    def inverse(self, x: Tensor, parameters: Tensor) -> Mapped:
        """x (*S,) and parameters (*S, 3K + 1) -> z and log dz/dx, (*S,) each."""
        affine, spline = self._split(parameters)
        bent, first = _AFFINE.inverse(x, affine)
        z, second = self._spline.inverse(bent, spline)
        return z, first + second

    @property
    def _spline(self) -> RationalQuadratic:
        return RationalQuadratic(self.bins, self.bound)

    def _split(self, parameters: Tensor) -> tuple[Tensor, ...]:
        return torch.split(parameters, [_AFFINE.size, self._spline.size], dim=-1)


_AFFINE = AffineScale()


def rational_quadratic(
    inputs: Tensor,
    widths: Tensor,
    heights: Tensor,
    derivatives: Tensor,
    *,
    inverse: bool,
    bound: float,
) -> tuple[Tensor, Tensor]:
    """A monotone spline of [-B, B] to itself, the identity outside; any real parameters.

    Widths and heights are shares of 2B by a softmax, none below a thousandth; derivatives are
    softplus plus a thousandth, 1 for a parameter of 0.

    Args:
        inputs: x (*S,), or y where ``inverse``.
        widths: of the bins along x, unnormalised, (*S, K).
        heights: of the bins along y, unnormalised, (*S, K).
        derivatives: at the inner knots, unnormalised, (*S, K - 1).
        inverse: whether y is given and x wanted.
        bound: B.

    Returns:
        The values (*S,) and the log-derivatives of the map taken (*S,).

    Example:
        >>> import torch
        >>> from baselines.transforms.rational_quadratic import rational_quadratic
        >>> widths, heights, derivatives = torch.randn(3, 8), torch.randn(3, 8), torch.randn(3, 7)
        >>> x = torch.tensor([-0.5, 1.0, 4.0])
        >>> y, _ = rational_quadratic(x, widths, heights, derivatives, inverse=False, bound=2.0)
        >>> back, _ = rational_quadratic(y, widths, heights, derivatives, inverse=True, bound=2.0)
        >>> torch.allclose(back, x, atol=1e-5)
        True

    """
    inside = inputs.abs() < bound
    # A value from outside never reaches the maths: its gradient there could be NaN, and NaN times
    # the zero of torch.where is NaN.
    clipped = torch.where(inside, inputs, 0.0)
    inner_x, inner_y = _inner_knots(widths, bound), _inner_knots(heights, bound)
    bin_index = (clipped.unsqueeze(-1) >= (inner_y if inverse else inner_x)).sum(-1, keepdim=True)
    corners = _corners(bin_index, inner_x, inner_y, derivatives, bound)
    outputs, log_slope = in_bin(clipped, corners, inverse=inverse)
    return torch.where(inside, outputs, inputs), torch.where(inside, log_slope, 0.0)


def _inner_knots(unnormalised: Tensor, bound: float) -> Tensor:
    """Places of the K - 1 knots between -B and B: (*S, K) -> (*S, K - 1)."""
    bins = unnormalised.shape[-1]
    shares = LEAST_SHARE + (1 - LEAST_SHARE * bins) * F.softmax(unnormalised, dim=-1)
    return bound * (2 * shares[..., :-1].cumsum(-1) - 1)


def _corners(
    bin_index: Tensor, inner_x: Tensor, inner_y: Tensor, derivatives: Tensor, bound: float
) -> tuple[Tensor, ...]:
    """x_k, x_{k+1}, y_k, y_{k+1}, δ_k, δ_{k+1} of each element's bin, by one gather."""
    one = inner_x.new_ones(()).expand(bin_index.shape)
    low, high = -bound * one, bound * one
    slopes = LEAST_SLOPE + F.softplus(derivatives + OFFSET)
    knots = torch.cat([low, inner_x, high, low, inner_y, high, one, slopes, one], dim=-1)
    starts = torch.arange(0, knots.shape[-1], inner_x.shape[-1] + 2, device=bin_index.device)
    index = torch.stack([starts, starts + 1], dim=-1).flatten()
    return knots.gather(-1, bin_index + index).unbind(-1)
