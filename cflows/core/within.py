"""What lies outside of a map's range: refused, or set aside where its density is zero."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from cflows.core.bijector import may_read

__all__ = ["setting_aside", "within"]

_NOTED = threading.local()


@contextmanager
def setting_aside() -> Iterator[list[Tensor]]:
    """Within a block ``within`` refuses nothing: it appends which rows lie outside, (*B,) each."""
    before, _NOTED.rows = getattr(_NOTED, "rows", None), []
    try:
        yield _NOTED.rows
    finally:
        _NOTED.rows = before


def within(
    x: Tensor, inside: Tensor, middle: Tensor | float, message: str, *, check: bool
) -> Tensor:
    """x, whose entries must be inside of a map's range.

    What lies outside is refused where ``check`` asks for it and numbers may be read, and left as it
    is elsewhere. In a block of ``setting_aside`` it is noted by row, and ``middle`` takes its
    place, so that neither NaN nor a gradient comes of it.

    Args:
        x: (*B, D).
        inside: which entries are, (*B, D).
        middle: a point inside, broadcastable to x.
        message: of the ValueError; ``{value:g}`` in it is the first entry outside.
        check: whether to look; asking costs a host synchronisation.

    """
    # First, since the compiler does not see through what a thread keeps.
    if torch.compiler.is_compiling():
        return x
    noted = getattr(_NOTED, "rows", None)
    if noted is not None:
        noted.append(~inside.all(-1))
        return torch.where(inside, x, middle)
    if check and may_read(x) and not bool(inside.all()):
        raise ValueError(message.format(value=x[~inside][0].item()))
    return x
