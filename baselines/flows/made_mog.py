r"""MADE MoG: an autoregressive mixture of Gaussians as a base.

Papamakarios, Pavlakou and Murray 2017, "Masked Autoregressive Flow for Density Estimation",
sections 3.2 and 4: a MAF whose base is this one is their MAF MoG.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from baselines.inversion.autoregressive import sequential
from baselines.inversion.degree_sweep import walk
from baselines.networks.made import MADE, MADESettings
from cflows import Base
from cflows.core.bijector import bounded

__all__ = ["MADEMoG"]

if TYPE_CHECKING:
    from typing_extensions import Unpack


class MADEMoG(Base):
    r"""p(z) = Π_d Σ_k π_dk N(z_d; μ_dk, exp(α_dk)²), with π, μ, α a MADE's outputs at z_<d.

    Log scales are bounded as elsewhere, α = a tanh(s / a), a = 5. A draw costs about one pass of
    the MADE (see ``baselines.inversion.degree_sweep``) and carries no gradient.

    Args:
        features: D.
        components: K of each conditional.
        context_features: C.
        made: further arguments of the ``MADE``: hidden, activation, order, hidden_degrees,
            residual.

    Example:
        >>> import torch
        >>> from baselines import MADEMoG
        >>> base = MADEMoG(3, 10, hidden=(32,))
        >>> base.log_prob(torch.zeros(5, 3)).shape, base.sample((5,)).shape
        (torch.Size([5]), torch.Size([5, 3]))

    """

    has_rsample = False

    def __init__(
        self,
        features: int,
        components: int,
        *,
        context_features: int = 0,
        **made: Unpack[MADESettings],
    ) -> None:
        super().__init__(features)
        if components < 1:
            raise ValueError(f"components must be at least 1, got {components}")
        self.components = components
        self.context_features = context_features
        self.made = MADE(
            features, context_features=context_features, outputs=3 * components, **made
        )
        # Components that start alike would get like gradients and stay alike.
        means = torch.linspace(-1.5, 1.5, components) if components > 1 else torch.zeros(1)
        with torch.no_grad():
            last = self.made.masked[-1].bias.view(3, components, features)
            last[1] = means[:, None]

    def log_prob(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Σ_d log Σ_k π_dk N(z_d; μ_dk, exp(α_dk)²), (*B, D) -> (*B,)."""
        parameters = self.made.parameters_of(z, self._own(context)).to(z.dtype)
        log_weights, means, log_scales = self._split(parameters)
        standard = (z[..., None] - means) * torch.exp(-log_scales)
        terms = log_weights - log_scales - 0.5 * standard.square()
        constant = 0.5 * math.log(2 * math.pi) * self.features
        return terms.logsumexp(-1).sum(-1) - constant

    @torch.no_grad()
    def sample(self, shape: tuple[int, ...] = (), context: Tensor | None = None) -> Tensor:
        """Draws without gradient, S and (*B, C) -> (*S, *B, D)."""
        batch = () if context is None else context.shape[:-1]
        rows = math.prod((*shape, *batch))
        context = self._own(context)
        if context is not None:
            context = context.expand(*shape, *batch, -1).reshape(rows, self.context_features)
        like = self.made.masked[0].bias
        size = (rows, self.features, self.components)
        # The largest of log π_k + Gumbel noise is a draw of k (Maddison et al. 2014).
        gumbel = -torch.empty(size, dtype=like.dtype, device=like.device).exponential_().log()
        normal = torch.randn(size[:2], dtype=like.dtype, device=like.device)
        noise = torch.cat([gumbel, normal[..., None]], dim=-1)
        if self.made.is_readable:
            z, _ = walk(self.made, noise, context, self._pick)
        else:
            # All coordinates at once, of which each pass settles one.
            z, _ = sequential(self.made, normal, context, lambda _, h: self._pick(noise, h))
        return z.reshape(*shape, *batch, self.features)

    def _pick(self, noise: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """One coordinate of every row, or several: (*S, K + 1), (*S, 3K) -> (*S), (*S)."""
        log_weights, means, log_scales = self._split(parameters)
        chosen = (log_weights + noise[..., :-1]).argmax(-1, keepdim=True)
        mean, log_scale = (v.gather(-1, chosen).squeeze(-1) for v in (means, log_scales))
        return torch.addcmul(mean, log_scale.exp(), noise[..., -1]), log_scale

    def _split(self, parameters: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits, means, log_scales = parameters.chunk(3, dim=-1)
        return logits.log_softmax(-1), means, bounded(log_scales)

    def _own(self, context: Tensor | None) -> Tensor | None:
        return context if self.context_features else None
