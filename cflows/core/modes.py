"""Training and evaluation mode within a block, for flows that several threads may share."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

from torch import nn

__all__ = ["evaluating", "in_mode"]

_LOCK = threading.Lock()
_CLAIMS: WeakKeyDictionary[nn.Module, list[tuple[object, bool]]] = WeakKeyDictionary()
"""What open blocks want of a module, the oldest first; in front the mode to give back."""


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode within a block; every part has its own mode back afterwards.

    Blocks may nest and may overlap in several threads: the mode from before the first of them is
    back when the last one ends. A mode is of the module, not of the thread: who trains the same
    flow meanwhile finds it in evaluation mode while a block is open, so score a ``copy.deepcopy``
    of a flow in training. A call of ``train()`` within a block that changes
    the mode has the last word.

    Example:
        >>> from cflows import FFJORD
        >>> from cflows.core.modes import evaluating
        >>> flow = FFJORD(2)
        >>> with evaluating(flow):
        ...     flow.training
        False
        >>> flow.training
        True

    """
    with in_mode(module.modules(), training=False):
        yield


@contextmanager
def in_mode(parts: Iterable[nn.Module], *, training: bool) -> Iterator[None]:
    """The same for single modules and either mode; of blocks that overlap the newest rules."""
    claim, parts = object(), tuple(parts)
    try:
        with _LOCK:
            for part in parts:
                claims = _CLAIMS.setdefault(part, [(None, part.training)])
                if claims[-1][1] != part.training:  # by a call of train() since
                    claims[0] = (None, part.training)
                claims.append((claim, training))
                part.training = training
        yield
    finally:
        with _LOCK:
            for part in parts:
                _give_back(part, claim)


def _give_back(part: nn.Module, claim: object) -> None:
    claims = _CLAIMS.get(part, [])
    ruling = claims[-1][1] if claims else None
    claims[:] = [held for held in claims if held[0] is not claim]
    if claims and part.training == ruling:
        part.training = claims[-1][1]
    if len(claims) == 1:
        del _CLAIMS[part]
