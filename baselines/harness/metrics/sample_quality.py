"""How samples compare with data, where no density is asked: four distances, each with its null.

A distance means something beside what it is for two samples of the data themselves. So the test
rows are halved: model draws stand against the first half, and the second half stands against it as
the null, as many rows each way. All is in standard deviations of the test rows, column by column.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from cflows import Flow
from cflows.objectives.ipm import median_distance, mmd, sliced_wasserstein

__all__ = ["NAMES", "c2st", "compare", "evaluate", "ks"]

NAMES = ("sw", "mmd", "ks", "c2st")
MOST_ROWS = 2000
MMD_ROWS = 1000  # the kernels cost the square of it
LEAST_ROWS = 20
PROJECTIONS = 128
FACTORS = (0.5, 1.0, 2.0)
RIDGES, SQUARED = 64, 128  # ridge functions; columns up to which squares stand beside them
RIDGE, NEWTON_STEPS = 1.0, 8
FAR = 1e4  # where a draw that is not finite is taken to lie, in standard deviations


@torch.no_grad()
def evaluate(flow: Flow, test: Tensor, seed: int = 0) -> dict[str, Any]:
    """Compare draws of a flow with test rows; the same seed gives the same figures.

    Args:
        flow: in evaluation mode.
        test: (N, D). At most 2000 rows are drawn and compared, half of N if that is fewer.
        seed: of the halves, the draws, the directions and the classifier, within this call only.

    Returns:
        the entries of result.json: ``sw``, ``mmd``, ``ks`` and ``c2st``, see ``compare``, and their
        nulls under ``*_null``. Empty for fewer than 40 rows, which tell nothing.

    """
    size = min(MOST_ROWS, len(test) // 2)
    if size < LEAST_ROWS:
        return {}
    devices = [test.device] if test.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        order = torch.randperm(len(test)).to(test.device)
        first, second = test[order[:size]].double(), test[order[-size:]].double()
        drawn = flow.sample(size).double()
    loc, scale = test.double().mean(0), test.double().std(0)
    scale = torch.where(scale > 0, scale, 1.0)
    first, second, drawn = ((part - loc).div(scale).cpu() for part in (first, second, drawn))
    drawn = drawn.nan_to_num(nan=FAR, posinf=FAR, neginf=-FAR).clamp(-FAR, FAR)
    null = compare(second, first, seed)
    return compare(drawn, first, seed) | {f"{name}_null": null[name] for name in NAMES}


def compare(x: Tensor, y: Tensor, seed: int = 0) -> dict[str, float]:
    """Four distances of two samples of N rows each, (N, D) and (N, D).

    ``sw``: sliced Wasserstein distance of order 2 over 128 directions, in the rows' units; above
    zero for samples of one law, by the noise of their order statistics. ``mmd``: the unbiased
    estimate of MMD², about zero for one law, kernel widths from the median distance in y.
    ``ks``: the Kolmogorov-Smirnov statistic of each column, averaged. ``c2st``: the held-out
    accuracy of a classifier that tells x from y, about one half for one law.

    Raises:
        ValueError: the samples are not of one shape.

    """
    if x.shape != y.shape:
        raise ValueError(f"samples must be of one shape, got {tuple(x.shape)}, {tuple(y.shape)}")
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(PROJECTIONS, x.shape[1], generator=generator, dtype=x.dtype)
    directions /= directions.norm(dim=1, keepdim=True)
    few = y[:MMD_ROWS]
    widths = median_distance(few) * few.new_tensor(FACTORS)
    return {
        "sw": math.sqrt(float(sliced_wasserstein(x, y, directions))),
        "mmd": float(mmd(x[:MMD_ROWS], few, widths)),
        "ks": ks(x, y),
        "c2st": c2st(x, y, seed),
    }


def ks(x: Tensor, y: Tensor) -> float:
    """sup |F_x - F_y| of each column, averaged, for (M, D) and (N, D)."""
    total = 0.0
    for one, other in zip(x.T.contiguous(), y.T.contiguous(), strict=True):
        one, other = one.sort().values, other.sort().values
        places = torch.cat([one, other])
        below = torch.searchsorted(one, places, right=True) / len(one)
        gap = below - torch.searchsorted(other, places, right=True) / len(other)
        total += float(gap.abs().max())
    return total / x.shape[1]


def c2st(x: Tensor, y: Tensor, seed: int = 0) -> float:
    """Held-out accuracy of a classifier that tells x from y (Lopez-Paz and Oquab 2017).

    The classifier is a logistic regression on the columns, their squares and random ridge functions
    tanh(a·x + b): convex, so that its training ends in the same place on any machine. Each half of
    the rows is judged by one that was trained on the other half, so that all 2N rows count: for one
    law the accuracy is 1/2 with a standard deviation of about 1 / √(8N).

    Args:
        x: (N, D), near standardised.
        y: (N, D).
        seed: of the halves and the ridge functions.

    """
    generator = torch.Generator().manual_seed(seed)
    # What lies far off is told by any classifier, and its square must not hide all others.
    rows = torch.cat([x, y]).double().clamp(-10, 10)
    target = torch.cat([torch.ones(len(x)), torch.zeros(len(y))]).double()
    inner = torch.randn(rows.shape[1], RIDGES, generator=generator, dtype=rows.dtype)
    inner *= 2 / math.sqrt(rows.shape[1])
    shift = 2 * torch.randn(RIDGES, generator=generator, dtype=rows.dtype)
    seen = [rows, torch.tanh(rows @ inner + shift), torch.ones(len(rows), 1, dtype=rows.dtype)]
    if rows.shape[1] <= SQUARED:
        seen.append(rows.square() - 1)
    features = torch.cat(seen, dim=1)
    # As many of each sample in each half: an odd one out would favour a constant answer.
    halves: list[list[Tensor]] = [[], []]
    for first, count in ((0, len(x)), (len(x), len(y))):
        order = first + torch.randperm(count, generator=generator)
        for half, part in zip(halves, order.chunk(2), strict=True):
            half.append(part)
    one, other = (torch.cat(half) for half in halves)
    right = 0.0
    for train, held_out in ((one, other), (other, one)):
        weights = _logistic(features[train], target[train])
        guess = features[held_out] @ weights > 0
        right += float((guess == target[held_out].bool()).sum())
    return right / len(rows)


def _logistic(features: Tensor, target: Tensor) -> Tensor:
    """Weights of a logistic regression with a ridge, by Newton's steps: (M, F), (M,) -> (F,)."""
    weights = features.new_zeros(features.shape[1])
    ridge = RIDGE * torch.eye(len(weights), dtype=features.dtype)
    for _ in range(NEWTON_STEPS):
        p = torch.sigmoid(features @ weights)
        gradient = features.mT @ (p - target) + RIDGE * weights
        hessian = features.mT @ (features * (p * (1 - p))[:, None]) + ridge
        weights = weights - torch.linalg.solve(hessian, gradient)
    return weights
