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
from cflows import FFJORD, FixedGrid, Flow, Lagged

__all__ = ["MODELS"]


_SOLVER = Lagged("rk4", 1e-2)


def _ffjord(features: int, depth: int, hidden: Sequence[int] = (64, 64)) -> Flow:
    return FFJORD(features, blocks=depth, hidden=hidden, training_solver=_SOLVER)


def _matching(features: int, depth: int, hidden: Sequence[int] | None = None) -> Flow:
    """FFJORD's usual field; with widths, of two layers with film gates, whose paths are smooth."""
    if depth > 1:
        raise ValueError("flow matching trains one block: leave the depth at 1")
    grid = FixedGrid("dopri5", 12)
    if hidden is None:
        return FFJORD(features, training_solver=grid, evaluation_solver=grid)
    return FFJORD(
        features,
        hidden=hidden,
        layer="film",
        activation="silu",
        field={"time_frequencies": 8, "residual": "normal"},
        training_solver=grid,
        evaluation_solver=grid,
    )


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
        steps=800,
        quick_steps=60,
        warmup=200,
        objective="flow_matching",
        batch_size=1024,
        patience=5,  # its loss does not see that small data are overfitted, the likelihood does
        validations=5,  # one takes as long as a hundred steps
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
