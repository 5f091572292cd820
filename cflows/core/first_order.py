"""Gradients that are computed without a graph, and refuse to be differentiated again.

torch's ``once_differentiable`` hangs its refusal on leaves of its own, which the engine never
visits when only some inputs are asked for: a Hessian then comes back as zeros, and a penalty's
gradient as None. Here the refusing node lies between the gradient and all that it was computed
from, so that every way through it ends in the error.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

__all__ = ["Context", "first_order", "first_order_only", "refused"]

Gradients: TypeAlias = Tensor | tuple[Tensor | None, ...] | None
Backward: TypeAlias = Callable[..., Gradients]


def first_order_only(message: str) -> Callable[[Backward], Backward]:
    """Decorate a ``backward`` that works without a graph: a second derivative is a RuntimeError.

    Every input that the gradient depends on must be among the tensors saved for backward.
    """

    def decorate(backward: Backward) -> Backward:
        @functools.wraps(backward)
        def wrapped(ctx: Context, *gradients: Tensor) -> Gradients:
            with torch.no_grad(), torch.autocast(gradients[0].device.type, enabled=False):
                result = backward(ctx, *gradients)
            if not torch.is_grad_enabled():
                return result
            sources = [v for v in (*ctx.saved_tensors, *gradients) if v is not None]
            several = result if isinstance(result, tuple) else (result,)
            refusing = iter(refused([v for v in several if v is not None], sources, message))
            again = tuple(None if v is None else next(refusing) for v in several)
            return again if isinstance(result, tuple) else again[0]

        return wrapped

    return decorate


def first_order(value: Tensor, message: str) -> Tensor:
    """The value, with a gradient that cannot be differentiated again."""
    if not value.requires_grad:
        return value
    passed: Tensor = _Passed.apply(value, message)  # type: ignore[no-untyped-call]
    return passed


def refused(values: Sequence[Tensor], sources: Iterable[Tensor], message: str) -> list[Tensor]:
    """The values, computed without a graph, and an error for whoever differentiates in a source."""
    return list(_Refuse.apply(message, len(values), *values, *sources))  # type: ignore[no-untyped-call]


class Context(Protocol):
    """What a pass of a ``torch.autograd.Function`` leaves for its gradient."""

    saved_tensors: tuple[Tensor, ...]
    needs_input_grad: tuple[bool, ...]

    def save_for_backward(self, *tensors: Tensor | None) -> None:
        """Keep tensors."""


class _Context(Context, Protocol):
    message: str


class _Refuse(torch.autograd.Function):
    """The first ``count`` tensors as they are; whoever differentiates them meets an error."""

    @staticmethod
    def forward(ctx: _Context, message: str, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.message = message
        return tuple(tensor.clone() for tensor in tensors[:count])

    @staticmethod
    def backward(ctx: _Context, *gradients: Tensor) -> None:
        raise RuntimeError(ctx.message)


class _Passed(torch.autograd.Function):
    """The identity, and so is its gradient."""

    @staticmethod
    def forward(ctx: _Context, value: Tensor, message: str) -> Tensor:
        ctx.message = message
        ctx.save_for_backward(value)
        return value.clone()

    @staticmethod
    def backward(ctx: _Context, gradient: Tensor) -> tuple[Tensor, None]:
        if not torch.is_grad_enabled():
            return gradient, None
        return refused([gradient], ctx.saved_tensors, ctx.message)[0], None
