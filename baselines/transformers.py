"""Elementwise maps whose parameters a network gives.

Couplings and autoregressive layers share them. A transformer takes z (*S,) and parameters (*S, P)
and returns x and log|dx/dz|, both (*S,); ``inverse`` goes back. Parameters of zero give the
identity. Transformers hold no tensors. ``splines.RationalQuadratic`` is another one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from cflows import register

from .autoregressive import bounded

__all__ = ["Additive", "AffineScale", "Transformer"]


class Transformer(Protocol):
    """What an elementwise map offers."""

    @property
    def parameters_per_feature(self) -> int:
        """P."""

    def forward(self, z: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Z (*S,) and parameters (*S, P) -> x and log|dx/dz|, (*S,) each."""

    def inverse(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """X (*S,) and parameters (*S, P) -> z and log|dz/dx|, (*S,) each."""


@register
@dataclass(frozen=True)
class Additive:
    """x = z + t, log|dx/dz| = 0 (Dinh, Krueger and Bengio 2015, equation 9); P = 1.

    Example:
        >>> import torch
        >>> from baselines import Additive
        >>> Additive().forward(torch.tensor([1.0]), torch.tensor([[2.0]]))
        (tensor([3.]), tensor([0.]))

    """

    @property
    def parameters_per_feature(self) -> int:
        """1: t."""
        return 1

    def forward(self, z: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Z + t."""
        return z + parameters.squeeze(-1), z.new_zeros(()).expand(z.shape)

    def inverse(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """X - t."""
        return x - parameters.squeeze(-1), x.new_zeros(()).expand(x.shape)


@register
@dataclass(frozen=True)
class AffineScale:
    """x = z exp(α) + t, log|dx/dz| = α = a tanh(s / a), a = 5, of parameters t and s; P = 2.

    (Dinh, Sohl-Dickstein and Bengio 2017, equation 4.)

    Example:
        >>> import torch
        >>> from baselines import AffineScale
        >>> AffineScale().forward(torch.tensor([1.0]), torch.tensor([[2.0, 1.0]]))
        (tensor([4.6828]), tensor([0.9869]))

    """

    @property
    def parameters_per_feature(self) -> int:
        """2: t and s."""
        return 2

    def forward(self, z: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Z exp(α) + t."""
        shift, log_scale = parameters.unbind(-1)
        log_scale = bounded(log_scale)
        return torch.addcmul(shift, z, log_scale.exp()), log_scale

    def inverse(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """(X - t) exp(-α)."""
        shift, log_scale = parameters.unbind(-1)
        log_det = bounded(-log_scale)
        return (x - shift) * log_det.exp(), log_det
