"""The flows of the MAF paper, with the sizes that it gives for its data sets.

Papamakarios, Pavlakou and Murray 2017, "Masked Autoregressive Flow for Density Estimation", section
4 and appendix D: rectifiers in two hidden layers (one or two, chosen on validation, in the paper);
orders that alternate; batch normalization after each layer of MAF and RealNVP; RealNVP's scale by a
network of hyperbolic tangents, its shift by one of rectifiers, coordinates odd and even in turn;
mixtures of ten Gaussians.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from baselines.flows.autoregressive import MAF
from baselines.flows.coupling import RealNVP
from baselines.flows.made_mog import MADEMoG
from cflows import Affine, Flow

__all__ = ["PRESETS", "UNITS", "preset"]

COMPONENTS = 10

UNITS = {"power": 100, "gas": 100, "hepmass": 512, "miniboone": 512, "bsds300": 512, "mnist": 1024}
"""Hidden units a layer, by data set."""


def _made_mog(features: int, *, hidden: Sequence[int]) -> Flow:
    identity = Affine([0.0] * features, [1.0] * features)
    return Flow(identity, MADEMoG(features, COMPONENTS, hidden=hidden))


_maf = partial(MAF, batch_norm=True, components=1)
_realnvp = partial(RealNVP, batch_norm=True, networks="separate")

PRESETS: dict[str, Callable[..., Flow]] = {
    "made": partial(MAF, layers=1),
    "made-mog": _made_mog,
    "realnvp-5": partial(_realnvp, layers=5),
    "realnvp-10": partial(_realnvp, layers=10),
    "maf-5": partial(_maf, layers=5),
    "maf-10": partial(_maf, layers=10),
    "maf-mog-5": partial(_maf, layers=5, components=COMPONENTS),
}
"""(features, hidden=widths of the hidden layers) -> the flow, untrained."""


def preset(name: str, data: str, features: int, *, hidden_layers: int = 2) -> Flow:
    """Build a flow of the paper in the size that it has for a data set.

    Args:
        name: in ``PRESETS``.
        data: in ``UNITS``.
        features: D.
        hidden_layers: of each network; the paper chose 1 or 2 on validation.

    Raises:
        ValueError: a name is unknown, or there is no hidden layer.

    Example:
        >>> from baselines.flows.presets import preset
        >>> sum(p.numel() for p in preset("maf-5", "power", features=6).parameters())
        60120

    """
    for kind, names, asked in (("preset", PRESETS, name), ("data set", UNITS, data)):
        if asked not in names:
            raise ValueError(f"no {kind} is called {asked!r}; known: {', '.join(names)}")
    if hidden_layers < 1:
        raise ValueError(f"hidden_layers must be at least 1, got {hidden_layers}")
    return PRESETS[name](features, hidden=(UNITS[data],) * hidden_layers)
