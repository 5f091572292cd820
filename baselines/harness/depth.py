"""The third comparison: what depth buys.

Depth is not one quantity. A discrete flow is deeper by layers, each one pass of a network; a
continuous flow by blocks, each one field and one solve, of as many evaluations as its dynamics ask
for. So a depth is always named with its unit, and stands beside the evaluations that it cost.
"""

from __future__ import annotations

from collections.abc import Sequence

from .models import Model, ModelError

__all__ = ["settings"]


def settings(model: Model, asked: Sequence[int] | None, *, deepest_only: bool = False) -> list[int]:
    """Return the depths at which a model is run, ascending.

    Args:
        model: the model.
        asked: what the user asked for, of every model alike; None for the model's own.
        deepest_only: whether one, the largest, will do.

    Raises:
        ModelError: a depth below 1.

    """
    depths = sorted(set(asked if asked is not None else model.depths))
    if not depths or depths[0] < 1:
        raise ModelError(f"depths must be whole numbers of at least 1, got {list(asked or ())}")
    return depths[-1:] if deepest_only else depths
