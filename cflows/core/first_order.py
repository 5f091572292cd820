"""Gradients that are computed without a graph, and refuse to be differentiated again.

torch's ``once_differentiable`` hangs its refusal on leaves of its own, which the engine never
visits when only some inputs are asked for: a Hessian then comes back as zeros, and a penalty's
gradient as None. Here the refusing node lies between the gradient and all that it was computed
from, so that every way through it ends in the error.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["first_order", "first_order_only", "refused"]


def first_order_only(message: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorate a ``backward`` that works without a graph.

    Every input that the gradient depends on must be among the tensors saved for backward.

    Args:
        message: of the RuntimeError that a second derivative meets.

    """

    def decorate(backward: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(backward)
        def wrapped(ctx: Any, *gradients: Tensor) -> Any:
            with torch.no_grad(), torch.autocast(gradients[0].device.type, enabled=False):
                found = backward(ctx, *gradients)
            if not torch.is_grad_enabled():
                return found
            sources = [v for v in (*ctx.saved_tensors, *gradients) if v is not None]
            several = found if isinstance(found, tuple) else (found,)
            known = [v for v in several if v is not None]
            refusing = iter(refused(known, sources, message))
            again = tuple(None if v is None else next(refusing) for v in several)
            return again if isinstance(found, tuple) else again[0]

        return wrapped

    return decorate


def first_order(value: Tensor, message: str) -> Tensor:
    """The value, with a gradient that cannot be differentiated again."""
    if not value.requires_grad:
        return value
    passed: Tensor = _Passed.apply(value, message)  # type: ignore[no-untyped-call]
    return passed


def refused(values: Sequence[Tensor], sources: Iterable[Tensor], message: str) -> list[Tensor]:
    """The values, and an error for whoever differentiates them in a source.

    Args:
        values: computed without a graph.
        sources: all that they were computed from.
        message: of the RuntimeError.

    """
    return list(_Refuse.apply(message, len(values), *values, *sources))  # type: ignore[no-untyped-call]


class _Refuse(torch.autograd.Function):
    """The first ``count`` tensors as they are; whoever differentiates them meets an error."""

    @staticmethod
    def forward(ctx: Any, message: str, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.message = message
        return tuple(tensor.clone() for tensor in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise RuntimeError(ctx.message)


class _Passed(torch.autograd.Function):
    """The identity, and so is its gradient."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, message: str) -> Tensor:
        ctx.message = message
        ctx.save_for_backward(value)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        if not torch.is_grad_enabled():
            return gradient, None
        return refused([gradient], ctx.saved_tensors, ctx.message)[0], None
