"""Normalization layers as bijectors."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .bijector import Bijector
from .storage import register

__all__ = ["BatchNorm"]


@register
class BatchNorm(Bijector):
    r"""Batch normalization as a bijector: data -> noise normalises, noise -> data undoes it.

        z = exp(γ) (x - m) / √(v + ε) + β,   log|det dz/dx| = Σ_i γ_i - log(v_i + ε) / 2

    (Dinh et al. 2017, section 3.7; Papamakarios et al. 2017, appendix B). While training,
    ``inverse`` takes m and v from the batch, or with ``moving`` from the running averages that the
    batch was just mixed into, as the FFJORD code does; in evaluation from the running averages.
    ``forward`` always uses those, and is well defined before any ``inverse``.

    Args:
        features: D.
        moving: whether training normalises by the running averages.
        momentum: how much of the running averages is kept at each batch.
        eps: ε.

    """

    mean: Tensor
    variance: Tensor
    batches: Tensor

    def __init__(
        self, features: int, *, moving: bool = False, momentum: float = 0.9, eps: float = 1e-4
    ) -> None:
        super().__init__(features)
        self.moving, self.momentum, self.eps = moving, momentum, eps
        self.log_gamma = nn.Parameter(torch.zeros(features))
        self.beta = nn.Parameter(torch.zeros(features))
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("variance", torch.ones(features))
        self.register_buffer("batches", torch.zeros((), dtype=torch.long))

    def forward_and_log_det(
        self, z: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """x = (z - β) exp(-γ) √(v + ε) + m, by the running averages."""
        z, _ = self.broadcast(z, context)
        scale = self._scale(self.variance)
        return (z - self.beta) / scale + self.mean, -scale.log().sum().expand(z.shape[:-1])

    def inverse_and_log_det(
        self, x: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """z = exp(γ) (x - m) / √(v + ε) + β."""
        x, _ = self.broadcast(x, context)
        mean, variance = self.mean, self.variance
        if self.training:
            rows = x.reshape(-1, self.features)
            batch_mean, batch_variance = rows.mean(0), rows.var(0, correction=0)
            self._mix(batch_mean.detach(), batch_variance.detach())
            # Copies: the averages change again before this batch's backward pass ends.
            mean = self.mean.clone() if self.moving else batch_mean
            variance = self.variance.clone() if self.moving else batch_variance
        scale = self._scale(variance)
        return (x - mean) * scale + self.beta, scale.log().sum().expand(x.shape[:-1])

    def _scale(self, variance: Tensor) -> Tensor:
        return self.log_gamma.exp() * torch.rsqrt(variance + self.eps)

    @torch.no_grad()
    def _mix(self, mean: Tensor, variance: Tensor) -> None:
        # The first batch counts whole: the averages' start is no data. On the device, no branch.
        keep = torch.where(self.batches > 0, self.momentum, 0.0).to(mean.dtype)
        self.mean.mul_(keep).add_((1 - keep) * mean)
        self.variance.mul_(keep).add_((1 - keep) * variance)
        self.batches += 1
