"""The models of a comparison.

Every model is built behind a fixed map that was fitted to the training rows, so that its densities
and samples are in the data's units; behind a whitening it starts at the Gaussian that it has to
beat.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from baselines.flows.autoregressive import IAF, MAF
from baselines.flows.coupling import NICE, RealNVP
from baselines.flows.image import Glow, ImageRealNVP
from baselines.flows.nsf import NSF
from baselines.flows.planar import PlanarFlow
from baselines.models.model import HIDDEN, Model, ModelError
from cflows import FFJORD, FixedGrid, Flow, ImageFFJORD, Lagged

__all__ = ["MODELS", "image_shape"]


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


# Of an image: exactly it takes a product for each pixel. Its error is part of that over rows.
_TRACE: Any = {"evaluation_divergence": "hutchinson", "evaluation_probes": 2}


def image_shape(features: int) -> tuple[int, int, int]:
    """(1, H, H) or (3, H, H) of so many numbers.

    Raises:
        ModelError: they are no square image.

    """
    for channels in (1, 3):
        side = math.isqrt(features // channels)
        if channels * side * side == features and side > 1:
            return channels, side, side
    raise ModelError(
        f"rows of {features} columns are no square images: {features} is neither H² nor 3 H²"
    )


def _squeezes(shape: tuple[int, int, int]) -> int:
    """How often a side can be halved, twice at most."""
    return 2 if shape[1] % 4 == 0 else int(shape[1] % 2 == 0)


def _image_ffjord(features: int, depth: int) -> Flow:
    shape = image_shape(features)
    scales = min(depth, 1 + _squeezes(shape))
    settings, grid = {"hidden": (32, 32)}, FixedGrid("rk4", 8)
    return ImageFFJORD(
        shape,
        scales=scales,
        settings=settings,
        training_solver=_SOLVER,
        evaluation_solver=grid,
        **_TRACE,
    )


def _image_matching(features: int, depth: int) -> Flow:
    if depth > 1:
        raise ValueError("flow matching trains one block: leave the depth at 1")
    shape, grid = image_shape(features), FixedGrid("dopri5", 8)
    return ImageFFJORD(
        shape,
        field="unet",
        settings={"channels": 24, "levels": 1 + _squeezes(shape)},
        training_solver=grid,
        evaluation_solver=grid,
        **_TRACE,
    )


def _image_realnvp(features: int, depth: int) -> Flow:
    shape = image_shape(features)
    return ImageRealNVP(shape, scales=min(depth, 1 + _squeezes(shape)))


def _glow(features: int, depth: int) -> Flow:
    shape = image_shape(features)
    return Glow(shape, scales=max(1, _squeezes(shape)), steps=depth)


def _layers(family: Callable[..., Flow]) -> Callable[..., Flow]:
    def core(features: int, depth: int, hidden: Sequence[int] = HIDDEN) -> Flow:
        return family(features, layers=depth, hidden=hidden)

    return core


_IMAGES: Any = {"learning_rate": 2e-3, "batch_size": 128, "images": True}
_COUPLINGS: Any = {**_IMAGES, "steps": 600, "quick_steps": 20, "warmup": 50}

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
    "ffjord-image": Model(
        "FFJORD, images",
        _image_ffjord,
        depths=(2,),
        unit="scales",
        steps=300,
        quick_steps=20,
        batch_size=128,
        validations=5,
        images=True,
    ),
    "ffjord-image-matching": Model(
        "FFJORD, images, matching",
        _image_matching,
        depths=(1,),
        unit="block",
        steps=800,
        quick_steps=40,
        optimizer="adamw",
        objective="flow_matching",
        warmup=100,
        patience=5,
        validations=3,
        **_IMAGES,
    ),
    "realnvp-image": Model(
        "RealNVP, images", _image_realnvp, depths=(2,), unit="scales", **_COUPLINGS
    ),
    "glow": Model("Glow", _glow, depths=(6,), unit="steps", **_COUPLINGS),
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
