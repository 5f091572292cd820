"""Maps that act on each coordinate alone."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributions import constraints
from torch.nn import functional as F

from cflows.core.bijector import BOUND, Bijector, Mapped, bounded, may_read
from cflows.core.within import within

__all__ = [
    "Affine",
    "DiagonalScale",
    "Elementwise",
    "ElementwiseAffine",
    "LeakyReLU",
    "SinhArcsinh",
]


WHOLE = (-math.inf, math.inf)


class Affine(Bijector):
    """A fixed x_i = loc_i + scale_i z_i, with log|det dx/dz| = Σ_i log scale_i.

    Args:
        loc: D numbers.
        scale: D positive numbers.

    Raises:
        ValueError: a scale is not positive and finite, or the lengths differ.

    Example:
        >>> import torch
        >>> from cflows import Affine
        >>> Affine([1.0], [2.0]).forward_and_log_det(torch.tensor([3.0]))
        (tensor([7.]), tensor(0.6931))

    """

    loc: Tensor
    scale: Tensor

    def __init__(self, loc: Sequence[float] | Tensor, scale: Sequence[float] | Tensor) -> None:
        loc, scale = torch.as_tensor(loc), torch.as_tensor(scale)
        # Integers would stay so in a flow of floats: .to(dtype) passes them over.
        dtype = torch.promote_types(loc.dtype, scale.dtype)
        dtype = dtype if dtype.is_floating_point else torch.get_default_dtype()
        loc, scale = loc.to(dtype), scale.to(dtype)
        if loc.dim() != 1 or loc.shape != scale.shape:
            raise ValueError(
                f"loc and scale must be of shape (D,), got {tuple(loc.shape)} "
                f"and {tuple(scale.shape)}"
            )
        if may_read(scale) and not bool(((scale > 0) & scale.isfinite() & loc.isfinite()).all()):
            raise ValueError("loc must be finite, scale positive and finite in every coordinate")
        super().__init__(len(loc))
        self.register_buffer("loc", loc.detach().clone())
        self.register_buffer("scale", scale.detach().clone())

    def forward_and_log_det(self, z: Tensor, context: Tensor | None = None) -> Mapped:
        """loc + scale z."""
        log_det = self.scale.log().sum()
        return torch.addcmul(self.loc, self.scale, z), log_det.expand(z.shape[:-1])

    def inverse_and_log_det(self, x: Tensor, context: Tensor | None = None) -> Mapped:
        """(x - loc) / scale."""
        log_det = -self.scale.log().sum()
        return (x - self.loc) / self.scale, log_det.expand(x.shape[:-1])


class DiagonalScale(Bijector):
    """A learned x_i = exp(s_i) z_i, with log|det dx/dz| = Σ_i s_i (Dinh et al. 2015, section 3.3).

    The identity when built.

    Args:
        features: D.

    Example:
        >>> import torch
        >>> from cflows import DiagonalScale
        >>> scale = DiagonalScale(2).requires_grad_(False)
        >>> _ = scale.log_scale.fill_(1.0)
        >>> scale.forward_and_log_det(torch.ones(2))
        (tensor([2.7183, 2.7183]), tensor(2.))

    """

    def __init__(self, features: int) -> None:
        super().__init__(features)
        self.log_scale = nn.Parameter(torch.zeros(features))

    def forward_and_log_det(self, z: Tensor, context: Tensor | None = None) -> Mapped:
        """exp(s) z."""
        return z * self.log_scale.exp(), self.log_scale.sum().expand(z.shape[:-1])

    def inverse_and_log_det(self, x: Tensor, context: Tensor | None = None) -> Mapped:
        """exp(-s) x."""
        return x * torch.exp(-self.log_scale), -self.log_scale.sum().expand(x.shape[:-1])


class Elementwise(Bijector):
    """An increasing x_i = g(z_i) of each coordinate, log|det dx/dz| = Σ_i log g'(z_i).

    Subclasses write ``value``, ``root`` and ``log_slope``. Where the range of g is not all of R,
    ``inverse`` refuses what lies outside, in evaluation mode: asking costs a host synchronisation,
    and in training such a row is NaN or infinite by itself. ``forward`` stays inside: what the
    dtype would round to an end of the range, or to infinity, becomes a number next to it.

    Args:
        features: D.

    Raises:
        ValueError: (in evaluation mode) ``inverse`` was given a value outside the open range of g.

    """

    ends: tuple[float, float] = WHOLE

    @property
    def codomain(self) -> constraints.Constraint:
        """The range of g, in every coordinate."""
        return constraints.real_vector if self.ends == WHOLE else box(*self.ends)

    @abstractmethod
    def value(self, z: Tensor) -> Tensor:
        """g(z)."""

    @abstractmethod
    def root(self, x: Tensor) -> Tensor:
        """The z with g(z) = x, for x between the two ``ends`` of the range."""

    @abstractmethod
    def log_slope(self, z: Tensor, x: Tensor) -> Tensor:
        """log g'(z), from whichever of z and x = g(z) keeps it exact."""

    def forward(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """g(z)."""
        return self._inside(self.value(z))

    def inverse(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """The root of g(z) = x."""
        return self.root(self._within(x))

    def forward_and_log_det(self, z: Tensor, context: Tensor | None = None) -> Mapped:
        """g(z) and Σ_i log g'(z_i)."""
        x = self.forward(z, context)
        return x, self.log_slope(z, x).sum(-1)

    def inverse_and_log_det(self, x: Tensor, context: Tensor | None = None) -> Mapped:
        """The root of g(z) = x and -Σ_i log g'(z_i)."""
        x = self._within(x)
        z = self.root(x)
        return z, -self.log_slope(z, x).sum(-1)

    def _inside(self, x: Tensor) -> Tensor:
        """Values of g, held inside of its range."""
        low, high = self.ends
        if self.ends == WHOLE:
            return x
        return x.clamp(_next_to(low, 1, x.dtype), _next_to(high, -1, x.dtype))

    def _within(self, x: Tensor) -> Tensor:
        """Data, refused outside of the range."""
        low, high = self.ends
        if self.ends == WHOLE:
            return x
        return within(
            x,
            (x > low) & (x < high),
            low + 1 if high == math.inf else (low + high) / 2,
            f"{{value:g}} is outside ({low:g}, {high:g}), the open range of "
            f"{type(self).__name__}: rescale or drop these rows",
            check=not self.training,
        )


class ElementwiseAffine(Elementwise):
    """A learned x = b + exp(α) z, with α = a tanh(s / a) for a bound a.

    The log scale α is near s for small s and never past ±a. The identity when built.

    Args:
        features: D.
        bound: a.

    Example:
        >>> import torch
        >>> from cflows import ElementwiseAffine
        >>> layer = ElementwiseAffine(2).requires_grad_(False)
        >>> _ = layer.shift.fill_(3.0)
        >>> layer(torch.tensor([-1.0, 1.0]))
        tensor([2., 4.])

    """

    def __init__(self, features: int, *, bound: float = BOUND) -> None:
        super().__init__(features)
        if not bound > 0:
            raise ValueError(f"bound must be positive, got {bound}")
        self.bound = bound
        self.shift = nn.Parameter(torch.zeros(features))
        self.raw_log_scale = nn.Parameter(torch.zeros(features))

    @property
    def log_scale(self) -> Tensor:
        """α, (D,)."""
        return bounded(self.raw_log_scale, self.bound)

    def value(self, z: Tensor) -> Tensor:
        """b + exp(α) z."""
        return torch.addcmul(self.shift, self.log_scale.exp(), z)

    def root(self, x: Tensor) -> Tensor:
        """(x - b) exp(-α)."""
        return (x - self.shift) * torch.exp(-self.log_scale)

    def log_slope(self, z: Tensor, x: Tensor) -> Tensor:
        """α."""
        return self.log_scale.expand(z.shape)


class SinhArcsinh(Elementwise):
    """A learned skew ε and tail weight δ: x = sinh((arcsinh(z) + ε) / δ).

    The inverse is S of Jones and Pewsey 2009, "Sinh-arcsinh distributions", with its ε and δ: there
    z is the normal variable. ε > 0 skews to the right; δ < 1 makes heavier tails, x growing as
    z^(1/δ). log δ stays within ±2. The identity when built.

        log dx/dz = log cosh((arcsinh(z) + ε) / δ) - log cosh(arcsinh(z)) - log δ

    Args:
        features: D.

    Example:
        >>> import torch
        >>> from cflows import SinhArcsinh
        >>> skewed = SinhArcsinh(3).requires_grad_(False)
        >>> _ = skewed.skew.fill_(1.0)
        >>> skewed(torch.tensor([-1.0, 0.0, 1.0]))
        tensor([0.1189, 1.1752, 3.2051])

    """

    def __init__(self, features: int) -> None:
        super().__init__(features)
        self.skew = nn.Parameter(torch.zeros(features))
        self.raw_log_tail = nn.Parameter(torch.zeros(features))

    @property
    def log_tail(self) -> Tensor:
        """log δ, (D,)."""
        return bounded(self.raw_log_tail, 2.0)

    def value(self, z: Tensor) -> Tensor:
        """sinh((arcsinh(z) + ε) / δ)."""
        return torch.sinh((torch.asinh(z) + self.skew) * torch.exp(-self.log_tail))

    def root(self, x: Tensor) -> Tensor:
        """sinh(δ arcsinh(x) - ε)."""
        return torch.sinh(torch.asinh(x) * torch.exp(self.log_tail) - self.skew)

    def log_slope(self, z: Tensor, x: Tensor) -> Tensor:
        """log cosh(arcsinh(x)) - log cosh(arcsinh(z)) - log δ."""
        return _log_cosh(torch.asinh(x)) - _log_cosh(torch.asinh(z)) - self.log_tail


class LeakyReLU(Elementwise):
    """x = z above zero, slope z below.

    Args:
        features: D.
        slope: positive.

    Example:
        >>> import torch
        >>> from cflows import LeakyReLU
        >>> LeakyReLU(2, slope=0.5).forward_and_log_det(torch.tensor([-4.0, 4.0]))
        (tensor([-2.,  4.]), tensor(-0.6931))

    """

    def __init__(self, features: int, slope: float = 0.1) -> None:
        super().__init__(features)
        if not 0 < slope < math.inf:
            raise ValueError(f"slope must be positive and finite, got {slope}")
        self.slope = slope

    def value(self, z: Tensor) -> Tensor:
        """max(z, 0) + slope min(z, 0)."""
        return F.leaky_relu(z, self.slope)

    def root(self, x: Tensor) -> Tensor:
        """max(x, 0) + min(x, 0) / slope."""
        return F.leaky_relu(x, 1 / self.slope)

    def log_slope(self, z: Tensor, x: Tensor) -> Tensor:
        """Log slope below zero, 0 above."""
        return (z < 0).to(z.dtype) * math.log(self.slope)


def box(low: float | Tensor, high: float | Tensor) -> constraints.Constraint:
    """Vectors of which each coordinate is within an open interval or half-line."""
    half = isinstance(high, float) and high == math.inf
    range_: constraints.Constraint
    range_ = constraints.greater_than(low) if half else constraints.interval(low, high)  # type: ignore[no-untyped-call]
    joint: constraints.Constraint = constraints.independent(range_, 1)  # type: ignore[no-untyped-call]
    return joint


def _next_to(end: float, step: int, dtype: torch.dtype) -> float:
    """A number inside of an open range, as near to one of its ends as its inverse can still be."""
    limits = torch.finfo(dtype)
    if math.isinf(end):
        return math.copysign(limits.max, end)
    # At ±1 the next number; ends moved by a rounding of their own want a wider berth.
    roundings = 0.5 if abs(end) == 1 else 4
    return end + step * max(roundings * limits.eps * abs(end), limits.tiny)


def _log_cosh(a: Tensor) -> Tensor:
    return a.abs() + torch.log1p(torch.exp(-2 * a.abs())) - math.log(2)
