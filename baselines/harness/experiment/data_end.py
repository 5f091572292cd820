"""The fixed map that a cell's model ends in: the one asked for, or chosen on validation rows."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from cflows import Bijector, Flow, LoadError, choose, standardise, whiten
from cflows.core import collectives
from cflows.core.atomic_write import write_whole
from cflows.training import distributed
from cflows.training.checkpoint import exists
from cflows.training.rows import Data

__all__ = ["MAPS", "PREPROCESS", "begun", "fitted"]

PREPROCESS = ("auto", "standardise", "whiten")
MAPS: dict[str, Callable[[Tensor], Bijector]] = {"whiten": whiten, "standardise": standardise}
PART = 0.1  # of the steps, or of the seconds, that the choice takes behind each map
LEAST = 50  # steps
WRITTEN = 50  # steps between two checkpoints of a choice


class Fitted(NamedTuple):
    """A fixed map.

    Attributes:
        name: of the map.
        map: fitted to the training rows.
        seconds: that its choice has taken.
        scores: the validation log-likelihood behind each map; empty where nothing was chosen.

    """

    name: str
    map: Bijector
    seconds: float
    scores: dict[str, float]


def fitted(
    wanted: str,
    build: Callable[[Bijector], Flow],
    train: Data,
    validation: Data,
    place: Path | None,
    *,
    steps: int | None,
    seconds: float | None,
    maps: Mapping[str, Callable[[Any], Bijector]] = MAPS,
    run: str = "",
    **settings: Any,
) -> Fitted:
    """The map that was asked for, or the one that is chosen.

    A choice is kept in a file, so that what was interrupted goes on behind the same map; within the
    choice each map's training has a checkpoint beside it until then.

    Args:
        wanted: one of ``PREPROCESS``; ``"auto"`` trains the model behind each for a part of the
            steps or the seconds, and keeps the one of the higher validation log-likelihood.
        build: a map -> a new flow that ends in it.
        train: (N, D), or a pair of rows and context, as ``fit`` takes them.
        validation: (N', D), likewise.
        place: the file of the choice; None keeps none.
        steps: of the whole training, or None.
        seconds: likewise, the choice included.
        maps: what there is to choose from.
        run: what the choice belongs to, where the file's place does not say it.
        settings: further keywords of ``fit``.

    Raises:
        LoadError: the file holds another run's choice.

    """
    rows = train[0] if isinstance(train, tuple) else train
    if wanted in maps:
        return Fitted(wanted, maps[wanted](rows), 0.0, {})
    with distributed.together():
        kept = None if place is None else _kept(place, run, maps)
    if kept is not None:
        return Fitted(kept["map"], maps[kept["map"]](rows), kept["seconds"], kept["validation"])
    few = 10**9 if steps is None else min(steps, max(LEAST, math.ceil(PART * steps)))
    choice = choose(
        build, train, validation, maps, steps=few, validate_every=few,
        seconds=None if seconds is None else PART * seconds,
        checkpoint=place, checkpoint_every=None if place is None else WRITTEN, **settings,
    )  # fmt: skip
    if place is not None and collectives.leads():
        found = {
            "map": choice.name, "seconds": choice.seconds, "validation": choice.scores, "run": run,
        }  # fmt: skip
        write_whole(place, json.dumps(found) + "\n")
        for name in maps:
            for left in (f"{place}.{name}", f"{place}.{name}.previous"):
                Path(left).unlink(missing_ok=True)
    return Fitted(choice.name, choice.map, choice.seconds, choice.scores)


def begun(place: Path) -> bool:
    """Whether there is a choice to go on from, or a part of one."""
    return place.exists() or any(exists(f"{place}.{name}") for name in MAPS)


def _kept(place: Path, run: str, maps: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the file of a choice holds; None where there is none yet."""
    try:
        kept: dict[str, Any] = json.loads(place.read_text())
        of, name = (kept.get("run", ""), kept["map"]) if kept["validation"] else ("", "")
        float(kept["seconds"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise LoadError(f"{place} is no choice of a map: delete it to choose anew") from None
    if of != run or name not in maps:
        raise LoadError(
            f"{place} is the choice of a map for another run (rows, model or settings differ): "
            "name another checkpoint, or delete it to choose anew"
        )
    return kept
