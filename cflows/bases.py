"""Base distributions: what noise is.

A base is a module with ``log_prob(z, context)``, ``sample(shape, context)`` and
``rsample(shape, context)``; parameters and buffers move with the flow.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .storage import register

__all__ = ["Base", "Normal"]


class Base(nn.Module):
    """A distribution on R^D that a flow starts from.

    Args:
        features: D.

    """

    has_rsample: bool = True

    def __init__(self, features: int) -> None:
        super().__init__()
        self.features = features

    def log_prob(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Log-density in nats, (*B, D) -> (*B,)."""
        raise TypeError(f"{type(self).__name__} must define log_prob")

    def rsample(self, shape: tuple[int, ...] = (), context: Tensor | None = None) -> Tensor:
        """Draws with gradient, S and (*B, C) -> (*S, *B, D)."""
        raise TypeError(f"{type(self).__name__} has no reparameterised draws: use sample")

    @torch.no_grad()
    def sample(self, shape: tuple[int, ...] = (), context: Tensor | None = None) -> Tensor:
        """Draws without gradient, S and (*B, C) -> (*S, *B, D)."""
        return self.rsample(shape, context)


@register
class Normal(Base):
    """Independent normals: z_i ~ N(loc_i, exp(log_scale_i)²), standard when built.

    Args:
        features: D.
        learnable: whether loc and log_scale are trained.

    Example:
        >>> import torch
        >>> from cflows import Normal
        >>> Normal(2).log_prob(torch.zeros(2))  # -log(2 pi)
        tensor(-1.8379)

    """

    loc: Tensor
    log_scale: Tensor

    def __init__(self, features: int, *, learnable: bool = False) -> None:
        super().__init__(features)
        for name in ("loc", "log_scale"):
            if learnable:
                setattr(self, name, nn.Parameter(torch.zeros(features)))
            else:
                self.register_buffer(name, torch.zeros(features))

    def log_prob(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """-Σ_i (((z_i - loc_i) / scale_i)² + log 2π) / 2 + log scale_i."""
        standard = (z - self.loc) * torch.exp(-self.log_scale)
        constant = 0.5 * self.features * math.log(2 * math.pi) + self.log_scale.sum()
        return -0.5 * standard.square().sum(-1) - constant

    def rsample(self, shape: tuple[int, ...] = (), context: Tensor | None = None) -> Tensor:
        """Loc + scale ε with ε ~ N(0, 1)."""
        batch = () if context is None else context.shape[:-1]
        noise = torch.randn(
            (*shape, *batch, self.features), dtype=self.loc.dtype, device=self.loc.device
        )
        return self.loc + torch.exp(self.log_scale) * noise
