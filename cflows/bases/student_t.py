"""The Student base."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cflows.core.base import LocationScale, _store

__all__ = ["StudentT"]


class StudentT(LocationScale):
    """Independent Student variables of ν degrees of freedom: tails |z|^-(ν+1).

        log p(z) = Σ_i log Γ((ν+1)/2) - log Γ(ν/2) - log(πν)/2 - log_scale_i
                   - (ν+1)/2 log(1 + ε_i²/ν),   ε_i = (z_i - loc_i) / scale_i

    A flow whose map is Lipschitz has tails no heavier than its base's (Jaini et al. 2020, "Tails of
    Lipschitz Triangular Flows"): on heavy-tailed data this base stands where ``Normal`` cannot.

    Args:
        features: D.
        df: ν when built, positive, the same for all coordinates.
        learnable: whether loc, log_scale and log_df are trained, one of each a coordinate.

    Raises:
        ValueError: df is not positive and finite.

    Example:
        >>> import torch
        >>> from cflows import Normal, StudentT
        >>> far = torch.tensor([10.0])
        >>> StudentT(1, df=3.0).log_prob(far), Normal(1).log_prob(far)
        (tensor(-8.0731), tensor(-50.9189))

    """

    log_df: Tensor

    def __init__(self, features: int, *, df: float = 5.0, learnable: bool = False) -> None:
        super().__init__(features, learnable=learnable)
        if not 0 < df < math.inf:
            raise ValueError(f"df must be positive and finite, got {df}")
        _store(self, "log_df", torch.full((features,), math.log(df)), learnable)

    def log_prob(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """The sum over coordinates of Student's log-density."""
        # The two log Γ cancel: at ν = 1e4 float32 would leave three digits.
        exact = self.log_df.double()
        half = 0.5 * exact.exp()
        constant = torch.lgamma(half + 0.5) - torch.lgamma(half) - 0.5 * (math.log(math.pi) + exact)
        df = self.log_df.exp()
        tail = 0.5 * (df + 1) * torch.log1p(self.standardised(z).square() / df)
        return (constant.to(z.dtype) - self.log_scale - tail).sum(-1)

    def noise(self, size: tuple[int, ...]) -> Tensor:
        """ε = n / √g, n ~ N(0, 1) and g ~ Γ(ν/2, ν/2); its gradient reaches ν as well."""
        half = 0.5 * self.log_df.exp()
        gamma = torch.distributions.Gamma(half, half, validate_args=False)
        normal = torch.randn(size, dtype=half.dtype, device=half.device)
        return normal * gamma.rsample(torch.Size(size[:-1])).rsqrt()
