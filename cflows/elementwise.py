"""Maps that act on each coordinate alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .bijector import Bijector
from .storage import register

__all__ = ["Affine", "DiagonalScale"]


@register
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
        if loc.dim() != 1 or loc.shape != scale.shape:
            raise ValueError(f"loc and scale must be of shape (D,), got {tuple(loc.shape)} "
                             f"and {tuple(scale.shape)}")  # fmt: skip
        if not bool(((scale > 0) & scale.isfinite() & loc.isfinite()).all()):
            raise ValueError("loc must be finite, scale positive and finite in every coordinate")
        super().__init__(len(loc))
        self.register_buffer("loc", loc.detach().clone())
        self.register_buffer("scale", scale.detach().clone())

    def forward_and_log_det(
        self, z: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Loc + scale z."""
        z, _ = self.broadcast(z, context)
        log_det = self.scale.log().sum()
        return torch.addcmul(self.loc, self.scale, z), log_det.expand(z.shape[:-1])

    def inverse_and_log_det(
        self, x: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """(x - loc) / scale."""
        x, _ = self.broadcast(x, context)
        log_det = -self.scale.log().sum()
        return (x - self.loc) / self.scale, log_det.expand(x.shape[:-1])


@register
class DiagonalScale(Bijector):
    """A learned x_i = exp(s_i) z_i, with log|det dx/dz| = Σ_i s_i (Dinh et al. 2015, section 3.3).

    The identity when built.

    Args:
        features: D.

    """

    def __init__(self, features: int) -> None:
        super().__init__(features)
        self.log_scale = nn.Parameter(torch.zeros(features))

    def forward_and_log_det(
        self, z: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """exp(s) z."""
        z, _ = self.broadcast(z, context)
        return z * self.log_scale.exp(), self.log_scale.sum().expand(z.shape[:-1])

    def inverse_and_log_det(
        self, x: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """exp(-s) x."""
        x, _ = self.broadcast(x, context)
        return x * torch.exp(-self.log_scale), -self.log_scale.sum().expand(x.shape[:-1])
