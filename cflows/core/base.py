"""Base distributions: what noise is.

A base is a module with ``log_prob(z, context)``, ``sample(shape, context)`` and
``rsample(shape, context)``; parameters and buffers move with the flow.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cflows.core.saving import register

__all__ = ["Base", "Logistic", "MixtureOfGaussians", "Normal", "StudentT"]


class Base(nn.Module):
    """A distribution on R^D that a flow starts from.

    Args:
        features: D.

    Example:
        >>> import math, torch
        >>> from cflows import Base
        >>> class Square(Base):
        ...     def log_prob(self, z, context=None):
        ...         inside = (z.abs() < 1).all(-1)
        ...         return torch.where(inside, -self.features * math.log(2), -torch.inf)
        ...     def rsample(self, shape=(), context=None):
        ...         return 2 * torch.rand(*shape, self.features) - 1
        >>> Square(2).log_prob(torch.zeros(2)), Square(2).sample((5,)).shape
        (tensor(-1.3863), torch.Size([5, 2]))

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


class LocationScale(Base):
    """Independent z_i = loc_i + exp(log_scale_i) ε_i, with ε_i of a standard law.

    Subclasses write ``noise``, which draws ε, and ``log_prob``.

    Args:
        features: D.
        learnable: whether loc and log_scale, zero when built, are trained.

    """

    loc: Tensor
    log_scale: Tensor

    def __init__(self, features: int, *, learnable: bool = False) -> None:
        super().__init__(features)
        for name in ("loc", "log_scale"):
            _store(self, name, torch.zeros(features), learnable)

    def noise(self, size: tuple[int, ...]) -> Tensor:
        """ε of a size that ends in D, with the dtype and on the device of loc."""
        raise TypeError(f"{type(self).__name__} must define noise")

    def standardised(self, z: Tensor) -> Tensor:
        """ε = (z - loc) / scale."""
        return (z - self.loc) * torch.exp(-self.log_scale)

    def rsample(self, shape: tuple[int, ...] = (), context: Tensor | None = None) -> Tensor:
        """Loc + scale ε."""
        noise = self.noise((*shape, *_batch(context), self.features))
        return self.loc + torch.exp(self.log_scale) * noise


@register
class Normal(LocationScale):
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

    def log_prob(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """-Σ_i (((z_i - loc_i) / scale_i)² + log 2π) / 2 + log scale_i."""
        constant = 0.5 * self.features * math.log(2 * math.pi) + self.log_scale.sum()
        return -0.5 * self.standardised(z).square().sum(-1) - constant

    def noise(self, size: tuple[int, ...]) -> Tensor:
        """ε ~ N(0, 1)."""
        return torch.randn(size, dtype=self.loc.dtype, device=self.loc.device)


@register
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


@register
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


@register
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
        """Log Σ_k w_k N(z; loc_k, diag scale_k²), (*B, D) -> (*B,)."""
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


def _store(module: nn.Module, name: str, value: Tensor, learnable: bool) -> None:
    if learnable:
        setattr(module, name, nn.Parameter(value))
    else:
        module.register_buffer(name, value)


def _batch(context: Tensor | None) -> tuple[int, ...]:
    """*B, which a base without context of its own takes from the flow's."""
    return () if context is None else tuple(context.shape[:-1])
