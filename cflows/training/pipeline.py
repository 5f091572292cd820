"""From rows to a trained flow: choose the map of the data, build the flow behind it, fit.

``fit_behind`` is all of it in one call, for the cells of a comparison, ``cflows fit`` and
``DensityEstimator`` alike.
"""

from __future__ import annotations

import copy
import json
import math
import os
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from cflows.continuous.solvers import SolverError
from cflows.core import collectives
from cflows.core.atomic_write import companion, write_whole
from cflows.core.bijector import Bijector, Chain
from cflows.core.dtypes import dtype_of
from cflows.core.flow import Flow, log_likelihood
from cflows.core.registry import LoadError
from cflows.training.checkpoint import exists
from cflows.training.distributed import together
from cflows.training.fit import fit
from cflows.training.gaussianisation import gaussianise
from cflows.training.history import History
from cflows.training.preprocessing import Fit, inside, standardise, whiten
from cflows.training.rows import Data
from cflows.training.trainer import TrainingError

__all__ = [
    "MAPS",
    "Choice",
    "Fitted",
    "begun",
    "behind",
    "choose",
    "fit_behind",
]

PART = 0.1  # of the steps, or of the seconds, that a choice takes, shared by its maps
TRIED = 2  # maps, the likeliest by themselves
LEAST = 50  # steps
SCORED = 500  # validation rows
BENT = 0.5  # nats a column that a map must win alone over the likelier linear one to be tried
ONWARD = 0.1  # of what the last doubling of a choice's steps won, that counts for the next
WRITTEN = 50  # steps between two checkpoints of a choice

AnyFlow = TypeVar("AnyFlow", bound=Flow)

MAPS: Mapping[str, Fit] = {
    "whiten": whiten,
    "standardise": standardise,
    "gaussianise": gaussianise,
}
"""What a choice is made among; the first wins a tie."""


class Choice(NamedTuple):
    """What ``choose`` returns.

    Attributes:
        name: of the map that is kept.
        map: fitted to the training rows.
        scores: the mean validation log-likelihood behind each map; -inf where none was trained.
        seconds: that it took, those of a training that was interrupted included.

    """

    name: str
    map: Bijector
    scores: dict[str, float]
    seconds: float = 0.0


@dataclass(frozen=True)
class Fitted(Generic[AnyFlow]):
    """A trained flow that ends in its map, and the map's name."""

    flow: AnyFlow
    history: History
    name: str
    chosen_in: float  # seconds that the choice of the map has taken


def fit_behind(
    build: Callable[[Bijector | None], AnyFlow],
    train: Data,
    validation: Data | None,
    preprocess: str = "auto",
    *,
    maps: Mapping[str, Fit] = MAPS,
    bounds: Bijector | None = None,
    steps: int | None = None,
    seconds: float | None = None,
    usual_steps: int | None = None,
    choice_file: Path | None = None,
    run: str = "",
    tell: Callable[[Choice], object] = lambda choice: None,
    own: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Fitted[AnyFlow]:
    """Take or choose the map of the data, build the flow behind it, and ``fit`` it.

    Args:
        build: as ``choose`` takes it; called with None where there is no map.
        train: likewise.
        validation: likewise; None where the map is not chosen.
        preprocess: a name of ``maps``; ``"none"``; or ``"auto"``, which takes a tenth of the steps
            or the seconds to train the flow behind the likeliest two of ``maps`` for as long, and
            keeps the one of the higher validation log-likelihood. ``gaussianise`` counts each row
            once, and is none of them where rows have weights.
        maps: as ``choose`` takes them.
        bounds: a map behind that one, such as a ``Bounded``.
        steps: optimiser steps at most, or None; see ``fit``.
        seconds: training seconds at most, the choice included, or None.
        usual_steps: of which the choice takes its tenth, where these are not the steps.
        choice_file: where a choice is kept, so that what was interrupted goes on behind the same
            map; within the choice each training has a checkpoint beside it until then.
        run: what the choice belongs to, where its file's place does not say it.
        tell: called with the choice that was made, before the training.
        own: further keywords of ``fit`` for the training alone.
        settings: further keywords of ``fit``.

    Raises:
        ValueError: no map can be fitted to these rows.
        LoadError: ``choice_file`` holds another run's choice.
        TrainingError: the training came to no end.

    """
    rows = train[0] if isinstance(train, tuple) else train
    fits = {name: inside(bounds, fit_map) for name, fit_map in maps.items()}
    data_end, name, chosen_in = bounds, preprocess, 0.0
    own = dict(own or {})
    if preprocess in fits:
        data_end = fits[preprocess](rows)
    elif preprocess != "none":
        assert validation is not None
        if settings.get("weights") is not None:
            fits.pop("gaussianise", None)
        usual = steps if usual_steps is None else usual_steps
        tried = min(TRIED, len(fits))
        share = PART / tried
        few = 10**9 if usual is None else min(usual, max(LEAST, math.ceil(share * usual)))
        if steps is not None and settings.get("progress", True):
            own["progress"] = range(tried * few, tried * few + steps)
            settings["progress"] = range(own["progress"].stop)
        with together():
            kept = None if choice_file is None else _kept(choice_file, run, fits, rows)
        choice = kept or choose(
            build,
            train,
            validation,
            fits,
            steps=few,
            seconds=None if seconds is None else PART * seconds,
            validate_every=None if steps is None else max(1, few // 4),
            checkpoint=choice_file,
            checkpoint_every=None if choice_file is None else WRITTEN,
            **settings,
        )
        if choice_file is not None and kept is None and collectives.leads():
            _keep(choice_file, run, choice)
        data_end, name, chosen_in = choice.map, choice.name, choice.seconds
        tell(choice)
    flow = build(data_end)
    left = None if seconds is None else max(seconds - chosen_in, 1e-9)
    history = fit(flow, train, validation, steps=steps, seconds=left, **{**settings, **own})
    return Fitted(flow, history, name, chosen_in)


def choose(
    build: Callable[[Bijector], Flow],
    train: Data,
    validation: Data,
    maps: Mapping[str, Fit] = MAPS,
    *,
    steps: int = 200,
    seconds: float | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    **settings: Any,
) -> Choice:
    """Train the same flow behind the two likeliest maps, and keep the map that won.

    The maps are ranked by the log-likelihood of validation rows under a standard normal behind
    each. That is quick, but what is likeliest alone need not be what a flow makes most of: the best
    two are tried. A map that is called ``gaussianise`` bends what a flow then has to unbend: it is
    tried where it wins half a nat a column alone (on data where it won less, flows went further
    without). The measure is the validation log-likelihood in the data's units, in which the
    maps compare, of at most 500 rows; after equal steps, so that the choice repeats. Behind a
    poorer map there is more to learn, and a short training has learnt less of it: a tenth of
    what the last doubling of the steps won are added.

    Args:
        build: a fitted map -> a new flow that ends in it, with the same first weights each time.
        train: (N, D), or a pair of rows and context, as ``fit`` takes them.
        validation: (N', D), likewise.
        maps: functions rows -> map, by name; the first wins a tie. They see neither context
            nor weights.
        steps: optimiser steps behind each map.
        seconds: of the whole choice, about, or None.
        checkpoint: a path, from which each map's training has its own, PATH.NAME: a choice that was
            interrupted goes on from these. They are left for the caller to remove.
        settings: further keywords of ``fit``; a warm-up lasts a tenth of the steps at most.

    Raises:
        ValueError: no map can be fitted to these rows; the message is the last map's.
        TrainingError: no training came to an end; likewise.
        LoadError: a checkpoint belongs to another run.

    Example:
        >>> import torch
        >>> from cflows import FFJORD, behind, choose, standardise, whiten
        >>> x = torch.randn(200, 1) @ torch.ones(1, 2) + 0.1 * torch.randn(200, 2)
        >>> build = lambda end: behind(FFJORD(2, hidden=(8,)), end)
        >>> maps = {"standardise": standardise, "whiten": whiten}
        >>> choose(build, x[:150], x[150:], maps, steps=1, progress=False).name
        'whiten'

    """
    settings["warmup"] = min(settings.get("warmup", 0), steps // 10)
    began = time.perf_counter()
    held_out, counted = _few(validation), _few(settings.pop("validation_weights", None))
    rows = train[0] if isinstance(train, tuple) else train
    device = rows.device if isinstance(rows, Tensor) else torch.device("cpu")
    ends: dict[str, Bijector] = {}
    warned: dict[str, list[warnings.WarningMessage]] = {}
    failure: Exception = ValueError("maps is empty: give one at least")
    for name, fit_map in maps.items():
        with warnings.catch_warnings(record=True) as warned[name]:
            warnings.simplefilter("always")
            try:
                ends[name] = fit_map(rows)
            except ValueError as error:
                failure = error
    alone = {name: _normal_score(data_end, held_out) for name, data_end in ends.items()}
    linear = [alone[name] for name in ends if name != "gaussianise"]
    if linear and "gaussianise" in ends:
        asked = max(linear) + BENT * ends["gaussianise"].features
        if alone["gaussianise"] < asked:
            del ends["gaussianise"]
    scores = dict.fromkeys(maps, float("-inf"))
    outlooks: dict[str, float] = {}
    fitted: dict[str, Bijector] = {}
    whole, before = settings.pop("progress", True), 0.0
    for name in sorted(ends, key=lambda key: -alone[key]):
        tried = len(fitted)
        if tried == TRIED:
            break
        progress = range(tried * steps, whole.stop) if isinstance(whole, range) else whole
        left = None
        if seconds is not None:
            spent = time.perf_counter() - began
            left = max(seconds / 10, (seconds - spent) / (min(TRIED, len(ends)) - tried))
        try:
            history = fit(
                build(ends[name]),
                train,
                held_out,
                steps=steps,
                seconds=left,
                validation_weights=counted,
                checkpoint=None if checkpoint is None else companion(checkpoint, f".{name}"),
                progress=progress,
                **settings,
            )
        except LoadError:
            raise  # another run's checkpoint is no reason to leave out a map
        except (ValueError, TrainingError, SolverError) as error:
            failure = error
            continue
        before += history.seconds
        if history.best_validation is not None:  # and it is not, with validation rows
            # Training has moved the flow, and with it the map, to its device.
            outlooks[name] = _outlook(history)
            fitted[name], scores[name] = ends[name].to(device), history.best_validation
    if not fitted:
        raise failure
    name = max(fitted, key=lambda key: outlooks[key])
    for warning in warned[name]:  # of a map that is not taken nobody need know
        warnings.warn(warning.message, stacklevel=2)
    return Choice(name, fitted[name], scores, max(before, time.perf_counter() - began))


def _few(rows: Any) -> Any:
    """At most ``SCORED`` of them, evenly spaced; what is no tensor or array as it is."""
    if isinstance(rows, tuple):
        return tuple(map(_few, rows))
    if isinstance(rows, Tensor | np.ndarray):
        return rows[:: max(1, -(-len(rows) // SCORED))]
    return rows


def _outlook(history: History) -> float:
    """The best validation log-likelihood, and a part of what the last doubling of the steps won."""
    lines = [(line.step, line.validation) for line in history.records]
    halfway = [value for step, value in lines if 2 * step <= lines[-1][0] and value is not None]
    best = max(value for _, value in lines if value is not None)
    return best + ONWARD * (best - max(halfway))


def _normal_score(data_end: Bijector, validation: Data) -> float:
    """The mean log-likelihood of rows under a standard normal behind a map; -inf if none."""
    rows = validation[0] if isinstance(validation, tuple) else validation
    if not isinstance(rows, Tensor | np.ndarray):
        return 0.0
    flow = Flow(copy.deepcopy(data_end)).double()
    x = torch.as_tensor(np.array(rows) if isinstance(rows, np.ndarray) else rows).double()
    score = float(log_likelihood(flow.to(x.device), x).mean())
    return score if math.isfinite(score) else float("-inf")


def behind(core: Flow, data_end: Bijector | None) -> Flow:
    """Flow whose samples go through a further map: x = data_end(core); None leaves it as it is.

    The map is cast to the core's dtype, in place.

    Example:
        >>> import torch
        >>> from cflows import Affine, Flow, behind, standardise
        >>> rows = torch.tensor([[9.0], [11.0]])
        >>> core = Flow(Affine([0.0], [1.0]))
        >>> behind(core, standardise(rows)).bijector(torch.tensor([0.0]))
        tensor([10.])

    """
    if data_end is None:
        return core
    bijector = Chain(core.bijector, data_end.to(dtype=dtype_of(core)))
    return Flow(bijector, core.base, core.context_network)


def begun(choice_file: Path) -> bool:
    """Whether there is a choice to go on from, or a part of one."""
    return choice_file.exists() or any(exists(companion(choice_file, f".{name}")) for name in MAPS)


def _kept(file: Path, run: str, maps: Mapping[str, Fit], rows: object) -> Choice | None:
    """The choice that a file keeps, its map fitted anew; None where there is none yet."""
    try:
        kept = json.loads(file.read_text())
        of, name = (kept.get("run", ""), kept["map"]) if kept["validation"] else ("", "")
        scores, seconds = kept["validation"], float(kept["seconds"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise LoadError(f"{file} is no choice of a map: delete it to choose anew") from None
    if of != run or name not in maps:
        raise LoadError(
            f"{file} is the choice of a map for another run (rows, model or settings differ): "
            "name another checkpoint, or delete it to choose anew"
        )
    return Choice(name, maps[name](rows), scores, seconds)


def _keep(file: Path, run: str, choice: Choice) -> None:
    """Write the choice, and take away the checkpoints of what led to it."""
    kept = {"map": choice.name, "seconds": choice.seconds, "validation": choice.scores, "run": run}
    write_whole(file, json.dumps(kept) + "\n")
    for name in choice.scores:
        training = companion(file, f".{name}")
        for left in (training, companion(training, ".previous")):
            left.unlink(missing_ok=True)
