"""What several processes tell each other; one process is a team too, for which nothing is sent."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

__all__ = [
    "ProcessError",
    "agree_on_steps",
    "device_of_group",
    "gathered",
    "largest",
    "leads",
    "mean",
    "moments",
    "own_seed",
    "processes",
    "rank",
    "share",
    "total",
    "whole_batches",
]

T = TypeVar("T")

_whole_batches = False


class ProcessError(RuntimeError):
    """A training that several processes cannot share, or that another of them has ended."""


def processes() -> int:
    """How many processes train together, 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The number of this process among them, from 0."""
    return dist.get_rank() if processes() > 1 else 0


def leads() -> bool:
    """Whether this process writes the files, shows the progress and calls the callbacks."""
    return rank() == 0


def gathered(value: T) -> list[T]:
    """What each process has for a value that can be pickled, by rank."""
    values = [value] * processes()
    if len(values) > 1:
        dist.all_gather_object(values, value)
    return values


def largest(*values: float) -> list[float]:
    """Each number's maximum over processes."""
    if processes() == 1:
        return list(values)
    numbers = torch.tensor(values, dtype=torch.float64, device=device_of_group())
    dist.all_reduce(numbers, dist.ReduceOp.MAX)
    return list(map(float, numbers))


def total(values: Tensor) -> Tensor:
    """Sum over processes, without gradient."""
    if processes() == 1:
        return values
    result = values.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(result)
    return result


def mean(values: Tensor) -> Tensor:
    """Mean over processes, without gradient."""
    return values if processes() == 1 else total(values) / processes()


def agree_on_steps(parts: Sequence[Any], solved: bool) -> bool:
    """Give all processes the most careful steps of any; whether every one's batch was solved."""
    if processes() == 1 or not parts:
        return solved
    failed, *steps = largest(not solved, *(part.steps or math.inf for part in parts))
    for part, count in zip(parts, steps, strict=True):
        part.steps = 0 if count == math.inf else int(count)
    return not failed


@contextmanager
def whole_batches(active: bool = True) -> Iterator[None]:
    """Within a block, ``moments`` are those of all processes' rows."""
    global _whole_batches
    before, _whole_batches = _whole_batches, active and processes() > 1
    try:
        yield
    finally:
        _whole_batches = before


def moments(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of the columns of (N, D), with gradient; see ``whole_batches``."""
    own_mean, own_variance = rows.mean(0), rows.var(0, correction=0)
    if not _whole_batches:
        return own_mean, own_variance
    # A sum of what is zero in all rows but one's own: every process's moments, side by side.
    is_own = torch.arange(processes(), device=rows.device) == rank()
    own = torch.stack([own_mean, own_variance])
    means, variances = _Total.apply(is_own[:, None, None] * own).unbind(1)  # type: ignore[no-untyped-call]
    centre = means.mean(0)
    return centre, (variances + (means - centre).square()).mean(0)


class _Total(torch.autograd.Function):
    """The sum over processes; the gradient is the sum of all their gradients."""

    @staticmethod
    def forward(ctx: object, values: Tensor) -> Tensor:
        return total(values)

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        summed: Tensor = _Total.apply(gradient)  # type: ignore[no-untyped-call]
        return summed


def device_of_group() -> torch.device:
    """Where numbers of the CPU meet: a group of NCCL alone has nothing but the GPU."""
    return torch.device("cuda" if dist.get_backend() == dist.Backend.NCCL else "cpu")


def share(rows: Tensor) -> Tensor:
    """This process's part of rows (N, ...): every W-th of them."""
    return rows[rank() :: processes()]


def own_seed(seed: int) -> int:
    """A seed for this process's random numbers; the first one's is the seed itself."""
    return seed if leads() else hash((seed, rank())) % 2**63
