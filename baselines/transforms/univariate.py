r"""What an autoregressive or coupling layer does to one coordinate, given its parameters.

A transformer is a strictly increasing map x = τ(z; h) of R to R, with h ∈ R^P from a network that
sees other coordinates only (Papamakarios et al. 2021, section 3.1).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from cflows import register
from cflows.core.bijector import BOUND, Mapped, bounded, plain
from cflows.core.first_order import Context

__all__ = ["Additive", "AffineScale", "Pullback", "Transformer", "UnivariateTransform", "pull_back"]

# value (*S), parameters (*S, P), image, for_image, for_log_det -> for_value (*S), for_parameters
Pullback = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


class UnivariateTransform(ABC):
    """A strictly increasing map of each coordinate. Parameters of zero give the identity.

    Example:
        >>> import torch
        >>> from baselines import AffineScale
        >>> AffineScale().size  # a shift and a log scale
        2

    """

    @property
    @abstractmethod
    def size(self) -> int:
        """P, parameters per coordinate."""

    @abstractmethod
    def forward(self, z: Tensor, parameters: Tensor) -> Mapped:
        """Noise to data: z (*S), (*S, P) -> x (*S), log dx/dz (*S)."""

    @abstractmethod
    def inverse(self, x: Tensor, parameters: Tensor) -> Mapped:
        """Data to noise: x (*S), (*S, P) -> z (*S), log dz/dx (*S)."""

    def forward_vjp(
        self, z: Tensor, parameters: Tensor, x: Tensor, for_x: Tensor, for_log_det: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Cotangents of z (*S) and of the parameters (*S, P), given those of ``forward``."""
        return _vjp(self.forward, z, parameters, for_x, for_log_det)

    def inverse_vjp(
        self, x: Tensor, parameters: Tensor, z: Tensor, for_z: Tensor, for_log_det: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Cotangents of x (*S) and of the parameters (*S, P), given those of ``inverse``."""
        return _vjp(self.inverse, x, parameters, for_z, for_log_det)


Transformer = UnivariateTransform  # its earlier name


def pull_back(
    outputs: Sequence[Tensor], inputs: Sequence[Tensor], cotangents: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """Cotangents of the inputs, zero where no output depends on them; the graph is kept."""
    live = [(o, c) for o, c in zip(outputs, cotangents, strict=True) if o.requires_grad]
    outputs, cotangents = zip(*live, strict=True) if live else ((), ())
    return torch.autograd.grad(
        outputs, inputs, cotangents, retain_graph=True, allow_unused=True, materialize_grads=True
    )


def _vjp(
    function: Callable[[Tensor, Tensor], Mapped],
    value: Tensor,
    parameters: Tensor,
    *cotangents: Tensor,
) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        inputs = value.detach().requires_grad_(), parameters.detach().requires_grad_()
        for_value, for_parameters = pull_back(function(*inputs), inputs, cotangents)
    return for_value, for_parameters


@register
@dataclass(frozen=True)
class AffineScale(UnivariateTransform):
    """x = μ + exp(α) z with α = a tanh(s / a), a = 5, and parameters (μ, s).

    The shift is told in units of x. In those of the noise, x = exp(α) (z + m), data of a small
    scale would train sooner, but an α that is extrapolated takes the mean exp(α) m with it: rows
    beyond the training's fall by thousands of nats. Standardise the data instead.

    Example:
        >>> import torch
        >>> from baselines import AffineScale
        >>> z, shift_and_log_scale = torch.tensor([2.0]), torch.tensor([[3.0, 0.0]])
        >>> AffineScale().forward(z, shift_and_log_scale)
        (tensor([5.]), tensor([0.]))

    """

    size = 2

    def forward(self, z: Tensor, parameters: Tensor) -> Mapped:
        """μ + exp(α) z, α."""
        return _affine(_scale_and_shift, self.forward_vjp, z, parameters)

    def inverse(self, x: Tensor, parameters: Tensor) -> Mapped:
        """(x - μ) exp(-α), -α."""
        return _affine(_shift_and_scale, self.inverse_vjp, x, parameters)

    def forward_vjp(
        self, z: Tensor, parameters: Tensor, x: Tensor, for_x: Tensor, for_log_det: Tensor
    ) -> tuple[Tensor, Tensor]:
        """∂x = (exp(α), 1, exp(α) z) in (z, μ, α); x - μ would cancel where μ is large."""
        slope = torch.tanh(parameters[..., 1] / BOUND)
        for_z = for_x * (BOUND * slope).exp()
        for_scale = torch.addcmul(for_log_det, for_z, z) * (1 - slope * slope)
        return for_z, torch.stack((for_x, for_scale), -1)

    def inverse_vjp(
        self, x: Tensor, parameters: Tensor, z: Tensor, for_z: Tensor, for_log_det: Tensor
    ) -> tuple[Tensor, Tensor]:
        """∂z = (exp(-α), -exp(-α), -z) in (x, μ, α)."""
        slope = torch.tanh(parameters[..., 1] / BOUND)
        for_x = for_z * (-BOUND * slope).exp()
        for_scale = -torch.addcmul(for_log_det, for_z, z) * (1 - slope * slope)
        return for_x, torch.stack((-for_x, for_scale), -1)


@register
@dataclass(frozen=True)
class Additive(UnivariateTransform):
    """x = μ + z, with parameter (μ).

    Example:
        >>> import torch
        >>> from baselines import Additive
        >>> Additive().forward(torch.tensor([2.0]), torch.tensor([[3.0]]))
        (tensor([5.]), tensor([0.]))

    """

    size = 1

    def forward(self, z: Tensor, parameters: Tensor) -> Mapped:
        """μ + z, 0."""
        return z + parameters.squeeze(-1), torch.zeros_like(z)

    def inverse(self, x: Tensor, parameters: Tensor) -> Mapped:
        """x - μ, 0."""
        return x - parameters.squeeze(-1), torch.zeros_like(x)


def _scale_and_shift(z: Tensor, parameters: Tensor) -> Mapped:
    log_scale = bounded(parameters[..., 1])
    return torch.addcmul(parameters[..., 0], log_scale.exp(), z), log_scale


def _shift_and_scale(x: Tensor, parameters: Tensor) -> Mapped:
    minus = -bounded(parameters[..., 1])
    return (x - parameters[..., 0]) * minus.exp(), minus


def _affine(
    function: Callable[[Tensor, Tensor], Mapped],
    vjp: Pullback,
    value: Tensor,
    parameters: Tensor,
) -> Mapped:
    """The function as one node of the graph: the gradient of an index is a sum into zeros."""
    differentiated = torch.is_grad_enabled() and (value.requires_grad or parameters.requires_grad)
    if not differentiated or not plain(value) or value.shape != parameters.shape[:-1]:
        return function(value, parameters)
    mapped: Mapped = _Affine.apply(function, vjp, value, parameters)  # type: ignore[no-untyped-call]
    return mapped


class _Context(Context, Protocol):
    vjp: Pullback


class _Affine(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: _Context,
        function: Callable[[Tensor, Tensor], Mapped],
        vjp: Pullback,
        value: Tensor,
        parameters: Tensor,
    ) -> Mapped:
        image, log_det = function(value, parameters)
        ctx.vjp = vjp
        ctx.save_for_backward(value, parameters, image)
        return image, log_det

    @staticmethod
    def backward(ctx: _Context, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        # Torch's own operations on what was saved: their graph is the second derivative.
        return None, None, *ctx.vjp(*ctx.saved_tensors, *cotangents)
