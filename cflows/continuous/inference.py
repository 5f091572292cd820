r"""Evaluations without gradients: in place, and as many rows at a time as a cache holds.

The price of an evaluation should be that of its matrix products. A graph keeps every intermediate
value; without one, an activation overwrites what it is given, a gate is multiplied into the weights
once for all rows, and a block's sum is added by the product itself. Rows are taken in parts, so
that what one product writes is still in the core's cache when the next reads it.

The trace may be had in bfloat16. Its products have as many terms as there are units, whose rounding
errors average out, and nothing feeds on it: the path, in full precision, stays where it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from cflows.continuous.fields import FrozenMLP
from cflows.continuous.layers import ACTIVATIONS, Silu
from cflows.continuous.residual_field import FrozenResidual
from cflows.continuous.stages import Slope
from cflows.core.bijector import plain

__all__ = ["evaluated"]

LEAST = 64  # rows; of fewer the weights' share is the larger one
HELD = 2**17  # numbers of a layer that a part of the rows may take, for each thread
ON_GPU = 2**25  # likewise, of a part on a GPU
MOST = 2**24  # numbers of tangents, of the fewest rows; of more the products go in chunks instead
OWN = set(ACTIVATIONS.values())
SILU = Silu()


def evaluated(
    field: Callable[[Tensor], Tensor], x: Tensor, traced: bool, low: bool = False
) -> Slope | None:
    """Velocity (N, D) and exact trace (N, 1) of a frozen field where no gradient is asked for.

    Args:
        field: an ``MLP`` or a ``ResidualField`` at one time.
        x: (N, D).
        traced: whether the trace is asked for.
        low: whether the products that only the trace asks for run in bfloat16, of float32 rows.

    Returns:
        both, the trace None where it is not asked for; or None where there is no shorter way:
        gradients are on, the rows are few, or have weights or gates of their own, layers are so
        many that the trace has no closed form, or products run in low precision.

    """
    if torch.is_grad_enabled() or (len(x) < LEAST and not low) or not plain(x):
        return None
    if isinstance(field, FrozenMLP) and set(map(type, field.activations)) <= OWN:
        return _perceptron(field, x, traced, low)
    return _residual(field, x, traced, low) if isinstance(field, FrozenResidual) else None


def _parts(x: Tensor, width: int) -> Iterator[slice]:
    """Slices of the rows whose layers, ``width`` numbers a row, stay in the cache."""
    held = HELD * torch.get_num_threads() if x.device.type == "cpu" else ON_GPU
    size = max(LEAST, held // width)
    return (slice(first, first + size) for first in range(0, len(x), size))


def _perceptron(field: FrozenMLP, x: Tensor, traced: bool, low: bool) -> Slope | None:
    """a_l = W_l h_{l-1} + shift_l with the gates in W; tr J = s₂'ᵀ C s₁', see ``divergence``."""
    gates = field.gates
    if any(weight.dim() > 2 for weight in field.weights) or (traced and len(gates) > 3):
        return None
    if any(gate is not None and gate.dim() > 1 for gate in gates):
        return None
    if field.weights[0].dtype != x.dtype:
        return None
    weights = [
        weight if gate is None else gate.unsqueeze(1) * weight
        for weight, gate in zip(field.weights, gates, strict=True)
    ]
    pairing = x
    if traced:
        around = weights[0] @ weights[-1]
        pairing = around.diagonal() if len(weights) == 2 else weights[1] * around.mT
    kind = torch.bfloat16 if low and x.dtype == torch.float32 and len(weights) > 2 else x.dtype
    pairing = pairing.to(kind)
    values, traces = [], []
    for rows in _parts(x, max(weight.shape[0] for weight in weights)):
        shifts = [shift if shift.dim() == 1 else shift[rows] for shift in field.shifts]
        h, slopes = x[rows], []
        for weight, shift, activation in zip(weights, shifts, field.activations, strict=False):
            h = torch.addmm(shift, h, weight.mT)
            slope = activation.overwrite(h, traced)
            slopes += [] if slope is None else [slope]
        values.append(torch.addmm(shifts[-1], h, weights[-1].mT))
        if len(slopes) == 1:
            traces.append(slopes[0] @ pairing)
        elif traced:
            traces.append(
                torch.linalg.vecdot(slopes[0], (slopes[1].to(kind) @ pairing).to(x.dtype))
            )
    value, trace = torch.cat(values), torch.cat(traces).unsqueeze(1) if traced else None
    if field.residual is not None:
        value.addcmul_(x, field.residual, value=-1)
        if trace is not None:
            trace -= x.shape[1] * field.residual
    return value, trace


def _residual(field: FrozenResidual, x: Tensor, traced: bool, low: bool) -> Slope | None:
    """Blocks that add to h, and to its D tangents (N, D, H), by their products.

    The tangents of the first block are constant, W₀, so that its first product takes none of them:
    the gates of all rows times W₀ ∘ W₁, (H, D H).
    """
    if any(gate.dim() > 1 for gate in field.gates) or field.field.exit.weight.dtype != x.dtype:
        return None
    entrance, leaving = field.field.entrance, field.field.exit
    features, width = leaving.weight.shape
    if traced and LEAST * width * (1 + features) > MOST:
        return None
    blocks = [
        (gate.unsqueeze(1) * inner.weight, outer.weight, shift)
        for inner, outer, gate, shift in field.blocks()
    ]
    kind = torch.bfloat16 if low and x.dtype == torch.float32 else x.dtype
    factors = [(inner.mT.to(kind), outer.mT.to(kind)) for inner, outer, _ in blocks]
    begun = (entrance.weight.unsqueeze(2) * blocks[0][0].mT.unsqueeze(1)).flatten(1).to(kind)
    values, traces = [], []
    for rows in _parts(x, width * (1 + features if traced else 1)):
        h = torch.addmm(entrance.bias, x[rows], entrance.weight.mT)
        if field.added is not None:
            h += field.added[rows]
        tangents = entrance.weight.mT
        for index, (inner, outer, shift) in enumerate(blocks):
            s = h.clone()
            before = SILU.overwrite(s, traced)
            a = torch.addmm(shift, s, inner.mT)
            within = SILU.overwrite(a, traced)
            h.addmm_(a, outer.mT)
            if before is None or within is None:
                continue
            first, second = factors[index]
            shape = len(h), features, width
            if index == 0:
                pushed = (before.to(kind) @ begun).view(shape)
            else:
                pushed = (tangents * before.unsqueeze(1)).to(kind) @ first
            pushed *= within.to(kind).unsqueeze(1)
            if index == 0:
                tangents = (pushed.flatten(0, 1) @ second).to(x.dtype).view(shape) + tangents
            elif kind == x.dtype:
                tangents.view(-1, width).addmm_(pushed.flatten(0, 1), second)
            else:
                tangents += pushed @ second
        behind = SILU.overwrite(h, traced)
        values.append(torch.addmm(leaving.bias, h, leaving.weight.mT))
        if behind is not None:
            weighed = behind.unsqueeze(1) * leaving.weight
            traces.append(torch.linalg.vecdot(tangents.flatten(1), weighed.flatten(1)))
    value = torch.cat(values).addcmul_(x, field.rate)
    trace = torch.cat(traces).unsqueeze(1).add_(features * field.rate) if traced else None
    if field.scale is not None:
        value *= field.scale
        if trace is not None:
            trace *= field.scale
    return value, trace
