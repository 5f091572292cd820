"""Neural spline flows: couplings or autoregressive layers of rational-quadratic splines."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from baselines.flows.autoregressive import Autoregressive, alternating
from baselines.flows.coupling import Coupling
from baselines.flows.stack import stacked
from baselines.networks.mask_split import coupling_mask
from baselines.transforms.rational_quadratic import AffineSpline, RationalQuadratic
from cflows import Bijector, Flow

__all__ = ["NSF"]

TAILS = {"identity": RationalQuadratic, "affine": AffineSpline}


class NSF(Flow):
    """Neural spline flow (Durkan, Bekasov, Murray and Papamakarios 2019).

    Splines bend [-B, B] only: standardise the data first. Columns of heavy tails, which reach far
    beyond, want ``tails="affine"``.

    Args:
        features: D, at least 2 for couplings.
        context_features: C, 0 for an unconditional density.
        layers: K.
        hidden: widths of each network's hidden layers.
        activation: ``"relu"``, ``"tanh"``, ``"elu"`` or ``"silu"``.
        bins: of each spline.
        bound: B; the spline bends [-B, B].
        tails: ``"identity"`` outside [-B, B], as published, see ``RationalQuadratic``; or
            ``"affine"``, of a scale and a shift that the networks give, see ``AffineSpline``.
        passes: ``"coupling"``, RQ-NSF (C), one pass both ways; or ``"autoregressive"``, RQ-NSF
            (AR), as MAF, orders alternating.
        mask: of couplings, ``"alternate"``, ``"halves"`` or ``"random"``, see ``coupling_mask``.
        inversion: of autoregressive layers, see ``Autoregressive``.
        base: the distribution of z; by default the standard normal.

    Raises:
        ValueError: an argument is out of its range; the message names it.

    Example:
        >>> import torch
        >>> from baselines import NSF
        >>> NSF(5, layers=2).log_prob(torch.zeros(3, 5)).shape
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
        bins: int = 8,
        bound: float = 3.0,
        tails: str = "identity",
        passes: str = "coupling",
        mask: str = "alternate",
        inversion: str = "cached",
        base: nn.Module | None = None,
    ) -> None:
        if tails not in TAILS:
            raise ValueError(f'tails must be "identity" or "affine", got {tails!r}')
        if passes not in ("coupling", "autoregressive"):
            raise ValueError(f'passes must be "coupling" or "autoregressive", got {passes!r}')
        spline = TAILS[tails](bins, bound)

        def layer(k: int) -> Bijector:
            if passes == "autoregressive":
                return Autoregressive(
                    features,
                    spline,
                    context_features=context_features,
                    inversion=inversion,
                    order=alternating("alternate", k),
                    hidden=hidden,
                    activation=activation,
                )
            return Coupling(
                features,
                coupling_mask(features, mask, k),
                context_features=context_features,
                hidden=hidden,
                activation=activation,
                transformer=spline,
            )

        super().__init__(stacked(features, layers, layer), base)
