"""The papers' models by name: ``maf-power``, ``realnvp5-gas``, ``ffjord-power``.

Papamakarios, Pavlakou and Murray 2017, section 4 and appendix D: what ``baselines.flows.presets``
builds, in two hidden layers; Adam at 1e-4 for MAF and RealNVP, 1e-3 for MADE, 100 rows a step. Its
l2 term of 1e-6 is left out.

Grathwohl, Chen, Bettencourt, Sutskever and Duvenaud 2019, the appendix's table of architectures for
tables, and the calls of their ``train_tabular.py``: hidden layers, their width as a multiple of D,
flow steps, activation, rows a step; a trainable end time, Adam at 1e-3. The layers are that
script's default, concatsquash. The solver is this package's: theirs was dopri5 by an adjoint.
BSDS300 is not among them: sources differ in its activation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from baselines.flows import presets
from baselines.models.model import Model
from cflows import FFJORD, Flow, Lagged

__all__ = ["PRESETS", "examples"]

STEPS, QUICK_STEPS = 20_000, 300


class Sizes(NamedTuple):
    """Of an FFJORD: hidden layers, their width over D, flow steps, activation, rows a step."""

    layers: int
    factor: int
    blocks: int
    activation: str
    batch_size: int


FFJORDS = {
    "power": Sizes(3, 10, 5, "tanh", 10_000),
    "gas": Sizes(3, 20, 5, "tanh", 1_000),
    "hepmass": Sizes(2, 10, 10, "softplus", 10_000),
    "miniboone": Sizes(2, 20, 1, "softplus", 1_000),
}

# By the name here: that of baselines.flows.presets, the label, layers, the learning rate.
FAMILIES = {
    "made": ("made", "MADE", 1, 1e-3),
    "mademog": ("made-mog", "MADE MoG", 1, 1e-3),
    "realnvp5": ("realnvp-5", "RealNVP (5)", 5, 1e-4),
    "realnvp10": ("realnvp-10", "RealNVP (10)", 10, 1e-4),
    "maf": ("maf-5", "MAF (5)", 5, 1e-4),
    "maf10": ("maf-10", "MAF (10)", 10, 1e-4),
    "mafmog": ("maf-mog-5", "MAF MoG (5)", 5, 1e-4),
}


def examples() -> tuple[str, ...]:
    """A name of each family."""
    return (*(f"{family}-power" for family in FAMILIES), "ffjord-power")


def _entries() -> Iterator[tuple[str, Model]]:
    for data in presets.UNITS:
        for family, (preset, label, layers, learning_rate) in FAMILIES.items():
            core = partial(presets.preset, preset, data)
            model = _model(f"{label} {data.upper()}", core, layers, "layers")
            yield f"{family}-{data}", replace(model, learning_rate=learning_rate, batch_size=100)
    for data, sizes in FFJORDS.items():
        model = _model(f"FFJORD {data.upper()}", partial(_ffjord, sizes), sizes.blocks, "blocks")
        yield f"ffjord-{data}", replace(model, learning_rate=1e-3, batch_size=sizes.batch_size)


def _model(label: str, core: Callable[[int], Flow], layers: int, unit: str) -> Model:
    def at_its_depth(features: int, depth: int) -> Flow:
        if depth != layers:
            raise ValueError(f"{label}: has {layers} {unit}, got {depth}; leave the depth out")
        return core(features)

    return Model(label, at_its_depth, (layers,), unit, STEPS, QUICK_STEPS)


def _ffjord(sizes: Sizes, features: int) -> Flow:
    return FFJORD(
        features,
        hidden=(sizes.factor * features,) * sizes.layers,
        blocks=sizes.blocks,
        activation=sizes.activation,
        trainable_end_time=True,
        training_solver=Lagged("dopri5", 1e-3),
    )


PRESETS = dict(_entries())
