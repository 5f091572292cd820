"""Training and evaluation mode within a block, for flows that several threads may share."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

from torch import nn

__all__ = ["evaluating", "in_mode"]

_LOCK = threading.Lock()
_CLAIMS: WeakKeyDictionary[nn.Module, dict[str, list[tuple[object, object]]]] = WeakKeyDictionary()
"""What open blocks want of a module's attributes, the oldest first; in front what to give back."""


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode within a block; every part has its own mode back afterwards.

    Blocks may nest and may overlap in several threads: the mode from before the first of them is
    back when the last one ends. A mode is of the module, not of the thread: who trains the same
    flow meanwhile finds it in evaluation mode while a block is open, so score a ``copy.deepcopy``
    of a flow in training. A call of ``train()`` within a block that changes
    the mode has the last word.
    """
    with in_mode(module.modules(), training=False):
        yield


@contextmanager
def in_mode(parts: Iterable[nn.Module], *, training: bool) -> Iterator[None]:
    """The same for single modules and either mode; of blocks that overlap the newest rules."""
    with claimed(parts, "training", training):
        yield


@contextmanager
def claimed(parts: Iterable[nn.Module], name: str, value: object) -> Iterator[None]:
    """Within a block the modules' attribute has a value, as ``evaluating`` has it of the mode."""
    claim, parts = object(), tuple(parts)
    try:
        with _LOCK:
            for part in parts:
                now = getattr(part, name)
                claims = _CLAIMS.setdefault(part, {}).setdefault(name, [(None, now)])
                if claims[-1][1] != now:  # by who has set it since
                    claims[0] = (None, now)
                claims.append((claim, value))
                setattr(part, name, value)
        yield
    finally:
        with _LOCK:
            for part in parts:
                _give_back(part, name, claim)


def _give_back(part: nn.Module, name: str, claim: object) -> None:
    claims = _CLAIMS.get(part, {}).get(name, [])
    ruling = claims[-1][1] if claims else None
    claims[:] = [held for held in claims if held[0] is not claim]
    if claims and getattr(part, name) == ruling:
        setattr(part, name, claims[-1][1])
    if len(claims) == 1:
        del _CLAIMS[part][name]
