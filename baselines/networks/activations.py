"""Activations of the discrete flows' networks, and their gradients written in place."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["FUSED_ACTIVATIONS", "Activation"]


class Activation(NamedTuple):
    """An activation a(h).

    Attributes:
        call: h -> a(h).
        in_place: the same, always written over h; outside of a graph.
        written: the same, written over h unless its gradient needs h.
        pull_back: (g, h, a(h)) -> g a'(h), written over g; outside of a graph. h is not read where
            ``written`` takes its place.

    """

    call: Callable[[Tensor], Tensor]
    in_place: Callable[[Tensor], Tensor]
    written: Callable[[Tensor], Tensor]
    pull_back: Callable[[Tensor, Tensor, Tensor], Tensor]


def _silu_back(g: Tensor, h: Tensor, a: Tensor) -> Tensor:
    gate = torch.sigmoid(h)
    return g.mul_(gate + a * (1 - gate))


_elu, _silu, _aten = partial(F.elu, inplace=True), partial(F.silu, inplace=True), torch.ops.aten
FUSED_ACTIVATIONS: dict[str, Activation] = {
    "relu": Activation(
        torch.relu,
        torch.relu_,
        torch.relu_,
        lambda g, h, a: _aten.threshold_backward.grad_input(g, a, 0, grad_input=g),
    ),
    "tanh": Activation(
        torch.tanh,
        torch.tanh_,
        torch.tanh_,
        lambda g, h, a: _aten.tanh_backward.grad_input(g, a, grad_input=g),
    ),
    "elu": Activation(F.elu, _elu, _elu, lambda g, h, a: g.mul_((a + 1).clamp_(max=1))),
    "silu": Activation(F.silu, _silu, F.silu, _silu_back),
}
