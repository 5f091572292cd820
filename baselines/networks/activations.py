"""Activations of the discrete flows' networks, and their gradients written in place."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["FUSED_ACTIVATIONS", "Activation", "check_activation"]


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


def _relu_back(g: Tensor, h: Tensor, a: Tensor) -> Tensor:
    return torch.ops.aten.threshold_backward.grad_input(g, a, 0, grad_input=g)  # type: ignore[no-any-return]


def _tanh_back(g: Tensor, h: Tensor, a: Tensor) -> Tensor:
    return torch.ops.aten.tanh_backward.grad_input(g, a, grad_input=g)  # type: ignore[no-any-return]


def _elu(h: Tensor) -> Tensor:
    return F.elu(h, inplace=True)


def _elu_back(g: Tensor, h: Tensor, a: Tensor) -> Tensor:
    return g.mul_((a + 1).clamp_(max=1))


def _silu(h: Tensor) -> Tensor:
    return F.silu(h, inplace=True)


def _silu_back(g: Tensor, h: Tensor, a: Tensor) -> Tensor:
    gate = torch.sigmoid(h)
    return g.mul_(gate + a * (1 - gate))


FUSED_ACTIVATIONS: dict[str, Activation] = {
    "relu": Activation(torch.relu, torch.relu_, torch.relu_, _relu_back),
    "tanh": Activation(torch.tanh, torch.tanh_, torch.tanh_, _tanh_back),
    "elu": Activation(F.elu, _elu, _elu, _elu_back),
    "silu": Activation(F.silu, _silu, F.silu, _silu_back),
}


def check_activation(name: str) -> None:
    """Raise a ValueError unless the name is one of ``FUSED_ACTIVATIONS``."""
    if name not in FUSED_ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(FUSED_ACTIVATIONS)}; got {name!r}")
