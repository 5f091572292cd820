r"""Coupling flows: RealNVP and NICE.

Split the coordinates in two. One part passes as it is and decides, through a network of any kind,
what happens to the other:

    x_a = z_a,   x_b = z_b exp(s(z_a)) + t(z_a),   log|det dx/dz| = Σ s(z_a)

(RealNVP: Dinh, Sohl-Dickstein and Bengio 2017, equations 4 to 7). Both directions take one pass.
NICE (Dinh, Krueger and Bengio 2015) adds only, s = 0, keeps the volume, and has one diagonal scale
next to the base. A layer leaves x_a alone, so the parts change roles from layer to layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from cflows import Bijector, Chain, DiagonalScale, Flow, register

from .activations import ACTIVATIONS, check_activation
from .transformers import bounded

__all__ = ["MASKS", "NICE", "Conditioner", "Coupling", "RealNVP", "coupling_mask"]

MASKS = ("alternate", "halves", "random")


def coupling_mask(features: int, kind: str, layer: int) -> Tensor:
    """Which coordinates layer number ``layer`` transforms: booleans (D,), turned round by parity.

    Args:
        features: D, at least 2.
        kind: ``"alternate"`` (odd and even coordinates), ``"halves"`` (first and second half) or
            ``"random"`` (a random half, drawn anew for each layer from torch's generator).
        layer: counted from 0 at the base.

    Raises:
        ValueError: D is 1, or the kind is not known.

    """
    if features < 2:
        raise ValueError(
            "a coupling needs features >= 2, one part to read and one to transform; "
            "for features=1 use MAF or FFJORD"
        )
    index = torch.arange(features)
    if kind == "alternate":
        mask = index % 2 == 1
    elif kind == "halves":
        mask = index >= features // 2
    elif kind == "random":
        mask = torch.randperm(features) >= features // 2
    else:
        raise ValueError(f"mask must be one of {', '.join(MASKS)}; got {kind!r}")
    return mask if layer % 2 == 0 else ~mask


@register
class Conditioner(nn.Module):
    """A perceptron from the passive part to ``outputs`` tensors of the active part's size.

    Args:
        inputs: size of the passive part.
        size: size of the active part.
        context_features: C.
        hidden: widths of the hidden layers.
        outputs: how many tensors come out.
        activation: a name in ``made.ACTIVATIONS``.

    """

    def __init__(
        self,
        inputs: int,
        size: int,
        *,
        context_features: int = 0,
        hidden: Sequence[int] = (128, 128),
        outputs: int = 2,
        activation: str = "relu",
    ) -> None:
        super().__init__()
        check_activation(activation)
        widths = [inputs + context_features, *hidden, outputs * size]
        layers = [nn.Linear(a, b) for a, b in pairwise(widths)]
        # Zero last weights: every flow of these starts at the identity.
        nn.init.zeros_(layers[-1].weight)
        nn.init.zeros_(layers[-1].bias)
        self.layers = nn.ModuleList(layers)
        self.outputs = outputs
        self.activation = activation
        self.evaluations_made = 0

    def forward(self, passive: Tensor, context: Tensor | None = None) -> tuple[Tensor, ...]:
        """(*B, inputs) and (*B, C) -> ``outputs`` tensors (*B, size)."""
        self.evaluations_made += 1
        activate = ACTIVATIONS[self.activation].call
        h = passive if context is None else torch.cat([passive, context], dim=-1)
        for index, layer in enumerate(self.layers):
            h = layer(activate(h) if index else h)
        return torch.chunk(h, self.outputs, dim=-1)


@register
class Coupling(Bijector):
    """One coupling layer: x_b = z_b exp(s(x_a)) + t(x_a), x_a = z_a.

    Args:
        features: D.
        transformed: booleans (D,), the coordinates of part b.
        context_features: C.
        hidden: widths of the conditioner's hidden layers.
        additive: whether s = 0.

    """

    passive: Tensor
    active: Tensor
    merge: Tensor

    def __init__(
        self,
        features: int,
        transformed: Tensor | Sequence[bool],
        *,
        context_features: int = 0,
        hidden: Sequence[int] = (128, 128),
        additive: bool = False,
    ) -> None:
        super().__init__(features, context_features)
        mask = torch.as_tensor(transformed, dtype=torch.bool)
        if mask.shape != (features,) or not 0 < int(mask.sum()) < features:
            raise ValueError(f"transformed must be {features} booleans, some true and some false")
        passive, active = (~mask).nonzero().flatten(), mask.nonzero().flatten()
        self.register_buffer("passive", passive)
        self.register_buffer("active", active)
        self.register_buffer("merge", torch.cat([passive, active]).argsort())
        self.additive = additive
        self.conditioner = Conditioner(
            len(passive),
            len(active),
            context_features=context_features,
            hidden=hidden,
            outputs=1 if additive else 2,
        )

    def forward_and_log_det(
        self, z: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """x_b = z_b exp(s) + t."""
        z, context = self.broadcast(z, context)
        passive, active = z[..., self.passive], z[..., self.active]
        shift, log_scale = self._shift_and_log_scale(passive, context)
        if log_scale is None:
            return self._merged(passive, active + shift), z.new_zeros(z.shape[:-1])
        return self._merged(passive, active * log_scale.exp() + shift), log_scale.sum(-1)

    def inverse_and_log_det(
        self, x: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """z_b = (x_b - t) exp(-s)."""
        x, context = self.broadcast(x, context)
        passive, active = x[..., self.passive], x[..., self.active]
        shift, log_scale = self._shift_and_log_scale(passive, context)
        if log_scale is None:
            return self._merged(passive, active - shift), x.new_zeros(x.shape[:-1])
        return self._merged(passive, (active - shift) * torch.exp(-log_scale)), -log_scale.sum(-1)

    def _shift_and_log_scale(
        self, passive: Tensor, context: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        shift, *log_scale = self.conditioner(passive, context)
        # Under autocast the network is in low precision, its answer must not stay so.
        shift = shift.to(passive.dtype)
        return shift, bounded(log_scale[0].to(passive.dtype)) if log_scale else None

    def _merged(self, passive: Tensor, active: Tensor) -> Tensor:
        return torch.cat([passive, active], dim=-1)[..., self.merge]


@register
class RealNVP(Flow):
    """Affine couplings: density and sample in one pass a layer.

    Args:
        features: D, at least 2.
        context_features: C, 0 for an unconditional density.
        layers: K; two transform every coordinate once.
        hidden: widths of each conditioner's hidden layers.
        mask: ``"alternate"``, ``"halves"`` or ``"random"``, see ``coupling_mask``.
        base: the distribution of z; by default the standard normal.

    Example:
        >>> import torch
        >>> from baselines import RealNVP
        >>> RealNVP(5, layers=2).log_prob(torch.zeros(3, 5)).shape
        torch.Size([3])

    """

    def __init__(
        self,
        features: int,
        *,
        context_features: int = 0,
        layers: int = 8,
        hidden: Sequence[int] = (128, 128),
        mask: str = "alternate",
        base: nn.Module | None = None,
    ) -> None:
        couplings = _couplings(
            features, layers, mask, additive=False, context_features=context_features, hidden=hidden
        )
        super().__init__(Chain(*couplings), base)


@register
class NICE(Flow):
    """Additive couplings behind one diagonal scale, which sits next to the base.

    Args:
        features: D, at least 2.
        context_features: C, 0 for an unconditional density.
        layers: K; two transform every coordinate once.
        hidden: widths of each conditioner's hidden layers.
        mask: ``"alternate"``, ``"halves"`` or ``"random"``, see ``coupling_mask``.
        base: the distribution of z; by default the standard normal.

    Example:
        >>> import torch
        >>> from baselines import NICE
        >>> NICE(5, layers=2).log_prob(torch.zeros(3, 5)).shape
        torch.Size([3])

    """

    def __init__(
        self,
        features: int,
        *,
        context_features: int = 0,
        layers: int = 8,
        hidden: Sequence[int] = (128, 128),
        mask: str = "alternate",
        base: nn.Module | None = None,
    ) -> None:
        couplings = _couplings(
            features, layers, mask, additive=True, context_features=context_features, hidden=hidden
        )
        super().__init__(Chain(DiagonalScale(features), *couplings), base)


def _couplings(
    features: int,
    layers: int,
    mask: str,
    *,
    additive: bool,
    context_features: int,
    hidden: Sequence[int],
) -> list[Bijector]:
    if layers < 1:
        raise ValueError(f"layers must be at least 1, got {layers}")
    return [
        Coupling(
            features,
            coupling_mask(features, mask, layer),
            context_features=context_features,
            hidden=hidden,
            additive=additive,
        )
        for layer in range(layers)
    ]
