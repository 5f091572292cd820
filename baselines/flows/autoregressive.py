r"""Autoregressive flows: MAF and IAF.

By the chain rule, p(x) = Π_i p(x_i | x_<i). Make each conditional a normal whose mean μ_i and log
scale α_i are a network's outputs, and drawing from it is an affine map of noise,

    x_i = μ_i(x_<i) + exp(α_i(x_<i)) z_i.

Its Jacobian is triangular, so that log|det dx/dz| = Σ_i α_i. This is one layer of the
**masked autoregressive flow** (Papamakarios, Pavlakou and Murray 2017). To score x, all μ_i and
α_i come from one pass of a MADE; to draw x, each needs the coordinates before it, one after the
other.

The **inverse autoregressive flow** (Kingma et al. 2016) conditions on the noise instead,

    x_i = μ_i(z_<i) + exp(α_i(z_<i)) z_i,

and turns the cost round: one pass to draw, D to score a point that it did not draw itself.

The slow direction need not take D passes: walking the units in the order of their degrees computes
each of them once (``inversion="cached"``, see ``baselines.inversion.degree_sweep``), and both
directions of both flows cost about one pass.

Log scales are bounded by construction, α = a tanh(s / a) with a = 5, for a network's output s.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from baselines.flows.made_mog import MADEMoG
from baselines.flows.stack import stacked
from baselines.inversion.degree_sweep import INVERSIONS
from baselines.networks.made import MADE, ORDERS, MADESettings
from baselines.transforms.univariate import AffineScale, UnivariateTransform
from cflows import Bijector, Flow
from cflows.core.arguments import known
from cflows.core.bijector import Mapped

__all__ = ["IAF", "MAF", "Autoregressive", "AutoregressiveAffine", "alternating"]

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Autoregressive(Bijector):
    """One layer x_i = τ(z_i; h_i), h_i of the coordinates before i of x or of z.

    Args:
        features: D.
        transformer: τ, of as many parameters as the MADE has outputs per coordinate.
        context_features: C.
        conditions_on: ``"data"``, h_i(x_<i): a MAF layer, its inverse one pass; ``"noise"``,
            h_i(z_<i): an IAF layer, its forward one pass. The other direction is ``inversion``'s.
        inversion: how the slow direction is computed: ``"cached"``, one walk through the degrees,
            about the price of a pass; ``"jacobi"``, sweeps of all coordinates until nothing moves,
            D at most; ``"sequential"``, D passes. All give the same values and gradients; only
            through ``"sequential"`` can gradients be differentiated again.
        made: further arguments of the ``MADE``: hidden, activation, order, hidden_degrees,
            residual.

    Example:
        >>> import torch
        >>> from baselines import Autoregressive, RationalQuadratic
        >>> layer = Autoregressive(5, RationalQuadratic(bins=4, bound=3.0), hidden=(16,))
        >>> z = layer.inverse(torch.zeros(7, 5))
        >>> torch.allclose(layer(z), torch.zeros(7, 5), atol=1e-5)
        True

    """

    def __init__(
        self,
        features: int,
        transformer: UnivariateTransform,
        *,
        context_features: int = 0,
        conditions_on: str = "data",
        inversion: str = "cached",
        **made: Unpack[MADESettings],
    ) -> None:
        super().__init__(features, context_features)
        if conditions_on not in ("data", "noise"):
            raise ValueError(f'conditions_on must be "data" or "noise", got {conditions_on!r}')
        known("inversion", inversion, INVERSIONS)
        self.transformer = transformer
        self.conditions_on = conditions_on
        self.inversion = inversion
        self.made = MADE(
            features, context_features=context_features, outputs=transformer.size, **made
        )

    def forward_and_log_det(self, z: Tensor, context: Tensor | None = None) -> Mapped:
        """x = τ(z); D coordinates at once for an IAF layer, ``inversion`` for a MAF layer."""
        if self.conditions_on == "noise":
            x, log_det = self.transformer.forward(z, self._conditional(z, context))
            return x, log_det.sum(-1)
        tau = self.transformer
        return INVERSIONS[self.inversion](self.made, z, context, tau.forward, tau.forward_vjp)

    def inverse_and_log_det(self, x: Tensor, context: Tensor | None = None) -> Mapped:
        """z = τ⁻¹(x); D coordinates at once for a MAF layer, ``inversion`` for an IAF layer."""
        if self.conditions_on == "data":
            z, log_det = self.transformer.inverse(x, self._conditional(x, context))
            return z, log_det.sum(-1)
        tau = self.transformer
        return INVERSIONS[self.inversion](self.made, x, context, tau.inverse, tau.inverse_vjp)

    def _conditional(self, condition: Tensor, context: Tensor | None) -> Tensor:
        # Under autocast the network is in low precision, its answer must not stay so.
        return self.made.parameters_of(condition, context).to(condition.dtype)


class AutoregressiveAffine(Autoregressive):
    """One layer x_i = μ_i + exp(α_i) z_i, conditioned on the coordinates before i of x or of z.

    Args:
        features: D.
        settings: further arguments of ``Autoregressive``.

    Example:
        >>> import torch
        >>> from baselines import AutoregressiveAffine
        >>> layer = AutoregressiveAffine(3, hidden=(16,))
        >>> jacobian = torch.autograd.functional.jacobian(layer.inverse, torch.zeros(3))
        >>> bool((jacobian.triu(1) == 0).all())
        True

    """

    def __init__(self, features: int, **settings: Any) -> None:
        super().__init__(features, AffineScale(), **settings)


class _Autoregressive(Flow):
    """Affine layers that differ in their orders."""

    conditions_on: str

    def __init__(
        self,
        features: int,
        *,
        context_features: int = 0,
        layers: int = 5,
        hidden: Sequence[int] = (128, 128),
        activation: str = "relu",
        order: str = "alternate",
        components: int = 1,
        batch_norm: bool = False,
        inversion: str = "cached",
        hidden_degrees: str = "sequential",
        residual: bool = False,
        base: nn.Module | None = None,
    ) -> None:
        if components < 1 or (components > 1 and base is not None):
            raise ValueError(
                f"components must be at least 1, and 1 beside a base of your own; got {components}"
            )

        def made(k: int) -> MADESettings:
            return {
                "order": alternating(order, k),
                "hidden": hidden,
                "activation": activation,
                "hidden_degrees": hidden_degrees,
                "residual": residual,
            }

        def layer(k: int) -> Autoregressive:
            return Autoregressive(
                features,
                AffineScale(),
                context_features=context_features,
                conditions_on=self.conditions_on,
                inversion=inversion,
                **made(k),
            )

        chain = stacked(features, layers, layer, batch_norm=batch_norm)
        if components > 1:
            # Orders alternate from the data on; the base goes on where the layers end.
            base = MADEMoG(features, components, context_features=context_features, **made(layers))
        super().__init__(chain, base)


class MAF(_Autoregressive):
    """Masked autoregressive flow: one pass a layer for a density, one walk for a sample.

    Args:
        features: D.
        context_features: C, 0 for an unconditional density.
        layers: K.
        hidden: widths of each MADE's hidden layers.
        activation: ``"relu"``, ``"tanh"``, ``"elu"`` or ``"silu"``.
        order: ``"alternate"`` (sequential, reversed, ...), ``"sequential"``, ``"reversed"`` or
            ``"random"`` (drawn anew for each layer).
        components: above 1, the base is a ``MADEMoG`` of that many components a conditional, as in
            the paper's MAF MoG.
        batch_norm: whether a ``BatchNorm`` follows each layer on its noise side, as in the MAF
            paper, section 4.
        inversion: of the slow direction; ``"cached"``, ``"jacobi"`` or ``"sequential"``, see
            ``Autoregressive``.
        hidden_degrees: ``"sequential"`` or ``"random"``, see ``MADE``.
        residual: whether the MADEs are of residual blocks.
        base: the distribution of z; by default the standard normal.

    Example:
        >>> import torch
        >>> from baselines import MAF
        >>> MAF(5, layers=2).log_prob(torch.zeros(3, 5)).shape
        torch.Size([3])

    """

    conditions_on = "data"


class IAF(_Autoregressive):
    """Inverse autoregressive flow: one pass a layer for a sample, one walk for a density.

    Args:
        features: D; it and all other arguments are those of ``MAF``.

    Example:
        >>> from baselines import IAF
        >>> IAF(5, layers=2).sample(3).shape
        torch.Size([3, 5])

    """

    conditions_on = "noise"


def alternating(order: str, layer: int) -> str:
    """The order of one layer of several: of ``"alternate"`` sequential and reversed in turn."""
    if order == "alternate":
        return ("sequential", "reversed")[layer % 2]
    return known("order", order, ("alternate", *ORDERS))
