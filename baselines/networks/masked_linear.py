r"""Masked linear layers, which neither multiply by their masks again nor by blocks of zeros."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = [
    "MaskedLinear",
    "Staircase",
    "gradient_of_input",
    "gradient_of_weight",
    "product",
    "staircase_of",
]

# Row and column edges of the blocks of a matrix that is zero above them: block row k is
# rows[k]:rows[k + 1], and reads the columns before columns[k + 1] at most.
Staircase = tuple[tuple[int, ...], tuple[int, ...]]


class MaskedLinear(nn.Module):
    """y = (M ∘ W) x + b, M (outputs, inputs) a fixed mask of ones and zeros."""

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        linear = nn.Linear(mask.shape[1], mask.shape[0])
        self.weight, self.bias = linear.weight, linear.bias
        self.register_buffer("mask", mask.to(linear.weight.dtype))

    def extra_repr(self) -> str:
        """Its sizes."""
        return f"inputs={self.mask.shape[1]}, outputs={self.mask.shape[0]}"

    def forward(self, x: Tensor) -> Tensor:
        """(*B, inputs) -> (*B, outputs)."""
        return F.linear(x, self.weight * self.mask, self.bias)


def product(x: Tensor, weight: Tensor, bias: Tensor, staircase: Staircase | None) -> Tensor:
    """W x + b, (N, inputs) -> (N, outputs), outside of a graph.

    With K blocks, (K + 1) / 2K of the products of a full matrix are done, here and in the two
    gradients.

    Args:
        x: (N, inputs).
        weight: (outputs, inputs), zero beyond the staircase.
        bias: (outputs,).
        staircase: row edges from 0 to ``outputs`` and column edges from 0; None for a full matrix.

    """
    if staircase is None:
        if len(weight) < min(weight.shape[1], len(x)):
            # A product runs along its result's rows: let them be the long side.
            return torch.addmm(bias[:, None], weight, x.mT).mT
        return F.linear(x, weight, bias)
    out = x.new_empty(len(x), len(weight))
    for (top, bottom), right in zip(pairwise(staircase[0]), staircase[1][1:], strict=True):
        factor = weight[top:bottom, :right].mT
        torch.addmm(bias[top:bottom], x[:, :right], factor, out=out[:, top:bottom])
    return out


def gradient_of_input(gradient: Tensor, weight: Tensor, staircase: Staircase | None) -> Tensor:
    """Wᵀ g of each row, (N, outputs) -> (N, inputs)."""
    if staircase is None:
        if weight.shape[1] < min(len(weight), len(gradient)):
            return (weight.mT @ gradient.mT).mT
        return gradient @ weight
    rows, columns = staircase
    out = gradient.new_empty(len(gradient), weight.shape[1])
    # A column is read by the rows of its block and by all below; one beyond the last by none.
    for top, (left, right) in zip(rows, pairwise(columns), strict=False):
        torch.mm(gradient[:, top:], weight[top:, left:right], out=out[:, left:right])
    out[:, columns[-1] :] = 0
    return out


def gradient_of_weight(gradient: Tensor, x: Tensor, staircase: Staircase | None) -> Tensor:
    """Σ g xᵀ over rows, (N, outputs), (N, inputs) -> (outputs, inputs)."""
    if staircase is None:
        if x.shape[1] < gradient.shape[1]:
            return (x.mT @ gradient).mT.contiguous()
        return gradient.mT @ x
    out = gradient.new_zeros(gradient.shape[1], x.shape[1])
    for (top, bottom), right in zip(pairwise(staircase[0]), staircase[1][1:], strict=True):
        torch.mm(gradient[:, top:bottom].mT, x[:, :right], out=out[top:bottom, :right])
    return out


def staircase_of(before: Sequence[int], after: Sequence[int], blocks: int) -> Staircase:
    """Blocks of the mask ``after[i] >= before[j]``, both degrees ascending, rows shared evenly.

    Args:
        before: degrees of the inputs.
        after: degrees of the outputs.
        blocks: how many.

    """
    rows = [round(k * len(after) / blocks) for k in range(blocks + 1)]
    columns = [0] + [sum(d <= after[row - 1] for d in before) for row in rows[1:]]
    return tuple(rows), tuple(columns)
