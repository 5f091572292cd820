"""What an objective is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

__all__ = ["AnyBatch", "Batch", "LogDensity", "Objective", "WeightedBatch", "weighted_mean"]

Batch = tuple[Tensor, Tensor | None]
"""Rows x (N, D), and context (N, C) or None."""
AnyBatch = tuple[Tensor | None, Tensor | None]
"""The same where rows may be missing, for objectives that need no data."""
WeightedBatch = tuple[Tensor, Tensor | None, Tensor | None]
"""Rows x (N, D), context (N, C) or None, and weights (N,) of mean one or None."""
LogDensity = Callable[..., Tensor]
"""x (*B, D) -> (*B,), differentiable; with a context it is called with (x, context)."""


class Objective(nn.Module):
    """A loss to minimise: ``forward(flow, batch)`` gives a scalar.

    One that can weigh rows has a further argument, ``forward(flow, batch, weights=None)``: weights
    (N,) whose mean over all training rows is one, so that Σ_i w_i loss_i / N over a batch of N is
    unbiased. ``fit`` gives it where it was given weights, and refuses these where it is not there.

    Attributes:
        needs_data: whether the batch must hold rows; if not, its x may be None.
        rows: where no data are needed, how many draws a step takes; else None.
        additive: whether the loss is a mean over rows or draws, so that several processes can share
            it; what does not say so trains in one.
        usual: settings of ``fit`` where the caller gives none, by name: of ``learning_rate``,
            ``optimizer``, ``warmup``, ``ema`` and ``batch_size``.

    """

    needs_data: bool = True
    additive: bool = False
    rows: int | None = None
    usual: ClassVar[Mapping[str, Any]] = {}


def weighted_mean(values: Tensor, weights: Tensor | None) -> Tensor:
    """Σ_i w_i v_i / N of values (N,): their mean without weights (N,), and with equal ones."""
    return values.mean() if weights is None else (values * weights).mean()
