"""Activations of the discrete flows' networks, with what a gradient written by hand needs."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["ACTIVATIONS", "Activation", "check_activation"]


class Activation(NamedTuple):
    """An activation a(h).

    Attributes:
        call: h -> a(h).
        over: the same, written over h where its gradient needs a(h) alone.
        in_place: the same, always written over h; outside of a graph.
        derivative: (h, a(h)) -> a'(h).

    """

    call: Callable[[Tensor], Tensor]
    over: Callable[[Tensor], Tensor]
    in_place: Callable[[Tensor], Tensor]
    derivative: Callable[[Tensor, Tensor], Tensor]


def _silu_derivative(h: Tensor, a: Tensor) -> Tensor:
    gate = torch.sigmoid(h)
    return gate + a * (1 - gate)


def _elu_over(h: Tensor) -> Tensor:
    return F.elu(h, inplace=True)


def _silu_over(h: Tensor) -> Tensor:
    return F.silu(h, inplace=True)


ACTIVATIONS: dict[str, Activation] = {
    "relu": Activation(torch.relu, torch.relu_, torch.relu_, lambda h, a: (h > 0).to(h.dtype)),
    "tanh": Activation(torch.tanh, torch.tanh_, torch.tanh_, lambda h, a: 1 - a * a),
    "elu": Activation(F.elu, _elu_over, _elu_over, lambda h, a: (a + 1).clamp(max=1)),
    "silu": Activation(F.silu, F.silu, _silu_over, _silu_derivative),
}


def check_activation(name: str) -> None:
    """Raise a ValueError unless the name is one of ``ACTIVATIONS``."""
    if name not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}; got {name!r}")
