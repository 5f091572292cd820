"""The logistic base."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from cflows.core.base import LocationScale

__all__ = ["Logistic"]


class Logistic(LocationScale):
    """Independent logistic variables, the base of NICE on images (Dinh et al. 2015, section 3.4).

        log p(z) = Σ_i log σ(ε_i) + log σ(-ε_i) - log_scale_i,   ε_i = (z_i - loc_i) / scale_i

    Standard when built, with variance π²/3.

    Args:
        features: D.
        learnable: whether loc and log_scale are trained.

    Example:
        >>> import torch
        >>> from cflows import Logistic
        >>> Logistic(2).log_prob(torch.zeros(2))  # -2 log 4
        tensor(-2.7726)

    """

    def log_prob(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Σ_i log σ(ε_i) + log σ(-ε_i) - log_scale_i."""
        noise = self.standardised(z)
        return (F.logsigmoid(noise) + F.logsigmoid(-noise) - self.log_scale).sum(-1)

    def noise(self, size: tuple[int, ...]) -> Tensor:
        """ε = logit(u) with u uniform, which is kept as far from 0 as it is from 1."""
        u = torch.rand(size, dtype=self.loc.dtype, device=self.loc.device)
        return torch.logit(u.clamp(min=torch.finfo(u.dtype).eps / 2))
