"""Paths of a flow that has continuous parts, at several times."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from cflows.core.bijector import Bijector, Chain

__all__ = ["Solved", "flattened", "through", "trajectory"]


@runtime_checkable
class Solved(Protocol):
    """A part with a path of its own, such as an ``ODEBijector``."""

    def trajectory(
        self, start: Tensor, times: Sequence[float], context: Tensor | None = None
    ) -> Tensor:
        """The states at several times, 0 the noise and 1 the data: (len(times), *B, D)."""


@torch.no_grad()
def trajectory(
    bijector: Bijector, start: Tensor, times: Sequence[float], context: Tensor | None = None
) -> Tensor:
    """The states at several times; ``Flow.trajectory`` says what the times mean."""
    upwards = len(times) > 1 and times[0] < times[-1]
    begin, end = (0.0, 1.0) if upwards else (1.0, 0.0)
    ordered = all((a < b) == upwards and a != b for a, b in pairwise(times))
    if len(times) < 2 or times[0] != begin or not ordered or not 0 <= times[-1] <= 1:
        raise ValueError(f"times must run from 0 upwards or from 1 downwards, got {list(times)}")
    parts = list(flattened(bijector))
    solved = [index for index, part in enumerate(parts) if isinstance(part, Solved)]
    if not solved:
        raise TypeError("this flow has no continuous part: it has no path to show")
    head, middle = parts[: solved[0]], parts[solved[0] : solved[-1] + 1]
    tail = parts[solved[-1] + 1 :]
    state, context = bijector.broadcast(start, context)
    state = through(head if upwards else tail, state, context, upwards)
    states, waiting, passed = [state], list(times[1:]), 0
    for part in middle if upwards else reversed(middle):
        if not isinstance(part, Solved):
            state = through([part], state, context, upwards)
            continue
        # This part runs over [passed, passed + 1] / K, upwards or downwards alike.
        local = [abs(t - begin) * len(solved) - passed for t in waiting]
        local = [t for t in local if t <= 1 + 1e-9]
        stops = [t if upwards else 1 - t for t in local if t < 1 - 1e-9]
        path = part.trajectory(state, [begin, *stops, end], context)
        states += list(path[1 : 1 + len(local)])
        state, passed, waiting = path[-1], passed + 1, waiting[len(local) :]
    return torch.stack([through(tail, state, context, True) for state in states])


def through(
    parts: Iterable[Bijector], state: Tensor, context: Tensor | None, upwards: bool
) -> Tensor:
    """A state taken through maps that are listed from noise to data, or back through them."""
    for part in parts if upwards else reversed(list(parts)):
        own = context if part.context_features else None
        state = part.forward(state, own) if upwards else part.inverse(state, own)
    return state


def flattened(bijector: Bijector) -> Iterator[Bijector]:
    """The parts of nested chains, from noise to data."""
    if isinstance(bijector, Chain):
        for part in bijector.parts:
            assert isinstance(part, Bijector)
            yield from flattened(part)
    else:
        yield bijector
