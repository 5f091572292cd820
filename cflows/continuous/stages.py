"""What a solver asks of a field, and what it tells of a solve."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

__all__ = ["RightHandSide", "Slope", "SolveStats", "SolverError", "Stage"]

Slope = tuple[Tensor, Tensor | None]
"""dx/ds (N, D), and dq/ds (N, m) or None."""


class Stage(Protocol):
    """The right-hand side at one time, a function of the state (N, D)."""

    def __call__(self, x: Tensor, rated: bool = True) -> Slope:
        """The slope there; where ``rated`` is false, dq/ds is not asked for."""


RightHandSide = Callable[[Tensor], Iterable[Stage]]
"""Times (S,) -> S functions of the state (N, D).

A grid asks for all its times at once, so that what depends on time alone is computed in one go.
"""


class SolverError(RuntimeError):
    """A solve that did not reach its end; the message names the time, the work and the remedy."""


@dataclass
class SolveStats:
    """What a solve did.

    Attributes:
        nfe: evaluations of the right-hand side.
        nfe_backward: those of the adjoint's solve; backpropagation needs none.
        accepted: steps taken.
        rejected: steps tried and thrown away.
        error: the estimate of ``Lagged``, a scalar on the device; None for others.
        status: ``"ok"``, ``"adaptive"`` where ``Lagged`` gave up its grids, or why it stopped.

    Example:
        >>> import torch
        >>> from cflows import MLP, FixedGrid, ODEBijector
        >>> flow = ODEBijector(MLP(2), evaluation_solver=FixedGrid("rk4", steps=8)).eval()
        >>> _ = flow(torch.zeros(1, 2))
        >>> flow.stats.nfe, flow.stats.status
        (32, 'ok')

    """

    nfe: int = 0
    nfe_backward: int = 0
    accepted: int = 0
    rejected: int = 0
    error: Tensor | None = None
    status: str = "ok"
