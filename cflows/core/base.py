"""Base distributions: what noise is.

A base is a module with ``log_prob(z, context)``, ``sample(shape, context)`` and
``rsample(shape, context)``; parameters and buffers move with the flow.
"""

from __future__ import annotations

import math
from typing import TypeAlias

import torch
from torch import Tensor, nn

from cflows.core.pickling import Pickled

__all__ = ["Base", "Normal"]

Shape: TypeAlias = int | list[int] | tuple[int, ...]
"""S, of draws; an int n means (n,)."""

Scored: TypeAlias = tuple[Tensor, Tensor]
"""Draws (*S, *B, D) and their log-density (*S, *B)."""


class Base(Pickled):
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
        """loc + scale ε."""
        noise = self.noise((*shape, *_batch(context), self.features))
        return self.loc + torch.exp(self.log_scale) * noise


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


def _store(module: nn.Module, name: str, value: Tensor, learnable: bool) -> None:
    if learnable:
        setattr(module, name, nn.Parameter(value))
    else:
        module.register_buffer(name, value)


def _batch(context: Tensor | None) -> tuple[int, ...]:
    """*B, which a base without context of its own takes from the flow's."""
    return () if context is None else tuple(context.shape[:-1])


def leading(sample_shape: Shape) -> tuple[int, ...]:
    """A shape of draws as a tuple; an int n means (n,)."""
    try:
        return tuple(sample_shape)  # type: ignore[arg-type]
    except TypeError:
        return (int(sample_shape),)  # type: ignore[arg-type]
