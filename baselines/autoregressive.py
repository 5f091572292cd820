r"""Autoregressive flows: MAF and IAF.

By the chain rule, p(x) = Π_i p(x_i | x_<i). Make each conditional a normal whose mean μ_i and log
scale α_i are a network's outputs, and drawing from it is an affine map of noise,

    x_i = μ_i(x_<i) + exp(α_i(x_<i)) z_i.

Its Jacobian is triangular, so that log|det dx/dz| = Σ_i α_i. This is one layer of the **masked
autoregressive flow** (Papamakarios, Pavlakou and Murray 2017). To score x, all μ_i and α_i come
from one pass of a MADE; to draw x, each needs the coordinates before it, one after the other.

The **inverse autoregressive flow** (Kingma et al. 2016) conditions on the noise instead,

    x_i = μ_i(z_<i) + exp(α_i(z_<i)) z_i,

and turns the cost round: one pass to draw, D to score a point that it did not draw itself.

Log scales are bounded by construction, α = a tanh(s / a) with a = 5, for a network's output s.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from cflows import Bijector, Chain, Flow, register

from .made import MADE, ORDERS

__all__ = ["IAF", "INVERSIONS", "MAF", "AutoregressiveAffine", "bounded"]

BOUND = 5.0
INVERSIONS = ("sequential",)


def bounded(log_scale: Tensor) -> Tensor:
    """A tanh(s / a), a = 5: near s for small s, and never past ±a."""
    return BOUND * torch.tanh(log_scale / BOUND)


@register
class AutoregressiveAffine(Bijector):
    """One layer x_i = μ_i + exp(α_i) z_i, conditioned on the coordinates before i of x or of z.

    Args:
        features: D.
        context_features: C.
        hidden: widths of the MADE's hidden layers.
        activation: the MADE's.
        order: of the coordinates, ``"sequential"``, ``"reversed"`` or ``"random"``.
        conditions_on: ``"data"``, μ(x_<i): a MAF layer, its inverse one pass; ``"noise"``, μ(z_<i):
            an IAF layer, its forward one pass. The other direction is ``inversion``'s.
        inversion: how the slow direction is computed: ``"sequential"``, one MADE pass a coordinate.

    """

    def __init__(
        self,
        features: int,
        *,
        context_features: int = 0,
        hidden: Sequence[int] = (128, 128),
        activation: str = "relu",
        order: str = "sequential",
        conditions_on: str = "data",
        inversion: str = "sequential",
    ) -> None:
        super().__init__(features, context_features)
        if conditions_on not in ("data", "noise"):
            raise ValueError(f'conditions_on must be "data" or "noise", got {conditions_on!r}')
        if inversion not in INVERSIONS:
            raise ValueError(f"inversion must be one of {', '.join(INVERSIONS)}; got {inversion!r}")
        self.conditions_on = conditions_on
        self.inversion = inversion
        self.made = MADE(
            features,
            context_features=context_features,
            hidden=hidden,
            outputs=2,
            order=order,
            activation=activation,
        )

    def forward_and_log_det(
        self, z: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """x = μ + exp(α) z; one pass for an IAF layer, D for a MAF layer."""
        z, context = self.broadcast(z, context)
        if self.conditions_on == "noise":
            shift, log_scale = self._shift_and_log_scale(z, context)
            x = _scale_and_shift(z, shift, log_scale)
        else:
            x, log_scale = self._one_by_one(z, context, _scale_and_shift)
        return x, log_scale.sum(-1)

    def inverse_and_log_det(
        self, x: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """z = (x - μ) exp(-α); one pass for a MAF layer, D for an IAF layer."""
        x, context = self.broadcast(x, context)
        if self.conditions_on == "data":
            shift, log_scale = self._shift_and_log_scale(x, context)
            z = _shift_and_scale_back(x, shift, log_scale)
        else:
            z, log_scale = self._one_by_one(x, context, _shift_and_scale_back)
        return z, -log_scale.sum(-1)

    def _shift_and_log_scale(
        self, condition: Tensor, context: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        shift, log_scale = self.made(condition, context)
        # Under autocast the network is in low precision, its answer must not stay so.
        return shift.to(condition.dtype), bounded(log_scale.to(condition.dtype))

    def _one_by_one(
        self,
        given: Tensor,
        context: Tensor | None,
        transform: Callable[[Tensor, Tensor, Tensor], Tensor],
    ) -> tuple[Tensor, Tensor]:
        """Solve y_i = transform(given_i, μ_i(y_<i), α_i(y_<i)) in the order of the degrees.

        Coordinates not reached yet stay at zero: their garbage would grow from pass to pass, and
        an infinity times a masked weight of zero is NaN.
        """
        y, log_scales = torch.zeros_like(given), torch.zeros_like(given)
        for degree in range(1, self.features + 1):
            reached = self.made.degrees == degree
            shift, log_scale = self._shift_and_log_scale(y, context)
            y = torch.where(reached, transform(given, shift, log_scale), y)
            log_scales = torch.where(reached, log_scale, log_scales)
        return y, log_scales


class _Autoregressive(Flow):
    """Layers of ``AutoregressiveAffine`` that differ in their orders."""

    def __init__(
        self,
        features: int,
        layers: int,
        order: str,
        base: nn.Module | None,
        **settings: object,
    ) -> None:
        if layers < 1:
            raise ValueError(f"layers must be at least 1, got {layers}")
        orders = ("sequential", "reversed") if order == "alternate" else (order,)
        if orders[0] not in ORDERS:
            raise ValueError(f"order must be one of alternate, {', '.join(ORDERS)}; got {order!r}")
        super().__init__(
            Chain(
                *(
                    AutoregressiveAffine(features, order=orders[k % len(orders)], **settings)  # type: ignore[arg-type]
                    for k in range(layers)
                )
            ),
            base,
        )


@register
class MAF(_Autoregressive):
    """Masked autoregressive flow: a density in one pass a layer, a sample in D.

    Args:
        features: D.
        context_features: C, 0 for an unconditional density.
        layers: K.
        hidden: widths of each MADE's hidden layers.
        activation: ``"relu"``, ``"tanh"``, ``"elu"`` or ``"silu"``.
        order: ``"alternate"`` (sequential, reversed, ...), ``"sequential"``, ``"reversed"`` or
            ``"random"`` (drawn anew for each layer).
        inversion: of sampling; ``"sequential"``, D passes a layer.
        base: the distribution of z; by default the standard normal.

    Example:
        >>> import torch
        >>> from baselines import MAF
        >>> MAF(5, layers=2).log_prob(torch.zeros(3, 5)).shape
        torch.Size([3])

    """

    def __init__(
        self,
        features: int,
        *,
        context_features: int = 0,
        layers: int = 5,
        hidden: Sequence[int] = (128, 128),
        activation: str = "relu",
        order: str = "alternate",
        inversion: str = "sequential",
        base: nn.Module | None = None,
    ) -> None:
        super().__init__(
            features,
            layers,
            order,
            base,
            context_features=context_features,
            hidden=hidden,
            activation=activation,
            conditions_on="data",
            inversion=inversion,
        )


@register
class IAF(_Autoregressive):
    """Inverse autoregressive flow: a sample in one pass a layer, a density in D.

    Args:
        features: D.
        context_features: C, 0 for an unconditional density.
        layers: K.
        hidden: widths of each MADE's hidden layers.
        activation: ``"relu"``, ``"tanh"``, ``"elu"`` or ``"silu"``.
        order: ``"alternate"``, ``"sequential"``, ``"reversed"`` or ``"random"``.
        inversion: of the density; ``"sequential"``, D passes a layer.
        base: the distribution of z; by default the standard normal.

    Example:
        >>> from baselines import IAF
        >>> IAF(5, layers=2).sample(3).shape
        torch.Size([3, 5])

    """

    def __init__(
        self,
        features: int,
        *,
        context_features: int = 0,
        layers: int = 5,
        hidden: Sequence[int] = (128, 128),
        activation: str = "relu",
        order: str = "alternate",
        inversion: str = "sequential",
        base: nn.Module | None = None,
    ) -> None:
        super().__init__(
            features,
            layers,
            order,
            base,
            context_features=context_features,
            hidden=hidden,
            activation=activation,
            conditions_on="noise",
            inversion=inversion,
        )


def _scale_and_shift(z: Tensor, shift: Tensor, log_scale: Tensor) -> Tensor:
    return torch.addcmul(shift, log_scale.exp(), z)


def _shift_and_scale_back(x: Tensor, shift: Tensor, log_scale: Tensor) -> Tensor:
    return (x - shift) * torch.exp(-log_scale)
