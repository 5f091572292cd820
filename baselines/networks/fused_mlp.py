r"""A perceptron as one node of the graph: what the networks of all discrete flows run on.

    h_1 = W_1 x + b_1 + offset,   h_k = W_k a(h_{k-1}) + b_k

Layer by layer, torch keeps h_k and a(h_k), and allocates a gradient of either. Here activations are
written over their inputs, and so are their gradients: a training step of a narrow flow is as much
memory traffic and bookkeeping as it is products.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from baselines.networks.activations import Activation
from baselines.networks.masked_linear import (
    Staircase,
    gradient_of_input,
    gradient_of_weight,
    product,
)
from cflows.core.bijector import plain
from cflows.core.first_order import Context

__all__ = ["by_calls", "perceptron"]


def perceptron(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    activation: Activation,
    *,
    offset: Tensor | None = None,
    staircases: Sequence[Staircase | None] | None = None,
) -> Tensor:
    """Apply the layers: (*B, inputs) -> (*B, outputs), differentiable any number of times.

    Args:
        x: (*B, inputs).
        weights: a matrix (outputs, inputs) a layer.
        biases: a vector (outputs,) a layer.
        activation: between two layers.
        offset: added to the first layer's values, (*B, H_1).
        staircases: which blocks of the weights are not zero, None for all.

    """
    staircases = staircases or [None] * len(weights)
    flat = x.reshape(-1, x.shape[-1])
    if offset is not None:
        offset = offset.reshape(-1, offset.shape[-1])
    parameters = [tensor for pair in zip(weights, biases, strict=True) for tensor in pair]
    out: Tensor
    if not plain(x):
        out = _layer_by_layer(activation, flat, offset, *parameters)
    elif torch.is_grad_enabled():
        out = _Perceptron.apply(activation, staircases, flat, offset, *parameters)  # type: ignore[no-untyped-call]
    else:
        out = _evaluated(activation, staircases, flat, offset, parameters)
    return out.reshape(*x.shape[:-1], out.shape[-1])


def by_calls(
    x: Tensor,
    layers: Iterable[Callable[[Tensor], Tensor]],
    activation: Activation,
    *,
    offset: Tensor | None = None,
) -> Tensor:
    """The same as ``perceptron`` by calls of the layers, hooks and all."""
    h = x
    for number, layer in enumerate(layers):
        h = layer(activation.call(h) if number else h)
        if number == 0 and offset is not None:
            h = h + offset
    return h


def _layer_by_layer(
    activation: Activation, x: Tensor, offset: Tensor | None, *parameters: Tensor
) -> Tensor:
    pairs = zip(parameters[::2], parameters[1::2], strict=True)
    layers = (partial(F.linear, weight=weight, bias=bias) for weight, bias in pairs)
    return by_calls(x, layers, activation, offset=offset)


def _evaluated(
    activation: Activation,
    staircases: Sequence[Staircase | None],
    x: Tensor,
    offset: Tensor | None,
    parameters: Sequence[Tensor],
    hidden: list[tuple[Tensor, Tensor]] | None = None,
) -> Tensor:
    """Outside of a graph; where no h and a(h) are asked for, none outlives the next layer's."""
    h = x
    layers = zip(parameters[::2], parameters[1::2], staircases, strict=True)
    for number, (weight, bias, staircase) in enumerate(layers):
        if number and hidden is not None:
            hidden.append((h, activation.written(h)))
            h = hidden[-1][1]
        elif number:
            h = activation.written(h)
        h = product(h, weight, bias, staircase)
        if number == 0 and offset is not None:
            h += offset
    return h


class _Context(Context, Protocol):
    activation: Activation
    staircases: Sequence[Staircase | None]


class _Perceptron(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: _Context,
        activation: Activation,
        staircases: Sequence[Staircase | None],
        x: Tensor,
        offset: Tensor | None,
        *parameters: Tensor,
    ) -> Tensor:
        ctx.activation, ctx.staircases = activation, staircases
        hidden: list[tuple[Tensor, Tensor]] = []
        out = _evaluated(activation, staircases, x, offset, parameters, hidden)
        before, after = zip(*hidden, strict=True) if hidden else ((), ())
        ctx.save_for_backward(x, offset, *parameters, *before, *after)
        return out

    @staticmethod
    def backward(ctx: _Context, gradient: Tensor) -> tuple[Tensor | None, ...]:
        activation, staircases = ctx.activation, ctx.staircases
        depth = len(staircases)
        x, offset, *rest = ctx.saved_tensors
        parameters, hidden = rest[: 2 * depth], rest[2 * depth :]
        if torch.is_grad_enabled():
            return (None, None, *_again(ctx, gradient, x, offset, *parameters))
        before, after = hidden[: depth - 1], [x, *hidden[depth - 1 :]]
        needs_x, needs_offset, *needs = ctx.needs_input_grad[2:]
        gradients: list[Tensor | None] = []
        for number in reversed(range(depth)):
            staircase, weight = staircases[number], parameters[2 * number]
            needs_weight, needs_bias = needs[2 * number : 2 * number + 2]
            gradients.append(gradient.sum(0) if needs_bias else None)
            gradients.append(
                gradient_of_weight(gradient, after[number], staircase) if needs_weight else None
            )
            if number:
                gradient = gradient_of_input(gradient, weight, staircase)
                gradient = activation.pull_back(gradient, before[number - 1], after[number])
        for_x = gradient_of_input(gradient, parameters[0], staircases[0]) if needs_x else None
        return None, None, for_x, gradient if needs_offset else None, *reversed(gradients)


def _again(ctx: _Context, gradient: Tensor, *inputs: Tensor | None) -> list[Tensor | None]:
    """The gradient as torch takes it, layer by layer, so that it can be differentiated again."""
    needs = ctx.needs_input_grad[2:]
    with torch.enable_grad():
        # One input may be a function of another, as under a layer that is used twice. Views cut
        # them apart: what flows from one to the other is the engine's to add, not this node's.
        apart = [None if v is None else v.view_as(v) for v in inputs]
        needed = [v for v, need in zip(apart, needs, strict=True) if need and v is not None]
        out = _layer_by_layer(ctx.activation, *apart)  # type: ignore[arg-type]
        gradients = iter(torch.autograd.grad(out, needed, gradient, create_graph=True))
    return [next(gradients) if need else None for need in needs]
