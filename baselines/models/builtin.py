"""The models of a comparison, by name.

Every model is built behind a fixed map that was fitted to the training rows, so that its densities
and samples are in the data's units; behind a whitening it starts at the Gaussian that it has to
beat.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch

from baselines.flows.autoregressive import IAF, MAF
from baselines.flows.coupling import NICE, RealNVP
from baselines.flows.nsf import NSF
from baselines.flows.planar import PlanarFlow
from baselines.harness.data.dataset import nearest
from cflows import FFJORD, Bijector, FixedGrid, Flow, Lagged, ODEBijector
from cflows.core.flow import dtype_of
from cflows.core.registry import configuration_of
from cflows.training.pipeline import behind

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
    "takes_widths",
]

GAUSSIAN = "gaussian"
HIDDEN = (128, 128)


class ModelError(ValueError):
    """A name that no model has, or a depth or a size that it cannot have; one line."""


@dataclass(frozen=True)
class Model:
    """A model that can be asked for by name.

    Attributes:
        label: as tables and pictures write it.
        core: (features, depth) -> the flow, for white data; where it takes a third argument
            ``hidden``, the widths of a network's hidden layers, they can be chosen for it.
        depths: the settings of depth that a comparison runs by default, ascending.
        unit: what depth counts.
        steps: optimiser steps by default.
        quick_steps: the same under ``--quick``.
        learning_rate: Adam's.
        objective: a name that ``fit`` knows.
        batch_size: rows a step; None for that of all cells.
        text: what else decides how it computes: a hash of the file of a user's function.
        patience: validations without a better one after which training stops; there are about 20.
        warmup: steps over which the learning rate rises, a tenth of a training's steps at most.

    """

    label: str
    core: Callable[..., Flow]
    depths: tuple[int, ...]
    unit: str
    steps: int
    quick_steps: int
    learning_rate: float
    objective: str = "forward_kl"
    batch_size: int | None = None
    text: str = ""
    patience: int | None = None
    warmup: int = 0

    def counted(self, depth: int) -> str:
        """A depth with its unit: 1 layer, 2 layers."""
        first, *more = self.unit.split(" ")
        return " ".join([str(depth), first.removesuffix("s") if depth == 1 else first, *more])

    def warmup_of(self, steps: int | None) -> int:
        """The warm-up of a training of so many steps, or of one that only seconds end."""
        return self.warmup if steps is None else min(self.warmup, steps // 10)


def _ffjord(features: int, depth: int, hidden: Sequence[int] = (64, 64)) -> Flow:
    solver = Lagged("rk4", 1e-2)
    return FFJORD(features, blocks=depth, hidden=hidden, training_solver=solver)


def _matching(features: int, depth: int, hidden: Sequence[int] = (256, 256)) -> Flow:
    """The field of design.md's measurements: smooth paths, which a fixed grid follows."""
    if depth > 1:
        raise ValueError("flow matching trains one block: leave the depth at 1")
    grid = FixedGrid("dopri5", 16)
    return FFJORD(
        features, hidden=hidden, layer="film", activation="silu",
        field={"time_frequencies": 8}, training_solver=grid, evaluation_solver=grid,
    )  # fmt: skip


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
        steps=400,
        quick_steps=60,
        learning_rate=1e-2,
    ),
    "ffjord-matching": Model(
        "FFJORD, matching",
        _matching,
        depths=(1,),
        unit="block",
        steps=2000,
        quick_steps=100,
        learning_rate=8e-3,
        warmup=200,
        objective="flow_matching",
        patience=5,  # its loss does not see that small data are overfitted, the likelihood does
    ),
    "maf": Model(
        "MAF",
        _layers(MAF),
        depths=(2, 5),
        unit="layers",
        steps=2000,
        quick_steps=150,
        learning_rate=5e-3,
        warmup=100,
    ),
    "iaf": Model(
        "IAF",
        _layers(IAF),
        depths=(2, 5),
        unit="layers",
        steps=1000,
        quick_steps=100,
        learning_rate=5e-3,
        warmup=100,
    ),
    "realnvp": Model(
        "RealNVP",
        _layers(RealNVP),
        depths=(4, 8),
        unit="layers",
        steps=2000,
        quick_steps=150,
        learning_rate=5e-3,
        warmup=100,
    ),
    "nice": Model(
        "NICE",
        _layers(NICE),
        depths=(4, 8),
        unit="layers",
        steps=2000,
        quick_steps=150,
        learning_rate=5e-3,
        warmup=100,
    ),
    "spline": Model(
        "Spline",
        _spline,
        depths=(2, 5),
        unit="layers",
        steps=2000,
        quick_steps=150,
        learning_rate=5e-3,
        warmup=100,
    ),
    "planar": Model(
        "Planar",
        lambda features, depth: PlanarFlow(features, layers=depth),
        depths=(2, 8, 32),
        unit="maps",
        steps=2000,
        quick_steps=150,
        learning_rate=5e-3,
    ),
    "ffjord-time": Model(
        "FFJORD, end time",
        lambda features, depth: FFJORD(
            features, end_time=depth / 4, hidden=(64, 64), training_solver=Lagged("rk4", 1e-2)
        ),
        depths=(1, 2, 4, 8),
        unit="quarters of end time",
        steps=400,
        quick_steps=60,
        learning_rate=1e-2,
    ),
}


def find(name: str) -> Model:
    """Return the model of that name, or the user's own behind ``module:function``.

    Names are those of ``MODELS``, of the papers' presets (``maf-power``, see ``papers``) and of
    the entry points of installed packages (see ``user_models``).

    Raises:
        ModelError: there is none; near names are suggested. Or a file or a module cannot be used.

    """
    from baselines.models import papers  # which build on this module
    from baselines.models import user as user_models

    if name in MODELS:
        return MODELS[name]
    if name in papers.PRESETS:
        return papers.PRESETS[name]
    if ":" in name:
        return user_models.imported(name)
    if name in (installed := user_models.installed()):
        return user_models.entered(installed[name])
    known = [*MODELS, *installed]
    hint = nearest(name.lower(), [*known, *papers.PRESETS])
    raise ModelError(
        f"no model is called {name!r}; {hint}Known names: {', '.join(known)}; the papers' sizes as "
        f"in {', '.join(papers.examples())}; or your own function, as in FILE.py:FUNCTION"
    )


def takes_widths(name: str) -> bool:
    """Whether the widths of a model's hidden layers can be chosen."""
    return "hidden" in signature(find(name).core).parameters


def build(
    name: str,
    depth: int | None,
    data_end: Bijector,
    seed: int,
    hidden: Sequence[int] | None = None,
) -> Flow:
    """Build a model that ends in a fixed map; its first weights are a function of the seed.

    Args:
        name: a name that ``find`` knows, or ``"gaussian"``: a whitening alone is the
            full-covariance Gaussian of maximum likelihood.
        depth: layers or blocks; None for the Gaussian.
        data_end: fitted to the training rows.
        seed: of torch's generator, within this call only.
        hidden: widths of the hidden layers; None for the model's own.

    """
    if name == GAUSSIAN:
        return Flow(data_end)
    if depth is None or depth < 1:
        raise ModelError(f"{name} needs a depth of at least 1, got {depth}")
    core = preset(name, data_end.features, depth, seed, hidden)
    # In the rows' dtype, as every other model of a comparison, whatever a user's own is.
    return behind(core.to(dtype_of(data_end)), data_end)


def preset(
    name: str, features: int, depth: int, seed: int = 0, hidden: Sequence[int] | None = None
) -> Flow:
    """Build a model for white data; the caller's random numbers are left alone.

    Raises:
        ModelError: the user's own function returned something else than a flow of these features.

    """
    widths: dict[str, Any] = {} if hidden is None else {"hidden": tuple(hidden)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        flow = find(name).core(features, depth, **widths)
    if not isinstance(flow, Flow):
        raise ModelError(f"{name} returned a {type(flow).__name__}, not a cflows.Flow")
    if flow.features != features:
        raise ModelError(f"{name} returned a flow of {flow.features} features for {features}")
    return flow


def configuration(
    name: str, features: int, depth: int | None, hidden: Sequence[int] | None = None
) -> str:
    """Return a hash of the constructor calls behind a model, which changes with its preset.

    ``""`` for the Gaussian, which has no settings, and for a model that cannot be built: its cell
    will fail and give the reason.
    """
    if name == GAUSSIAN or depth is None:
        return ""
    with contextlib.suppress(Exception):
        core = preset(name, features, depth, hidden=hidden)
        # The parts as well as the flow: a call records what was passed, and a subclass of Flow
        # passes its own defaults on to its parts.
        calls = [configuration_of(part) for part in (core, core.bijector, core.base)]
        model = find(name)
        calls += [model.objective, model.text]
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
