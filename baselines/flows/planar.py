r"""Planar and radial flows (Rezende and Mohamed 2015, section 4.1).

A **planar** map pushes space along one direction u, by an amount that depends on where a point lies
along another direction w; a **radial** map pushes it away from, or towards, a centre z₀:

    x = z + u tanh(w·z + b)                         (equation 10)
    x = z + β (z - z₀) / (α + r),  r = |z - z₀|     (equation 14)

Both have a log-determinant of cost O(D), and were made for variational inference: sampling with its
density is one pass. Here they score data too. The planar inverse is one increasing scalar equation
a row, solved by ``roots.tanh_root``; the radial one is a quadratic in r. Maps that a context
conditions have every parameter shifted by a linear function of it, as in the paper's amortised
posteriors.

They are invertible where a slope stays positive: that of w·x in w·z, and that of |x - z₀| in r at
the centre. Both are m(v) = ε + softplus(v + c) for a free v, with ε = 10⁻³ and c such that
m(0) = 1: the softplus of the paper's appendices A.1 and A.2, moved so that v = 0 is the identity,
and held off zero so that the inverse stays well conditioned.
"""

from __future__ import annotations

from math import exp, expm1, log

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from baselines.flows.stack import stacked
from baselines.inversion.roots import (
    MAX_ITERATIONS,
    InversionError,
    InversionStatus,
    tanh_root,
    tanh_slope,
)
from cflows import Bijector, Flow
from cflows.core.bijector import Mapped

__all__ = ["Amortized", "Planar", "PlanarFlow", "Radial", "RadialFlow", "RootBijector"]

SMALLEST_SLOPE = 1e-3
START = 1e-2


def positive_slope(v: Tensor) -> Tensor:
    """m(v) = ε + softplus(v + c), increasing from ε = 10⁻³, with m(0) = 1."""
    return SMALLEST_SLOPE + F.softplus(v + log(expm1(1 - SMALLEST_SLOPE)))


def _excess(v: Tensor) -> Tensor:
    """m(v) - 1 - v without its cancellation: near zero that is rounding, divided by |w|²."""
    share = exp(SMALLEST_SLOPE - 1)  # of σ(-c): e^-softplus(c)
    above = torch.log1p(share * torch.expm1(-v.clamp(min=0)))
    below = torch.log1p((1 - share) * torch.expm1(v.clamp(max=0))) - v
    return torch.where(v > 0, above, below)


class Amortized(nn.Module):
    """A vector of parameters that a context may shift: θ + A c.

    A starts at zero, so that the context has no say before training.

    Args:
        start: θ before training, (P,).
        context_features: C.

    """

    def __init__(self, start: Tensor, context_features: int) -> None:
        super().__init__()
        self.value = nn.Parameter(start.clone())
        self.shift = (
            nn.Linear(context_features, len(start), bias=False) if context_features else None
        )
        if self.shift is not None:
            nn.init.zeros_(self.shift.weight)

    def forward(self, context: Tensor | None) -> Tensor:
        """(*B, C) -> (*B, P), or (P,) where there is no context."""
        if self.shift is None:
            return self.value
        shift: Tensor = self.shift(context)
        # Under autocast the map is in low precision, its answer must not stay so.
        return self.value + shift.to(self.value.dtype)


class RootBijector(Bijector):
    """A bijector whose inverse solves scalar equations.

    Attributes:
        inversion_status: what the last inverse reports of itself, an ``InversionStatus``; None
            before the first, and after one under a transform of torch.func or in a trace, where
            rows without a root become NaN. It is also set where the inverse ends in an
            InversionError.

    """

    def __init__(self, features: int, context_features: int, max_iterations: int) -> None:
        super().__init__(features, context_features)
        if max_iterations < 1:
            raise ValueError(f"max_iterations must be at least 1, got {max_iterations}")
        self.max_iterations = max_iterations
        self.inversion_status: InversionStatus | None = None

    def _root(self, target: Tensor, slope: Tensor) -> Tensor:
        """``tanh_root``, its status noted: of several solves in one inverse, the worst."""
        before = self.inversion_status
        try:
            root, status = tanh_root(target, slope, max_iterations=self.max_iterations)
        except InversionError as error:
            self.inversion_status = error.status
            raise
        if before is not None and status is not None:
            status = InversionStatus(
                before.converged and status.converged,
                max(before.iterations, status.iterations),
                max(before.residual, status.residual),
            )
        self.inversion_status = status
        return root


class Planar(RootBijector):
    """x = z + û tanh(w·z + b), with log|det dx/dz| = log(1 + (w·û) tanh'(w·z + b)).

    Rezende and Mohamed 2015, equations 10 to 12. û = u + (m(w·u) - 1 - w·u) w / |w|² has
    w·û = m(w·u) - 1 > -1 (appendix A.1, with m as at the top of this file), which makes the map
    invertible. Its inverse is z = x - û tanh(s), where s + (w·û) tanh(s) = w·x + b.

    Args:
        features: D.
        context_features: C; the context shifts u, w and b.
        max_iterations: allowed to the inverse.

    Raises:
        InversionError: by the inverse, where a row needs more than max_iterations.

    Example:
        >>> import torch
        >>> from baselines import Planar
        >>> planar = Planar(3)
        >>> x, log_det = planar.forward_and_log_det(torch.ones(5, 3))
        >>> torch.allclose(planar.inverse(x), torch.ones(5, 3))
        True
        >>> planar.inversion_status.converged
        True

    """

    def __init__(
        self, features: int, *, context_features: int = 0, max_iterations: int = MAX_ITERATIONS
    ) -> None:
        super().__init__(features, context_features, max_iterations)
        u, w = START * torch.randn(features), torch.randn(features) / features**0.5
        self.parts = Amortized(torch.cat([u, w, torch.zeros(1)]), context_features)

    def forward_and_log_det(self, z: Tensor, context: Tensor | None = None) -> Mapped:
        """z + û tanh(w·z + b)."""
        u, w, b, slope = self._u_w_b_slope(context)
        t = torch.tanh(_dot(w, z) + b)
        return z + u * t[..., None], tanh_slope(t, slope).log()

    def inverse_and_log_det(self, x: Tensor, context: Tensor | None = None) -> Mapped:
        """x - û tanh(s), from the root s of s + (w·û) tanh(s) = w·x + b."""
        u, w, b, slope = self._u_w_b_slope(context)
        self.inversion_status = None
        t = torch.tanh(self._root(_dot(w, x) + b, slope))
        return x - u * t[..., None], -tanh_slope(t, slope).log()

    def _u_w_b_slope(self, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """û and w (*B, D), b and 1 + w·û (*B,)."""
        u, w, b = self.parts(context).split([self.features, self.features, 1], dim=-1)
        product, square = _dot(w, u), _dot(w, w)
        slope = positive_slope(product)
        # The excess vanishes at 0: w = 0 leaves u as it is, and wants no division by zero.
        length = _excess(product) / square.clamp(min=torch.finfo(square.dtype).tiny)
        return u + length[..., None] * w, w, b[..., 0], slope


class Radial(Bijector):
    """x = z + β (z - z₀) / (α + r), r = |z - z₀|, so that x - z₀ = (z - z₀) (γ + r) / (α + r).

    Rezende and Mohamed 2015, equation 14. α = m(a) > 0 and γ = α + β = α m(g) > 0 (appendix A.2,
    with m as at the top of this file). With ρ = |x - z₀| = r (γ + r) / (α + r),

        log|det dx/dz| = (D - 1) log(ρ / r) + log(dρ/dr)
        dρ/dr = (r² + 2αr + αγ) / (α + r)²

    and the inverse is the positive root of r² + (γ - ρ) r - αρ = 0, with no iteration.

    Args:
        features: D.
        context_features: C; the context shifts z₀, a and g.

    Example:
        >>> import torch
        >>> from baselines import Radial
        >>> radial = Radial(3)
        >>> radial.inverse(radial(torch.ones(5, 3))).shape
        torch.Size([5, 3])

    """

    def __init__(self, features: int, *, context_features: int = 0) -> None:
        super().__init__(features, context_features)
        start = torch.cat([torch.randn(features), torch.zeros(1), START * torch.randn(1)])
        self.parts = Amortized(start, context_features)

    def forward_and_log_det(self, z: Tensor, context: Tensor | None = None) -> Mapped:
        """z₀ + (z - z₀) (γ + r) / (α + r)."""
        centre, alpha, gamma = self._centre_alpha_gamma(context)
        offset = z - centre
        r = _length(offset)
        stretch, log_det = self._stretch_and_log_det(r, alpha, gamma)
        return centre + offset * stretch[..., None], log_det

    def inverse_and_log_det(self, x: Tensor, context: Tensor | None = None) -> Mapped:
        """z₀ + (x - z₀) (α + r) / (γ + r), from the quadratic's root r."""
        centre, alpha, gamma = self._centre_alpha_gamma(context)
        offset = x - centre
        r = _positive_root(_length(offset), alpha, gamma)
        stretch, log_det = self._stretch_and_log_det(r, alpha, gamma)
        return centre + offset / stretch[..., None], -log_det

    def _stretch_and_log_det(
        self, r: Tensor, alpha: Tensor, gamma: Tensor
    ) -> tuple[Tensor, Tensor]:
        """ρ/r and the log-determinant; dρ/dr as a sum of positives that cannot overflow."""
        total = alpha + r
        stretch = (gamma + r) / total
        radial = (r / total) * (1 + alpha / total) + (alpha / total) * (gamma / total)
        return stretch, (self.features - 1) * stretch.log() + radial.log()

    def _centre_alpha_gamma(self, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        centre, a, g = self.parts(context).split([self.features, 1, 1], dim=-1)
        alpha = positive_slope(a[..., 0])
        return centre, alpha, alpha * positive_slope(g[..., 0])


class _Repeated(Flow):
    """Maps of one kind in a row."""

    kind: type[Planar | Radial]

    def __init__(
        self,
        features: int,
        *,
        context_features: int = 0,
        layers: int = 8,
        base: nn.Module | None = None,
    ) -> None:
        maps = stacked(
            features, layers, lambda _: self.kind(features, context_features=context_features)
        )
        super().__init__(maps, base)


class PlanarFlow(_Repeated):
    """Planar maps in a row: a sample in one pass, a density in one scalar root a layer.

    Args:
        features: D.
        context_features: C, 0 for an unconditional density.
        layers: K.
        base: the distribution of z; by default the standard normal.

    Example:
        >>> import torch
        >>> from baselines import PlanarFlow
        >>> PlanarFlow(5, layers=2).log_prob(torch.zeros(3, 5)).shape
        torch.Size([3])

    """

    kind = Planar


class RadialFlow(_Repeated):
    """Radial maps in a row: both directions in one pass.

    Args:
        features: D.
        context_features: C, 0 for an unconditional density.
        layers: K.
        base: the distribution of z; by default the standard normal.

    Example:
        >>> import torch
        >>> from baselines import RadialFlow
        >>> RadialFlow(5, layers=2).log_prob(torch.zeros(3, 5)).shape
        torch.Size([3])

    """

    kind = Radial


def _dot(a: Tensor, b: Tensor) -> Tensor:
    # No matrix product: autocast would take one in low precision, and the inverse would be another.
    return (a * b).sum(-1)


def _length(offset: Tensor) -> Tensor:
    """|offset|, or what has a finite square: farther out the map is the identity to rounding."""
    length: Tensor = torch.linalg.vector_norm(offset, dim=-1)
    return length.clamp(max=torch.finfo(length.dtype).max ** 0.5 / 2)


def _positive_root(rho: Tensor, alpha: Tensor, gamma: Tensor) -> Tensor:
    """r >= 0 with r² + (γ - ρ) r = αρ; of its two forms the one that adds, never subtracts.

    The discriminant is positive wherever α and γ are: its root has a gradient at ρ = 0 too.
    """
    half = (rho - gamma) / 2
    root = (half.square() + alpha * rho).sqrt()
    return torch.where(half > 0, half + root, alpha * rho / (root + half.clamp(max=0).abs()))
