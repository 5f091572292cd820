"""The mixture base."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cflows.core.base import Base, _batch, _store

__all__ = ["MixtureOfGaussians"]


class MixtureOfGaussians(Base):
    """A mixture of K normals with diagonal covariances: p(z) = Σ_k w_k N(z; loc_k, diag scale_k²).

    When built the weights are equal, the scales one, and the K locs drawn from N(0, spread²), since
    equal components would stay equal. Draws carry no gradient: which component a draw is of is no
    smooth function of the weights.

    Args:
        features: D.
        components: K.
        spread: how far apart the components start.
        learnable: whether logits (K,), loc (K, D) and log_scale (K, D) are trained.

    Raises:
        ValueError: components is less than 1.

    Example:
        >>> import torch
        >>> from cflows import MixtureOfGaussians
        >>> base = MixtureOfGaussians(2, components=3)
        >>> base.sample((5,)).shape, base.log_prob(torch.zeros(4, 2)).shape
        (torch.Size([5, 2]), torch.Size([4]))

    """

    has_rsample = False
    logits: Tensor
    loc: Tensor
    log_scale: Tensor

    def __init__(
        self, features: int, components: int, *, spread: float = 1.0, learnable: bool = True
    ) -> None:
        super().__init__(features)
        if components < 1:
            raise ValueError(f"components must be at least 1, got {components}")
        _store(self, "logits", torch.zeros(components), learnable)
        _store(self, "loc", spread * torch.randn(components, features), learnable)
        _store(self, "log_scale", torch.zeros(components, features), learnable)

    def log_prob(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """log Σ_k w_k N(z; loc_k, diag scale_k²), (*B, D) -> (*B,)."""
        standard = (z.unsqueeze(-2) - self.loc) * torch.exp(-self.log_scale)
        constant = 0.5 * self.features * math.log(2 * math.pi) + self.log_scale.sum(-1)
        log_weights = self.logits.log_softmax(-1)
        each = log_weights - constant - 0.5 * standard.square().sum(-1)
        return each.logsumexp(-1)

    @torch.no_grad()
    def sample(self, shape: tuple[int, ...] = (), context: Tensor | None = None) -> Tensor:
        """A component by its weight, then its normal: S and (*B, C) -> (*S, *B, D)."""
        size = (*shape, *_batch(context))
        # argmax w_k / e_k with e_k ~ Exp(1) is k with probability w_k; multinomial takes no size 0.
        clocks = self.logits.new_empty((*size, len(self.logits))).exponential_()
        chosen = (self.logits.softmax(-1) / clocks).argmax(-1)
        noise = torch.randn((*size, self.features), dtype=self.loc.dtype, device=self.loc.device)
        return self.loc[chosen] + torch.exp(self.log_scale[chosen]) * noise
