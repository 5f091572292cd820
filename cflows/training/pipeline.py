"""Choosing the map of the data, building a flow behind it, and fitting."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from cflows.continuous.solvers import SolverError
from cflows.core.arrays import Array
from cflows.core.bijector import Bijector, Chain
from cflows.core.flow import Flow, dtype_of
from cflows.core.registry import LoadError
from cflows.training.fit import fit
from cflows.training.preprocessing import RowsOnDisk, _dtype, standardise, whiten
from cflows.training.rows import Data, drop_pages
from cflows.training.trainer import TrainingError

__all__ = ["MAPS", "Choice", "behind", "choose", "inside"]

MAPS: Mapping[str, Callable[[Any], Bijector]] = {"standardise": standardise, "whiten": whiten}


class Choice(NamedTuple):
    """What ``choose`` found.

    Attributes:
        name: of the map that is kept.
        map: fitted to the training rows.
        scores: the mean validation log-likelihood behind each map; -inf where it could not be had.
        seconds: that it took, those of a training that was interrupted included.

    """

    name: str
    map: Bijector
    scores: dict[str, float]
    seconds: float = 0.0


def choose(
    build: Callable[[Bijector], Flow],
    train: Data,
    validation: Data,
    maps: Mapping[str, Callable[[Any], Bijector]] = MAPS,
    *,
    steps: int = 200,
    checkpoint: str | os.PathLike[str] | None = None,
    **settings: Any,
) -> Choice:
    """Train the same flow behind each map for the same steps, and keep the map that won.

    The measure is the validation log-likelihood in the data's units, in which the maps compare.
    Steps and not seconds, so that the choice repeats.

    Args:
        build: a fitted map -> a new flow that ends in it, with the same first weights each time.
        train: (N, D), or a pair of rows and context, as ``fit`` takes them.
        validation: (N', D), likewise.
        maps: functions rows -> map, by name; the first wins a tie. They see neither context
            nor weights.
        steps: optimiser steps behind each map.
        checkpoint: a path, from which each map's training has its own, PATH.NAME: a choice that was
            interrupted goes on from these. They are left for the caller to remove.
        settings: further keywords of ``fit``; a warm-up lasts a tenth of the steps at most.

    Raises:
        ValueError: no map can be fitted to these rows; the message is the last map's.
        TrainingError: no training came to an end; likewise.
        LoadError: a checkpoint belongs to another run.

    Example:
        >>> import torch
        >>> from cflows import FFJORD, choose
        >>> from cflows.training.preprocessing import behind
        >>> x = torch.randn(200, 1) @ torch.ones(1, 2) + 0.1 * torch.randn(200, 2)
        >>> build = lambda end: behind(FFJORD(2, hidden=(8,)), end)
        >>> choose(build, x[:150], x[150:], steps=1, progress=False).name
        'whiten'

    """
    settings["warmup"] = min(settings.get("warmup", 0), steps // 10)
    rows = train[0] if isinstance(train, tuple) else train
    place = rows.device if isinstance(rows, Tensor) else torch.device("cpu")
    found: dict[str, Bijector] = {}
    scores: dict[str, float] = {}
    failure: Exception = ValueError("maps is empty: give one at least")
    seconds = 0.0
    for name, fit_map in maps.items():
        scores[name] = float("-inf")
        own = None if checkpoint is None else f"{os.fspath(checkpoint)}.{name}"
        started = time.perf_counter()
        try:
            data_end = fit_map(rows)
            history = fit(
                build(data_end), train, validation, steps=steps, checkpoint=own, **settings
            )
            best = history.best_validation
            seconds += max(history.seconds, time.perf_counter() - started)
        except LoadError:
            raise  # another run's checkpoint is no reason to leave out a map
        except (ValueError, TrainingError, SolverError) as error:
            failure = error
            continue
        if best is not None:  # and it is not, with validation rows
            # Training has moved the flow, and with it the map, to its device.
            found[name], scores[name] = data_end.to(place), best
    if not found:
        raise failure
    name = max(found, key=lambda key: scores[key])
    return Choice(name, found[name], scores, seconds)


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
    return Flow(Chain(core.bijector, data_end.to(dtype=dtype_of(core))), core.base)


def inside(
    bounds: Bijector | None, fit_map: Callable[[Any], Bijector]
) -> Callable[[Any], Bijector]:
    """The same map, fitted to the rows as they are behind their bounds: x = bounds(map(z)).

    Args:
        bounds: such as a ``Bounded``; None leaves the map as it is.
        fit_map: ``standardise``, ``whiten``, or another function rows -> map.

    Example:
        >>> import torch
        >>> from cflows import Bounded, inside, standardise
        >>> waiting = torch.tensor([[1.0], [4.0]])
        >>> end = inside(Bounded([0.0], [None]), standardise)(waiting)
        >>> round(end(torch.zeros(1, 1)).item(), 3)  # exp of the mean logarithm
        2.0

    """
    if bounds is None:
        return fit_map

    def fitted(rows: Any) -> Bijector:
        exact = copy.deepcopy(bounds).double().eval()
        if isinstance(rows, Tensor):
            seen: Any = exact.to(rows.device).inverse(rows.double()).to(rows.dtype)
        else:
            seen = _Unbounded(rows, exact)
        return Chain(fit_map(seen), copy.deepcopy(bounds).to(_dtype(rows)))

    return fitted


@dataclass(frozen=True)
class _Unbounded:
    """Rows on the disk, seen through the inverse of their bounds."""

    rows: RowsOnDisk
    bounds: Bijector

    @property
    def shape(self) -> tuple[int, ...]:
        return self.rows.shape

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, chosen: Any) -> Array:
        seen = self.bounds.inverse(torch.from_numpy(np.array(self.rows[chosen], dtype=np.float64)))
        drop_pages(self.rows)
        return seen.numpy()
