"""Batch norm's stored statistics, taken over all training rows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .batches import Rows
from .bijector import Bijector, Chain
from .flow import Flow, evaluating
from .normalization import BatchNorm

__all__ = ["preserved", "refresh"]

BATCH = 2000


@torch.no_grad()
def refresh(flow: Flow, rows: Rows) -> None:
    """Store in every batch norm the mean and variance of all rows at its place.

    A layer's statistics depend on those of the layers nearer the data, so the layers are taken
    from the data side to the base side, each over all rows (Papamakarios et al. 2017, appendix B).
    In memory the rows walk along, one pass of ``inverse`` in all; streamed rows start from the
    data for every batch norm. Draws no random numbers: the flow is in evaluation mode.

    Reached are the batch norms of a bijector that is one, or a Chain, nested as deep as one likes;
    one inside of anything else, such as ``Inverse``, keeps its running averages.

    Args:
        flow: its batch norms' buffers are changed, nothing else.
        rows: all training rows.

    """
    parts = _from_data_to_base(flow.bijector)
    last = max((k for k, part in enumerate(parts) if isinstance(part, BatchNorm)), default=-1)
    if last < 0:
        return
    with evaluating(flow):
        walking = None if rows.streamed else list(rows.batches(BATCH))
        passed: list[Bijector] = []
        for part in parts[: last + 1]:
            if isinstance(part, BatchNorm):
                batches = rows.batches(BATCH) if walking is None else iter(walking)
                done = passed if walking is None else []
                _store(part, (_through(done, x, context) for x, context in batches))
            if walking is None:
                passed.append(part)
            elif part is not parts[last]:
                walking = [(_through([part], x, context), context) for x, context in walking]


@contextmanager
def preserved(flow: Flow) -> Iterator[None]:
    """Put every batch norm's running averages back after a block.

    Where training normalises by them, it then does not depend on when the flow was validated.
    """
    norms = [part for part in flow.modules() if isinstance(part, BatchNorm)]
    before = [[buffer.clone() for buffer in norm.buffers()] for norm in norms]
    try:
        yield
    finally:
        for norm, buffers in zip(norms, before, strict=True):
            for buffer, value in zip(norm.buffers(), buffers, strict=True):
                buffer.copy_(value)


def _from_data_to_base(bijector: nn.Module) -> list[Bijector]:
    """The parts of a Chain and of the Chains in it."""
    if not isinstance(bijector, Chain):
        assert isinstance(bijector, Bijector)
        return [bijector]
    return [flat for part in reversed(bijector.parts) for flat in _from_data_to_base(part)]


def _through(parts: list[Bijector], x: Tensor, context: Tensor | None) -> Tensor:
    for part in parts:
        x = part.inverse(x, context if part.context_features else None)
    return x


def _store(norm: BatchNorm, batches: Iterator[Tensor]) -> None:
    """Mean and variance over batches, merged in float64 (Chan, Golub and LeVeque 1983)."""
    count = 0
    mean = squares = torch.zeros((), dtype=torch.float64, device=norm.mean.device)
    for x in batches:
        part = x.double()
        part_mean = part.mean(0)
        total = count + len(part)
        shift = part_mean - mean
        squares = (
            squares + (part - part_mean).square().sum(0) + shift**2 * (count * len(part) / total)
        )
        mean = mean + shift * (len(part) / total)
        count = total
    norm.mean.copy_(mean)
    norm.variance.copy_(squares / count)
    norm.batches.fill_(1)
