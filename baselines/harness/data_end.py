"""The fixed map that a cell's model ends in: the one asked for, or chosen on validation rows."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from cflows import Bijector, Flow, choose, standardise, whiten
from cflows.atomic_write import write_whole

__all__ = ["MAPS", "PREPROCESS", "fitted"]

PREPROCESS = ("auto", "standardise", "whiten")
MAPS: dict[str, Callable[[Tensor], Bijector]] = {"whiten": whiten, "standardise": standardise}
PART = 0.1  # of the steps, or of the seconds, that the choice takes behind each map
LEAST = 50  # steps


def fitted(
    wanted: str,
    build: Callable[[Bijector], Flow],
    train: Tensor,
    validation: Tensor,
    place: Path,
    *,
    steps: int | None,
    seconds: float | None,
    **settings: Any,
) -> tuple[str, Bijector, float]:
    """The map's name, the map, and the seconds that its choice has taken.

    A choice is kept in a file, so that a cell that was interrupted goes on behind the same map.

    Args:
        wanted: one of ``PREPROCESS``; ``"auto"`` trains the model behind each for a part of the
            steps or the seconds, and keeps the one of the higher validation log-likelihood.
        build: a map -> a new flow that ends in it.
        train: (N, D).
        validation: (N', D).
        place: the file of the choice.
        steps: of the whole training, or None.
        seconds: likewise, the choice included.
        settings: further keywords of ``fit``.

    """
    if wanted in MAPS:
        return wanted, MAPS[wanted](train), 0.0
    try:
        kept = json.loads(place.read_text())
        return kept["map"], MAPS[kept["map"]](train), float(kept["seconds"])
    except FileNotFoundError:
        pass
    few = 10**9 if steps is None else min(steps, max(LEAST, math.ceil(PART * steps)))
    started = time.perf_counter()
    choice = choose(
        build, train, validation, MAPS, steps=few, validate_every=few,
        seconds=None if seconds is None else PART * seconds, **settings,
    )  # fmt: skip
    took = time.perf_counter() - started
    found = {"map": choice.name, "seconds": took, "validation": choice.scores}
    write_whole(place, json.dumps(found) + "\n")
    return choice.name, choice.map, took
