"""Layers of one kind, one after the other: what most flows are."""

from __future__ import annotations

from collections.abc import Callable

from cflows import BatchNorm, Bijector, Chain

__all__ = ["stacked"]


def stacked(
    features: int, layers: int, build: Callable[[int], Bijector], *, batch_norm: bool = False
) -> Chain:
    """Layers from noise to data: ``build(k)`` for k = 0..layers - 1, a batch norm before each.

    Raises:
        ValueError: there is no layer.

    """
    if layers < 1:
        raise ValueError(f"layers must be at least 1, got {layers}")
    parts: list[Bijector] = []
    for k in range(layers):
        if batch_norm:
            parts.append(BatchNorm(features))
        parts.append(build(k))
    return Chain(*parts)
