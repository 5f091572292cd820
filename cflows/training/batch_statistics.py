"""What normalisations learn from rows beside training: from all of them, or the first batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import reduce

import torch
from torch import Tensor, nn

from cflows.bijectors.normalization import ActNorm, BatchNorm
from cflows.core.bijector import Bijector, Chain
from cflows.core.collectives import gathered
from cflows.core.flow import Flow
from cflows.core.modes import evaluating
from cflows.objectives import WeightedBatch
from cflows.training.rows import Rows

__all__ = ["preserved", "refresh", "start_act_norms"]

BATCH = 2000

Moments = tuple[int, Tensor, Tensor]
"""Count, mean and sum of squares about it."""


@torch.no_grad()
def start_act_norms(flow: Flow, objective: nn.Module, batch: WeightedBatch, seed: int) -> None:
    """Initialise every ``ActNorm`` as training on this batch would; change nothing else."""
    parts = [part for part in flow.modules() if isinstance(part, ActNorm)]
    if all(bool(part.initialised) for part in parts):
        return
    cuda = [batch[0].device] if batch[0].device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.manual_seed(seed)
        twin = deepcopy(flow)
        objective(twin, batch[:2])
    for part, started in zip(flow.modules(), twin.modules(), strict=True):
        if isinstance(part, ActNorm):
            part.load_state_dict(started.state_dict())


@torch.no_grad()
def refresh(flow: Flow, rows: Rows) -> None:
    """Store in every batch norm the mean and variance of all rows at its place.

    A layer's statistics depend on those of the layers nearer the data, so the layers are taken
    from the data side to the base side, each over all rows (Papamakarios et al. 2017, appendix B).
    In memory the rows walk along, one pass of ``inverse`` in all; streamed rows start from the
    data for every batch norm. Draws no random numbers: the flow is in evaluation mode. Several
    processes take a part of the rows each. Each row counts once, whatever its weight, as it does
    in training's batches (others stand in for rows of weight zero): a layer's coordinates are no
    part of what is fitted.

    Reached are the batch norms of a bijector that is one, or a Chain, nested as deep as one likes;
    one inside of anything else, such as ``Inverse``, keeps its running averages.
    """
    parts = _from_data_to_base(flow.bijector)
    last = max((k for k, part in enumerate(parts) if isinstance(part, BatchNorm)), default=-1)
    if last < 0:
        return
    with evaluating(flow):
        walking = None if rows.streamed else [batch[:2] for batch in rows.batches(BATCH)]
        passed: list[Bijector] = []
        for part in parts[: last + 1]:
            if isinstance(part, BatchNorm):
                batches = walking or (batch[:2] for batch in rows.batches(BATCH))
                _store(part, (_through(passed, x, context) for x, context in batches))
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
    states = [deepcopy(norm.state_dict()) for norm in norms]
    try:
        yield
    finally:
        for norm, state in zip(norms, states, strict=True):
            norm.load_state_dict(state)


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
    """Mean and variance over the batches of all processes."""
    nothing = torch.zeros(norm.features, dtype=torch.float64, device=norm.mean.device)
    batch_moments = (_moments(x.double()) for x in batches)
    count, mean, squares = reduce(_merged, batch_moments, (0, nothing, nothing))
    # By the CPU: a GPU's tensor would be unpickled on a GPU of the same number.
    count, mean, squares = reduce(_merged, gathered((count, mean.cpu(), squares.cpu())))
    norm.mean.copy_(mean)
    norm.variance.copy_(squares / count)
    norm.batches.fill_(1)


def _moments(x: Tensor) -> Moments:
    mean = x.mean(0)
    return len(x), mean, (x - mean).square().sum(0)


def _merged(a: Moments, b: Moments) -> Moments:
    """Those of both samples (Chan, Golub and LeVeque 1983)."""
    total = a[0] + b[0]
    shift, part = b[1] - a[1], b[0] / max(total, 1)
    return total, a[1] + shift * part, a[2] + b[2] + shift**2 * (a[0] * part)
