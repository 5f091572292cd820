"""Base distributions of other libraries, as bases of this package."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from cflows.core.base import Base, _batch

__all__ = [
    "AdaptedBase",
    "NflowsBase",
    "NormflowsBase",
    "TorchLaw",
    "ZukoBase",
    "embedded",
    "keyword",
]


class AdaptedBase(Base):
    """Another library's base distribution, for rows (N, D) and a context (N, C) or None.

    Subclasses write ``drawn`` and ``scored``.
    """

    def __init__(self, law: Any, features: int, has_rsample: bool) -> None:
        super().__init__(features)
        self.law, self.has_rsample = law, has_rsample

    def drawn(self, n: int, context: Tensor | None) -> Tensor:
        """Draws, (N, D)."""
        raise TypeError(f"{type(self).__name__} must define drawn")

    def scored(self, z: Tensor, context: Tensor | None) -> Tensor:
        """Their log-density, (N,)."""
        raise TypeError(f"{type(self).__name__} must define scored")

    def log_prob(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """The library's."""
        rows = z.reshape(-1, self.features)
        if context is not None:
            context = context.expand(*z.shape[:-1], -1).reshape(len(rows), context.shape[-1])
        return self.scored(rows, context).reshape(z.shape[:-1])

    def rsample(self, shape: tuple[int, ...] = (), context: Tensor | None = None) -> Tensor:
        """The library's draws, where these have gradients."""
        return self._sampled(shape, context) if self.has_rsample else super().rsample(shape)

    @torch.no_grad()
    def sample(self, shape: tuple[int, ...] = (), context: Tensor | None = None) -> Tensor:
        """The library's draws."""
        return self._sampled(shape, context)

    def _sampled(self, shape: tuple[int, ...], context: Tensor | None) -> Tensor:
        size = torch.Size((*shape, *_batch(context)))
        if context is not None:
            context = context.expand(*size, -1).reshape(size.numel(), context.shape[-1])
        return self.drawn(size.numel(), context).reshape(*size, self.features)


class ZukoBase(AdaptedBase):
    """A ``zuko.lazy.LazyDistribution``."""

    def drawn(self, n: int, context: Tensor | None) -> Tensor:
        """Of as many laws as there are contexts, or of one."""
        law = self.law(context)
        draw = law.rsample if self.has_rsample else law.sample
        drawn: Tensor = draw(() if law.batch_shape else (n,))
        return drawn

    def scored(self, z: Tensor, context: Tensor | None) -> Tensor:
        """The law's."""
        told: Tensor = self.law(context).log_prob(z)
        return told


class NflowsBase(AdaptedBase):
    """An ``nflows.distributions.Distribution``, and the network that embeds its contexts."""

    def __init__(self, law: Any, features: int, embedding: nn.Module | None = None) -> None:
        super().__init__(law, features, has_rsample=False)
        self.embedding = embedding

    def drawn(self, n: int, context: Tensor | None) -> Tensor:
        """One for each context."""
        if context is None:
            drawn: Tensor = self.law.sample(n)
        else:
            drawn = self.law.sample(1, context=embedded(self.embedding, context))[:, 0]
        return drawn

    def scored(self, z: Tensor, context: Tensor | None) -> Tensor:
        """The law's."""
        told: Tensor = self.law.log_prob(z, context=embedded(self.embedding, context))
        return told


class NormflowsBase(AdaptedBase):
    """A ``normflows.distributions.BaseDistribution``."""

    def drawn(self, n: int, context: Tensor | None) -> Tensor:
        """By its call."""
        drawn: Tensor = self.law(n, **keyword(context))[0]
        return drawn

    def scored(self, z: Tensor, context: Tensor | None) -> Tensor:
        """The law's."""
        told: Tensor = self.law.log_prob(z, **keyword(context))
        return told


class TorchLaw(AdaptedBase):
    """A torch ``Distribution`` of whatever make; its tensors stay where they are."""

    def drawn(self, n: int, context: Tensor | None) -> Tensor:
        """Without gradient."""
        drawn: Tensor = self.law.sample((n,))
        return drawn

    def scored(self, z: Tensor, context: Tensor | None) -> Tensor:
        """Summed over columns where these are independent."""
        told: Tensor = self.law.log_prob(z)
        return told if self.law.event_shape else told.sum(-1)


def embedded(embedding: nn.Module | None, context: Tensor | None) -> Tensor | None:
    """What a network makes of a context, where there are both."""
    return context if embedding is None or context is None else embedding(context)


def keyword(context: Tensor | None) -> dict[str, Tensor]:
    """A context as an argument by name; none where there is none."""
    return {} if context is None else {"context": context}
