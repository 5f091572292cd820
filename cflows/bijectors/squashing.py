"""Maps of each coordinate between R and an interval or a half-line.

They act where columns are bounded by nature: at the data end of a flow, ``Chain(..., Sigmoid(D))``.
float32 carries their round trip only where x is not rounded to an end of the range: there x stays
the last number inside, whose density is finite.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from cflows.bijectors.elementwise import Elementwise
from cflows.bijectors.inverse import Inverse

__all__ = ["Exp", "Log", "Logit", "Sigmoid", "Softplus", "Softsign", "Tanh"]


class Softsign(Elementwise):
    """x = z / (1 + |z|), R -> (-1, 1), with log dx/dz = -2 log(1 + |z|).

    It nears ±1 as 1/|z| does, ``Tanh`` exponentially: float32 still tells z = 1e4 from 1e4 + 10.

    Args:
        features: D.

    Example:
        >>> import torch
        >>> from cflows import Softsign
        >>> Softsign(2).forward_and_log_det(torch.tensor([1.0, -3.0]))
        (tensor([ 0.5000, -0.7500]), tensor(-4.1589))

    """

    ends = (-1.0, 1.0)

    def value(self, z: Tensor) -> Tensor:
        """z / (1 + |z|)."""
        return z / (1 + z.abs())

    def root(self, x: Tensor) -> Tensor:
        """x / (1 - |x|)."""
        return x / (1 - x.abs())

    def log_slope(self, z: Tensor, x: Tensor) -> Tensor:
        """-2 log(1 + |z|)."""
        return -2 * torch.log1p(z.abs())


class Tanh(Elementwise):
    """x = tanh(z), R -> (-1, 1), with log dx/dz = log 4 + log σ(2z) + log σ(-2z).

    float32 would round x to ±1 from |z| = 9.1 on: such x stay ±(1 - 6e-8), where z = ±8.7.

    Args:
        features: D.

    Example:
        >>> import torch
        >>> from cflows import Tanh
        >>> Tanh(1).forward_and_log_det(torch.tensor([1.0]))
        (tensor([0.7616]), tensor(-0.8676))

    """

    ends = (-1.0, 1.0)

    def value(self, z: Tensor) -> Tensor:
        """tanh(z)."""
        return torch.tanh(z)

    def root(self, x: Tensor) -> Tensor:
        """artanh(x)."""
        return torch.atanh(x)

    def log_slope(self, z: Tensor, x: Tensor) -> Tensor:
        """log 4 + log σ(2z) + log σ(-2z)."""
        return math.log(4) + F.logsigmoid(2 * z) + F.logsigmoid(-2 * z)


class Sigmoid(Elementwise):
    """x = (σ(z) - α) / (1 - 2α), R onto (0, 1) widened by α / (1 - 2α) at either end.

        log dx/dz = log σ(z) + log σ(-z) - log(1 - 2α)

    With α > 0 the closed interval [0, 1] lies inside the range: the data end of a flow of pixels
    or of other bounded columns (Papamakarios et al. 2017, section 4.3: 1e-6 for MNIST, 0.05 for
    CIFAR-10). With α = 0, float32 holds x at 1 - 6e-8 from z = 16.7 on.

    Args:
        features: D.
        alpha: α, in [0, 1/2).

    Example:
        >>> import torch
        >>> from cflows import Sigmoid
        >>> Sigmoid(2, alpha=0.05).inverse(torch.tensor([0.0, 1.0]))
        tensor([-2.9444,  2.9444])

    """

    def __init__(self, features: int, alpha: float = 0.0) -> None:
        super().__init__(features)
        if not 0 <= alpha < 0.5:
            raise ValueError(f"alpha must be in [0, 0.5), got {alpha}")
        self.alpha, self.width = alpha, 1 - 2 * alpha
        self.ends = (0.0 - alpha / self.width, 1 + alpha / self.width)

    def value(self, z: Tensor) -> Tensor:
        """(σ(z) - α) / (1 - 2α)."""
        return (torch.sigmoid(z) - self.alpha) / self.width

    def root(self, x: Tensor) -> Tensor:
        """logit(α + (1 - 2α) x)."""
        return torch.logit(self.alpha + self.width * x)

    def log_slope(self, z: Tensor, x: Tensor) -> Tensor:
        """log σ(z) + log σ(-z) - log(1 - 2α)."""
        return F.logsigmoid(z) + F.logsigmoid(-z) - math.log(self.width)


class Logit(Inverse):
    """x = logit(α + (1 - 2α) z), the inverse of ``Sigmoid(features, alpha)``.

    Args:
        features: D.
        alpha: α, in [0, 1/2).

    Example:
        >>> import torch
        >>> from cflows import Logit
        >>> Logit(1).forward_and_log_det(torch.tensor([0.5]))  # log 4
        (tensor([0.]), tensor(1.3863))

    """

    def __init__(self, features: int, alpha: float = 0.0) -> None:
        super().__init__(Sigmoid(features, alpha))


class Exp(Elementwise):
    """x = exp(z), R -> (0, ∞), with log dx/dz = z.

    Args:
        features: D.

    Example:
        >>> import torch
        >>> from cflows import Exp
        >>> Exp(1).forward_and_log_det(torch.tensor([1.0]))
        (tensor([2.7183]), tensor(1.))

    """

    ends = (0.0, math.inf)

    def value(self, z: Tensor) -> Tensor:
        """exp(z)."""
        return z.exp()

    def root(self, x: Tensor) -> Tensor:
        """log x."""
        return x.log()

    def log_slope(self, z: Tensor, x: Tensor) -> Tensor:
        """z."""
        return z


class Log(Inverse):
    """x = log z, (0, ∞) -> R, the inverse of ``Exp(features)``.

    Args:
        features: D.

    Example:
        >>> import torch
        >>> from cflows import Log
        >>> Log(1).forward_and_log_det(torch.tensor([1.0]))
        (tensor([0.]), tensor(-0.))

    """

    def __init__(self, features: int) -> None:
        super().__init__(Exp(features))


class Softplus(Elementwise):
    """x = log(1 + exp(z)), R -> (0, ∞), with log dx/dz = log σ(z).

    Args:
        features: D.

    Example:
        >>> import torch
        >>> from cflows import Softplus
        >>> Softplus(1)(torch.tensor([0.0]))  # log 2
        tensor([0.6931])

    """

    ends = (0.0, math.inf)

    def value(self, z: Tensor) -> Tensor:
        """-log σ(-z); torch's softplus is z from 20 on, too coarse for float64."""
        return -F.logsigmoid(-z)

    def root(self, x: Tensor) -> Tensor:
        """x + log(1 - exp(-x))."""
        return x + torch.log(-torch.expm1(-x))

    def log_slope(self, z: Tensor, x: Tensor) -> Tensor:
        """log σ(z)."""
        return F.logsigmoid(z)
