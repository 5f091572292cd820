"""Models by name: found, built, told apart."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Sequence
from inspect import signature

import torch

from baselines.models import papers, peers, user
from baselines.models.builtin import MODELS
from baselines.models.model import CLOSED_FORM, Model, ModelError
from cflows import Bijector, Flow, Margins, ODEBijector, Radial, Whitening
from cflows.core.arguments import nearest
from cflows.core.dtypes import dtype_of
from cflows.core.registry import configuration_of
from cflows.training.pipeline import behind

__all__ = ["build", "configuration", "find", "numbers", "preset", "solvers", "takes_widths"]


def find(name: str) -> Model:
    """Return the model of that name, or the user's own behind ``module:function``.

    Names are those of ``MODELS``, of the papers' presets (``maf-power``, see ``papers``), of other
    libraries' flows (``zuko:NSF``, see ``peers``) and of the entry points of installed packages
    (see ``user``).

    Raises:
        ModelError: there is none; near names are suggested. Or a file or a module cannot be used.

    """
    if name in MODELS:
        return MODELS[name]
    if name in papers.PRESETS:
        return papers.PRESETS[name]
    if name.partition(":")[0] in peers.LIBRARIES:
        return peers.found(name)
    if ":" in name:
        return user.imported(name)
    if name in (installed := user.installed()):
        return user.entered(installed[name])
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
        name: a name that ``find`` knows, or one of ``CLOSED_FORM``, which is the map alone: a
            whitening is the full-covariance Gaussian of maximum likelihood.
        depth: layers or blocks; None for a closed form.
        data_end: fitted to the training rows.
        seed: of torch's generator, within this call only.
        hidden: widths of the hidden layers; None for the model's own.

    """
    if name in CLOSED_FORM:
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
    widths = {} if hidden is None else {"hidden": tuple(hidden)}
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

    ``""`` for a closed form, which has no settings, and for a model that cannot be built: its cell
    will fail and give the reason.
    """
    if name in CLOSED_FORM or depth is None:
        return ""
    with contextlib.suppress(Exception):
        core = preset(name, features, depth, hidden=hidden)
        # The parts as well as the flow: a call records what was passed, and a subclass of Flow
        # passes its own defaults on to its parts.
        calls = [configuration_of(part) for part in (core, core.bijector, core.base)]
        model = find(name)
        calls += [str(model.goal), model.text]
        if model.patience is not None:
            calls.append(f"patience {model.patience}")
        return hashlib.sha256("\n".join(calls).encode()).hexdigest()
    return ""


def numbers(flow: Flow) -> int:
    """Parameters, and what the fixed maps of a closed form hold.

    Of a whitening these are the mean and the covariance, D + D (D + 1) / 2; of a spline place,
    value and slope of each knot.
    """
    count = sum(parameter.numel() for parameter in flow.parameters())
    for part in flow.modules():
        if isinstance(part, Whitening):
            count += part.features + part.features * (part.features + 1) // 2
        elif isinstance(part, Margins | Radial):
            count += 3 * part.places.numel()
    return count


def solvers(name: str) -> dict[str, str]:
    """Return a continuous model's solvers in training and in evaluation; empty for a discrete one.

    Example:
        >>> sorted(solvers("ffjord")), solvers("maf")
        (['evaluation', 'training'], {})

    """
    with contextlib.suppress(Exception):  # one that cannot be built: its cells say so
        model = find(name)
        for part in preset(name, 64 if model.images else 2, min(model.depths)).modules():
            if isinstance(part, ODEBijector):
                return {
                    "training": repr(part.training_solver),
                    "evaluation": repr(part.evaluation_solver),
                }
    return {}
