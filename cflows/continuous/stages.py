"""A field at the stages of a solve: its velocity, and the rates that are integrated beside it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from cflows.continuous.divergence import is_perceptron, linearize
from cflows.continuous.foreign import ForeignField
from cflows.continuous.penalties import rates
from cflows.continuous.runge_kutta import Slope

__all__ = ["at_stages", "slope"]


def at_stages(
    field: nn.Module, times: Tensor, context: Tensor | None, end_time: Tensor
) -> Iterator[Any]:
    """T f(sT, x, context) at each s of ``times`` (S,): S functions of the states x (N, D) alone."""
    if is_perceptron(field):
        return field.at(times * end_time, context, scale=end_time)
    return (ForeignField(field, t, context, end_time) for t in (times * end_time).unbind())


def slope(
    field: Any,
    x: Tensor,
    traced: bool,
    probes: Tensor | None,
    penalties: tuple[str, ...],
    spare: Tensor,
    end_time: Tensor,
) -> Slope:
    """Velocity (N, D) and rates (N, m) in the state's dtype; m = 0 gives None."""
    if not traced:
        velocity: Tensor = field(x)
        return velocity.to(x.dtype), None
    local = linearize(field, x)
    found = [local.trace(probes)]
    if penalties:
        found += rates(penalties, local, probes, spare, end_time)
    rate = found[0].unsqueeze(1) if len(found) == 1 else torch.stack(found, dim=1)
    return local.finished(local.value.to(x.dtype)), local.finished(rate.to(x.dtype))
