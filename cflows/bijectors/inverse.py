"""A map the other way round."""

from __future__ import annotations

from torch import Tensor
from torch.distributions import constraints

from cflows.core.bijector import Bijector, Mapped

__all__ = ["Inverse"]


class Inverse(Bijector):
    """The same map the other way round: ``Inverse(f).forward`` is ``f.inverse``.

    Args:
        bijector: f.

    Example:
        >>> import torch
        >>> from cflows import Exp, Inverse
        >>> Inverse(Exp(1))(torch.tensor([1.0]))
        tensor([0.])

    """

    def __init__(self, bijector: Bijector) -> None:
        super().__init__(bijector.features, bijector.context_features)
        self.bijector = bijector

    @property
    def codomain(self) -> constraints.Constraint:
        """The domain of f."""
        return self.bijector.domain

    @property
    def domain(self) -> constraints.Constraint:
        """The codomain of f."""
        return self.bijector.codomain

    def forward(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """f⁻¹(z)."""
        return self.bijector.inverse(z, context)

    def inverse(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """f(x)."""
        return self.bijector.forward(x, context)

    def forward_and_log_det(self, z: Tensor, context: Tensor | None = None) -> Mapped:
        """f⁻¹(z) and its log-determinant."""
        return self.bijector.inverse_and_log_det(z, context)

    def inverse_and_log_det(self, x: Tensor, context: Tensor | None = None) -> Mapped:
        """f(x) and its log-determinant."""
        return self.bijector.forward_and_log_det(x, context)
