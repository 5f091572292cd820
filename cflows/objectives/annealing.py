r"""Rows of a density that can only be evaluated, by annealing a cloud of draws towards it.

A flow that is trained on its own draws sees what it draws: a mode that it has left is gone, and
does not come back. Annealing begins wide and keeps many particles, so it finds modes without a
flow; a flow that is trained on its rows, by matching or by likelihood, then covers them, and its
own weighted draws say how well (``importance``).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from cflows.core.flow import Flow
from cflows.core.modes import evaluating

__all__ = ["Annealed", "annealed"]

LEAPS = 5  # leapfrog steps of a move
ACCEPTED = 0.8  # of the moves, what the step size aims at
LEAST = 1e-30  # part of what is left of the way
HALVINGS = 40  # of the search for the next temperature


@dataclass(frozen=True)
class Annealed:
    """A cloud that has reached its density.

    Attributes:
        x: rows of equal weight, (N, D); neighbours may descend from one particle.
        log_z: an estimate of the log-normaliser; exp of it is unbiased but for the adaptation.
        temperatures: how many there were.
        accepted: share of the moves at the last one.

    Example:
        >>> import torch
        >>> from cflows import Affine, Flow, annealed
        >>> start = Flow(Affine([0.0], [5.0]))
        >>> torch.manual_seed(0)  # doctest: +ELLIPSIS
        <torch._C.Generator object at ...>
        >>> result = annealed(lambda x: -0.5 * (x - 3).square().sum(-1), start, 1000)
        >>> round(float(result.x.mean())), round(result.log_z, 1)  # log √(2π) = .92
        (3, 0.9)

    """

    x: Tensor
    log_z: float
    temperatures: int
    accepted: float


def annealed(
    log_density: Callable[[Tensor], Tensor],
    start: Flow,
    n: int = 4000,
    *,
    moves: int = 10,
    kept: float = 0.9,
    most: int = 500,
) -> Annealed:
    r"""Sequential Monte Carlo from a start to a density (Del Moral, Doucet and Jasra 2006).

    Over log p_β = (1 - β) log q + β log p̃, with β from 0 to 1. Each β is the largest at which the
    incremental weights keep an effective sample size of ``kept`` N; the particles are resampled by
    these weights, systematically, and moved by Hamiltonian Monte Carlo (Neal 2011), whose steps are
    in the cloud's standard deviations, column by column, and adapted to an acceptance of .8.

    Args:
        log_density: x (N, D) -> log p̃(x) (N,), differentiable; -inf where it is zero.
        start: q, which should cover the density: a normal behind an ``Affine``, or a trained flow.
        n: particles.
        moves: of each particle at each β.
        kept: between 0 and 1; nearer to 1 there are more temperatures.
        most: temperatures, after which it gives up.

    Returns:
        the particles at β = 1, and an estimate of log Z.

    Raises:
        ValueError: numbers out of range; a log-density of another shape, that is not a number or
            +inf; no particle where the density is positive; or too many temperatures.

    Example:
        >>> import torch
        >>> from cflows import Affine, Flow, annealed
        >>> wide = Flow(Affine([0.0, 0.0], [9.0, 9.0]))
        >>> annealed(lambda x: -0.5 * x.square().sum(-1), wide, 200, moves=2).x.shape
        torch.Size([200, 2])

    """
    if n < 2 or moves < 1 or not 0 < kept < 1:
        raise ValueError(
            f"n must be at least 2, moves at least 1 and kept in (0, 1), got {n}, {moves}, {kept}"
        )

    with evaluating(start):
        return _annealed(log_density, start, n, moves, kept, most)


def _annealed(
    log_density: Callable[[Tensor], Tensor],
    start: Flow,
    n: int,
    moves: int,
    kept: float,
    most: int,
) -> Annealed:
    def both(x: Tensor) -> tuple[Tensor, Tensor]:
        log_p = log_density(x)
        if log_p.shape != x.shape[:1]:
            raise ValueError(
                f"the log-density must have shape ({len(x)},) for rows {tuple(x.shape)}, got "
                f"{tuple(log_p.shape)}"
            )
        return start.log_prob(x), log_p

    with torch.no_grad():
        x = start.sample(n)
        log_q, log_p = both(x)
    beta, log_z, size, accepted, count = 0.0, 0.0, 0.2, 0.0, 0
    while beta < 1:
        if count == most:
            raise ValueError(
                f"after {most} temperatures β is {beta:.3g}: take a start that covers the density"
            )
        if not bool((log_p < math.inf).all()):
            raise ValueError(
                "the log-density of a particle is not a number, or +inf: look at its formula"
            )
        if not bool((log_p > -math.inf).any()):
            raise ValueError("the density is zero at all particles: take a wider start")
        count += 1
        step = _step(log_p - log_q, 1 - beta, kept)
        log_w = (step * (log_p - log_q)).double()
        log_z += float(log_w.logsumexp(0)) - math.log(n)
        taken = _systematic(log_w)
        x, log_q, log_p = x[taken], log_q[taken], log_p[taken]
        beta = 1.0 if step >= 1 - beta else beta + step
        scale = x.std(0).clamp(min=1e-6)
        for _ in range(moves):
            x, log_q, log_p, accepted = _moved(both, beta, x, log_q, log_p, size * scale)
            size *= math.exp(0.2 * (accepted - ACCEPTED))
    return Annealed(x, log_z, count, accepted)


def _step(log_ratio: Tensor, left: float, kept: float) -> float:
    """The largest part of the way at which the weights' effective sample size is kept N.

    Of the rows where the density is positive: the others weigh nothing however small the step.
    """

    def share(step: float) -> float:
        log_w = (step * log_ratio).double()
        return math.exp(2 * float(log_w.logsumexp(0)) - float((2 * log_w).logsumexp(0)))

    wanted = kept * int((log_ratio > -math.inf).sum())
    if share(left) >= wanted:
        return left
    low, high = LEAST * left, left
    for _ in range(HALVINGS):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if share(middle) >= wanted else (low, middle)
    return low


def _systematic(log_weights: Tensor) -> Tensor:
    """Indices of N draws by their weights, at equal distances on their cumulative sum."""
    n = len(log_weights)
    sums = log_weights.softmax(0).cumsum(0)
    places = torch.arange(n, dtype=sums.dtype, device=sums.device) + torch.rand_like(sums[:1])
    return torch.searchsorted(sums, places / n).clamp(max=n - 1)


def _moved(
    both: Callable[[Tensor], tuple[Tensor, Tensor]],
    beta: float,
    x: Tensor,
    log_q: Tensor,
    log_p: Tensor,
    step: Tensor,
) -> tuple[Tensor, Tensor, Tensor, float]:
    """One Hamiltonian move of each particle, in units of ``step`` (D,), and how many took it."""

    def force(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            q, p = both(x)
            (gradient,) = torch.autograd.grad(((1 - beta) * q + beta * p).sum(), x)
        return gradient.nan_to_num(), q.detach(), p.detach()

    momentum = torch.randn_like(x)
    before = (1 - beta) * log_q + beta * log_p - 0.5 * momentum.square().sum(-1)
    new, (gradient, q, p) = x, force(x)
    velocity = momentum + 0.5 * step * gradient
    lost = torch.zeros_like(log_q, dtype=torch.bool)
    for leap in range(LEAPS):
        new = new + step * velocity
        lost = lost | ~new.isfinite().all(-1)
        new = torch.where(lost.unsqueeze(-1), x, new)
        gradient, q, p = force(new)
        velocity = velocity + (1.0 if leap < LEAPS - 1 else 0.5) * step * gradient
    after = (1 - beta) * q + beta * p - 0.5 * velocity.square().sum(-1)
    odds = (after - before).nan_to_num(nan=-math.inf).masked_fill(lost, -math.inf)
    taken = odds > torch.rand_like(odds).log()
    return (
        torch.where(taken.unsqueeze(-1), new, x),
        torch.where(taken, q, log_q),
        torch.where(taken, p, log_p),
        float(odds.clamp(max=0).exp().mean()),
    )
