"""The models of a comparison, by name.

Every model is built behind a fixed map that was fitted to the training rows, so that its densities
and samples are in the data's units; behind a whitening it starts at the Gaussian that it has to
beat.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import torch

from baselines.autoregressive import IAF, MAF
from baselines.coupling import NICE, RealNVP
from cflows import FFJORD, Bijector, FixedGrid, Flow, Lagged, ODEBijector
from cflows.preprocessing import behind
from cflows.storage import configuration_of

__all__ = [
    "GAUSSIAN",
    "MODELS",
    "Model",
    "ModelError",
    "build",
    "configuration",
    "find",
    "preset",
    "solvers",
]

GAUSSIAN = "gaussian"


class ModelError(ValueError):
    """A name that no model has, or a depth that it cannot have; one line."""


@dataclass(frozen=True)
class Model:
    """A model that can be asked for by name.

    Attributes:
        label: as tables and pictures write it.
        core: (features, depth) -> the flow, for white data.
        depths: the settings of depth that a comparison runs by default, ascending.
        unit: what depth counts.
        steps: optimiser steps by default.
        quick_steps: the same under ``--quick``.
        learning_rate: Adam's.
        objective: a name that ``fit`` knows.
        patience: validations without a better one after which training stops; there are about 20.

    """

    label: str
    core: Callable[[int, int], Flow]
    depths: tuple[int, ...]
    unit: str
    steps: int
    quick_steps: int
    learning_rate: float
    objective: str = "forward_kl"
    patience: int | None = None


def _matching(features: int, depth: int) -> Flow:
    """The field of design.md's measurements: smooth paths, which a fixed grid follows."""
    if depth > 1:
        raise ValueError("flow matching trains one block: leave the depth at 1")
    grid = FixedGrid("dopri5", 16)
    return FFJORD(
        features, hidden=(256, 256), layer="film", activation="silu",
        field={"time_frequencies": 8}, training_solver=grid, evaluation_solver=grid,
    )  # fmt: skip


MODELS: dict[str, Model] = {
    "ffjord": Model(
        "FFJORD",
        lambda features, depth: FFJORD(
            features, blocks=depth, hidden=(64, 64), training_solver=Lagged("rk4", 1e-2)
        ),
        depths=(1, 2),
        unit="blocks",
        steps=400,
        quick_steps=80,
        learning_rate=1e-2,
    ),
    "ffjord-matching": Model(
        "FFJORD (matching)",
        _matching,
        depths=(1,),
        unit="block",
        steps=2000,
        quick_steps=200,
        learning_rate=2e-3,
        objective="flow_matching",
        patience=5,  # its loss does not see that small data are overfitted, the likelihood does
    ),
    "maf": Model(
        "MAF",
        lambda features, depth: MAF(features, layers=depth, hidden=(64, 64)),
        depths=(2, 5),
        unit="layers",
        steps=2000,
        quick_steps=300,
        learning_rate=2e-3,
    ),
    "iaf": Model(
        "IAF",
        lambda features, depth: IAF(features, layers=depth, hidden=(64, 64)),
        depths=(2, 5),
        unit="layers",
        steps=1000,
        quick_steps=150,
        learning_rate=2e-3,
    ),
    "realnvp": Model(
        "RealNVP",
        lambda features, depth: RealNVP(features, layers=depth, hidden=(64, 64)),
        depths=(4, 8),
        unit="layers",
        steps=2000,
        quick_steps=300,
        learning_rate=2e-3,
    ),
    "nice": Model(
        "NICE",
        lambda features, depth: NICE(features, layers=depth, hidden=(64, 64)),
        depths=(4, 8),
        unit="layers",
        steps=2000,
        quick_steps=300,
        learning_rate=2e-3,
    ),
}


def find(name: str) -> Model:
    """Return the model of that name.

    Raises:
        ModelError: there is none; near names are suggested.

    """
    if name in MODELS:
        return MODELS[name]
    near = difflib.get_close_matches(name.lower(), MODELS, n=2)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise ModelError(f"no model is called {name!r}; {hint}Known names: {', '.join(MODELS)}")


def build(name: str, depth: int | None, data_end: Bijector, seed: int) -> Flow:
    """Build a model that ends in a fixed map; its first weights are a function of the seed.

    Args:
        name: a name in ``MODELS``, or ``"gaussian"``: a whitening alone is the full-covariance
            Gaussian of maximum likelihood.
        depth: layers or blocks; None for the Gaussian.
        data_end: fitted to the training rows.
        seed: of torch's generator, within this call only.

    """
    if name == GAUSSIAN:
        return Flow(data_end)
    if depth is None or depth < 1:
        raise ModelError(f"{name} needs a depth of at least 1, got {depth}")
    return behind(preset(name, data_end.features, depth, seed), data_end)


def preset(name: str, features: int, depth: int, seed: int = 0) -> Flow:
    """Build a model for white data; the caller's random numbers are left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return find(name).core(features, depth)


def configuration(name: str, features: int, depth: int | None) -> str:
    """Return a hash of the constructor calls behind a model, which changes with its preset.

    ``""`` for the Gaussian, which has no settings, and for a model that cannot be built: its cell
    will fail and give the reason.
    """
    if name == GAUSSIAN or depth is None:
        return ""
    with contextlib.suppress(Exception):
        core = preset(name, features, depth)
        # The parts as well as the flow: a call records what was passed, and a subclass of Flow
        # passes its own defaults on to its parts.
        calls = [configuration_of(part) for part in (core, core.bijector, core.base)]
        model = find(name)
        calls.append(model.objective)
        if model.patience is not None:
            calls.append(f"patience {model.patience}")
        return hashlib.sha256("\n".join(calls).encode()).hexdigest()
    return ""


def solvers(name: str) -> dict[str, str]:
    """Return a continuous model's solvers in training and in evaluation; empty for a discrete one.

    Example:
        >>> sorted(solvers("ffjord")), solvers("maf")
        (['evaluation', 'training'], {})

    """
    with contextlib.suppress(Exception):  # one that cannot be built: its cells say so
        for part in preset(name, 2, min(find(name).depths)).modules():
            if isinstance(part, ODEBijector):
                return {
                    "training": repr(part.training_solver),
                    "evaluation": repr(part.evaluation_solver),
                }
    return {}
