r"""Coupling flows: RealNVP, NICE and spline couplings.

Split the coordinates in two. One part passes as it is and decides, through a network of any kind,
what happens to each coordinate of the other:

    x_a = z_a,   x_b = g(z_b; θ(z_a)),   log|det dx/dz| = Σ log|dg/dz_b|

Both directions take one pass. RealNVP (Dinh, Sohl-Dickstein and Bengio 2017, equations 4 to 7) has
g = z_b exp(s) + t; NICE (Dinh, Krueger and Bengio 2015) adds only, keeps the volume, and has one
diagonal scale next to the base; neural spline flows (Durkan et al. 2019) have a monotone
rational-quadratic spline. A layer leaves x_a alone, so the parts change roles from layer to layer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from baselines.flows.stack import stacked
from baselines.networks.activations import FUSED_ACTIVATIONS
from baselines.networks.fused_mlp import by_calls, perceptron
from baselines.networks.mask_split import MaskSplit, coupling_mask
from baselines.transforms.univariate import Additive, AffineScale, UnivariateTransform
from cflows import Bijector, Chain, DiagonalScale, Flow
from cflows.core.arguments import known
from cflows.core.bijector import Mapped, inner_weights, may_be_read
from cflows.core.pickling import Pickled

__all__ = ["NETWORKS", "NICE", "Conditioner", "Coupling", "RealNVP"]

NETWORKS = ("shared", "separate")


class Conditioner(Pickled):
    """A perceptron from the passive part to ``outputs`` numbers for each of the active part.

    Args:
        inputs: size of the passive part.
        size: size of the active part.
        context_features: C.
        hidden: widths of the hidden layers.
        outputs: P.
        activation: a name in ``FUSED_ACTIVATIONS``.

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
        known("activation", activation, FUSED_ACTIVATIONS)
        widths = [inputs + context_features, *hidden, outputs * size]
        layers = [nn.Linear(a, b) for a, b in pairwise(widths)]
        # Zero last weights: every flow of these starts at the identity.
        nn.init.zeros_(layers[-1].weight)
        nn.init.zeros_(layers[-1].bias)
        self.layers = nn.ModuleList(layers)
        self.size = size
        self.outputs = outputs
        self.activation = activation
        self.evaluations_made = 0

    def hidden_weights(self) -> list[Tensor]:
        """The matrices between two hidden layers, for an optimiser that treats these apart."""
        return inner_weights(self.layers)

    def forward(self, passive: Tensor, context: Tensor | None = None) -> Tensor:
        """(*B, inputs) and (*B, C) -> (*B, size, P)."""
        if not torch.compiler.is_compiling():
            self.evaluations_made += 1
        x = passive if context is None else torch.cat([passive, context], dim=-1)
        activation = FUSED_ACTIVATIONS[self.activation]
        if may_be_read(self.layers, nn.Linear):
            weights, biases = zip(*((part.weight, part.bias) for part in self.layers), strict=True)
            h = perceptron(x, weights, biases, activation)
        else:
            h = by_calls(x, self.layers, activation)
        return h.view(*h.shape[:-1], self.size, self.outputs)


class Coupling(Bijector):
    """One coupling layer: x_b = g(z_b; θ(x_a)), x_a = z_a.

    Args:
        features: D.
        transformed: booleans (D,), the coordinates of part b.
        context_features: C.
        hidden: widths of the conditioner's hidden layers.
        activation: between them, a name in ``FUSED_ACTIVATIONS``.
        transformer: g, by default ``AffineScale()``.
        networks: ``"shared"``, one network for all of θ; ``"separate"``, one for the shift with
            ``activation`` and one for the log-scale with tanh, as RealNVP had them.

    Example:
        >>> import torch
        >>> from baselines import Coupling
        >>> layer = Coupling(3, transformed=[True, False, True])
        >>> z = torch.randn(4, 3)
        >>> torch.equal(layer(z)[:, 1], z[:, 1])
        True

    """

    def __init__(
        self,
        features: int,
        transformed: Tensor | Sequence[bool],
        *,
        context_features: int = 0,
        hidden: Sequence[int] = (128, 128),
        activation: str = "relu",
        transformer: UnivariateTransform = AffineScale(),  # noqa: B008, immutable
        networks: str = "shared",
    ) -> None:
        super().__init__(features, context_features)
        mask = torch.as_tensor(transformed, dtype=torch.bool, device="cpu")
        if mask.shape != (features,) or not 0 < int(mask.sum()) < features:
            raise ValueError(f"transformed must be {features} booleans, some true and some false")
        if known("networks", networks, NETWORKS) == "separate" and not isinstance(
            transformer, AffineScale
        ):
            raise ValueError('networks="separate" is for AffineScale; use "shared"')
        self.split = MaskSplit(mask)
        self.transformer = transformer
        count = transformer.size
        kinds = [(count, activation)] if networks == "shared" else [(1, activation), (1, "tanh")]
        self.conditioners = nn.ModuleList(
            Conditioner(
                *self.split.sizes,
                context_features=context_features,
                hidden=hidden,
                outputs=outputs,
                activation=kind,
            )
            for outputs, kind in kinds
        )

    def forward_and_log_det(self, z: Tensor, context: Tensor | None = None) -> Mapped:
        """x_b = g(z_b)."""
        return self._apply_to_active(self.transformer.forward, z, context)

    def inverse_and_log_det(self, x: Tensor, context: Tensor | None = None) -> Mapped:
        """z_b = g⁻¹(x_b)."""
        return self._apply_to_active(self.transformer.inverse, x, context)

    def _apply_to_active(
        self,
        transform: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
        value: Tensor,
        context: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        passive, active = self.split.apart(value)
        parts = [conditioner(passive, context) for conditioner in self.conditioners]
        parameters = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
        # Under autocast the network is in low precision, its answer must not stay so.
        active, log_det = transform(active, parameters.to(value.dtype))
        return self.split.together(passive, active), log_det.sum(-1)


class RealNVP(Flow):
    """Affine couplings: density and sample in one pass a layer.

    With ``networks="separate"`` and ``batch_norm=True`` the flow is that of Papamakarios, Pavlakou
    and Murray 2017, section 4 and appendix: a relu network for the shift, a tanh network for the
    log-scale, and batch normalization after each coupling on the way from data to noise, so also
    next to the base, by the statistics of the batch.

    Args:
        features: D, at least 2.
        context_features: C, 0 for an unconditional density.
        layers: K; two transform every coordinate once.
        hidden: widths of each conditioner's hidden layers.
        activation: ``"relu"``, ``"tanh"``, ``"elu"`` or ``"silu"``.
        mask: ``"alternate"``, ``"halves"`` or ``"random"``, see ``coupling_mask``.
        networks: ``"shared"``, one with two heads, half the cost; or ``"separate"``, see
            ``Coupling``.
        batch_norm: whether a ``BatchNorm`` stands on the base side of each coupling.
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
        activation: str = "relu",
        mask: str = "alternate",
        networks: str = "shared",
        batch_norm: bool = False,
        base: nn.Module | None = None,
    ) -> None:
        def layer(k: int) -> Coupling:
            return Coupling(
                features,
                coupling_mask(features, mask, k),
                context_features=context_features,
                hidden=hidden,
                activation=activation,
                networks=networks,
            )

        super().__init__(stacked(features, layers, layer, batch_norm=batch_norm), base)


class NICE(Flow):
    """Additive couplings behind one diagonal scale, which sits next to the base.

    Args:
        features: D, at least 2.
        context_features: C, 0 for an unconditional density.
        layers: K; two transform every coordinate once.
        hidden: widths of each conditioner's hidden layers.
        activation: ``"relu"``, ``"tanh"``, ``"elu"`` or ``"silu"``.
        mask: ``"alternate"``, ``"halves"`` or ``"random"``, see ``coupling_mask``.
        base: the distribution of z; by default the standard normal. The paper's is logistic or
            normal.

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
        activation: str = "relu",
        mask: str = "alternate",
        base: nn.Module | None = None,
    ) -> None:
        def layer(k: int) -> Coupling:
            return Coupling(
                features,
                coupling_mask(features, mask, k),
                context_features=context_features,
                hidden=hidden,
                activation=activation,
                transformer=Additive(),
            )

        chain = Chain(DiagonalScale(features), *stacked(features, layers, layer).parts)
        super().__init__(chain, base)
