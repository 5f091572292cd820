"""The models of a comparison.

Every model is built behind a fixed map that was fitted to the training rows, so that its densities
and samples are in the data's units; behind a whitening it starts at the Gaussian that it has to
beat.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from baselines.flows.autoregressive import IAF, MAF
from baselines.flows.coupling import NICE, RealNVP
from baselines.flows.nsf import NSF
from baselines.flows.planar import PlanarFlow
from baselines.models.model import HIDDEN, Model
from cflows import FFJORD, MLP, FixedGrid, Flow, Lagged, ODEBijector, ResidualField

__all__ = ["MODELS"]


FEW = 16  # columns, whose trace by one tangent each is no great price
_SOLVER = Lagged("rk4", 1e-2)


def _ffjord(features: int, depth: int, hidden: Sequence[int] = (64, 64)) -> Flow:
    return FFJORD(features, blocks=depth, hidden=hidden, training_solver=_SOLVER)


def _matching(features: int, depth: int, hidden: Sequence[int] | None = None) -> Flow:
    """Residual blocks for few columns; else two wide layers, whose trace has a closed form.

    Film gates make smooth paths, which a fixed grid follows. Widths that are given are those of two
    layers.
    """
    if depth > 1:
        raise ValueError("flow matching trains one block: leave the depth at 1")
    field: ResidualField | MLP
    if hidden is None and features <= FEW:
        field = ResidualField(features, width=128)
    else:
        hidden = hidden or (384, 384)
        field = MLP(features, hidden=hidden, layer="film", activation="silu", time_frequencies=8)
    grid = FixedGrid("dopri5", 16)
    return Flow(ODEBijector(field, training_solver=grid, evaluation_solver=grid))


def _spline(features: int, depth: int, hidden: Sequence[int] = HIDDEN) -> Flow:
    """Autoregressive, whose samples cost about a pass as well: as likely in fewer layers."""
    return NSF(features, layers=depth, hidden=hidden, passes="autoregressive", tails="affine")


def _layers(family: Callable[..., Flow]) -> Callable[..., Flow]:
    def core(features: int, depth: int, hidden: Sequence[int] = HIDDEN) -> Flow:
        return family(features, layers=depth, hidden=hidden)

    return core


MODELS: dict[str, Model] = {
    "ffjord": Model(
        "FFJORD",
        _ffjord,
        depths=(1, 2),
        unit="blocks",
        steps=300,
        quick_steps=60,
        learning_rate=2e-2,
        validations=10,  # one takes as long as five steps
    ),
    "ffjord-matching": Model(
        "FFJORD, matching",
        _matching,
        depths=(1,),
        unit="block",
        quick_steps=100,
        learning_rate=8e-3,
        warmup=200,
        objective="flow_matching",
        patience=5,  # its loss does not see that small data are overfitted, the likelihood does
        validations=10,  # one takes as long as a hundred steps
    ),
    "maf": Model("MAF", _layers(MAF), depths=(2, 5), steps=1200, learning_rate=7e-3, warmup=100),
    "iaf": Model("IAF", _layers(IAF), depths=(2, 5), steps=1000, quick_steps=100, warmup=100),
    "realnvp": Model(
        "RealNVP", _layers(RealNVP), depths=(4, 8), steps=1300, learning_rate=7e-3, warmup=100
    ),
    "nice": Model("NICE", _layers(NICE), depths=(4, 8), steps=1000, learning_rate=1e-2, warmup=100),
    "spline": Model("Spline", _spline, depths=(2, 5), warmup=100),
    "planar": Model(
        "Planar",
        lambda features, depth: PlanarFlow(features, layers=depth),
        depths=(2, 8, 32),
        unit="maps",
    ),
    "ffjord-time": Model(
        "FFJORD, end time",
        lambda features, depth: FFJORD(
            features, end_time=depth / 4, hidden=(64, 64), training_solver=_SOLVER
        ),
        depths=(1, 2, 4, 8),
        unit="quarters of end time",
        steps=400,
        quick_steps=60,
        learning_rate=1e-2,
    ),
}
