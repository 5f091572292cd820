r"""Masked linear layers, which neither multiply by their masks again nor by blocks of zeros."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.nn import functional as F

__all__ = ["MaskedLinear", "Staircase", "staircase_linear"]

# Row and column edges of the blocks of a matrix that is zero above them: block row k is
# rows[k]:rows[k + 1], and reads the columns before columns[k + 1] at most.
Staircase = tuple[tuple[int, ...], tuple[int, ...]]


class MaskedLinear(nn.Module):
    """y = (M ∘ W) x + b with a fixed mask M (outputs, inputs) of ones and zeros.

    In evaluation mode and without gradient, M ∘ W is kept until W or M change, for a W that is a
    parameter: not one of a functional call, which may be batched or carry a tangent, nor one made
    in inference mode, which counts no versions. A change through ``weight.data`` leaves no trace:
    ``train()`` or ``eval()`` after it.
    """

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        linear = nn.Linear(mask.shape[1], mask.shape[0])
        self.weight, self.bias = linear.weight, linear.bias
        self.register_buffer("mask", mask.to(linear.weight.dtype))
        self._kept: tuple[list[tuple[Tensor, int]], Tensor] | None = None

    def effective(self) -> Tensor:
        """M ∘ W, (outputs, inputs)."""
        if self.training or (torch.is_grad_enabled() and self.weight.requires_grad):
            return self.weight * self.mask
        seen = [self.weight, self.mask]
        if (
            not isinstance(self.weight, nn.Parameter)
            or any(value.is_inference() for value in seen)
            # Even a product of plain tensors is wrapped there, and would outlive its transform.
            or torch._C._are_functorch_transforms_active()
        ):
            return self.weight * self.mask
        if self._kept is None or not all(map(_unchanged, self._kept[0], seen)):
            # A tensor of inference mode could not be met by a gradient later.
            with torch.inference_mode(False), torch.no_grad():
                # detach() shares memory and version: neither can be used again by another tensor.
                versions = [(value.detach(), value._version) for value in seen]
                self._kept = versions, self.weight * self.mask
        return self._kept[1]

    def forward(self, x: Tensor, staircase: Staircase | None = None) -> Tensor:
        """(*B, inputs) -> (*B, outputs); the staircase, if given, must cover the mask's ones."""
        if staircase is None or torch.is_autocast_enabled(x.device.type):
            return F.linear(x, self.effective(), self.bias)
        return staircase_linear(x, self.effective(), self.bias, staircase)

    def train(self, mode: bool = True) -> MaskedLinear:
        """Set the mode, and forget the product: ``weight.data`` may be changed without a trace."""
        self._kept = None
        super().train(mode)
        return self

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_kept": None}


def _unchanged(kept: tuple[Tensor, int], value: Tensor) -> bool:
    tensor, version = kept
    return (
        tensor.data_ptr() == value.data_ptr()
        and version == value._version
        and tensor.dtype == value.dtype
        and tensor.device == value.device
    )


def staircase_linear(x: Tensor, weight: Tensor, bias: Tensor, staircase: Staircase) -> Tensor:
    """W x + b for a block-triangular W, (*B, inputs) -> (*B, outputs).

    With K blocks, (K + 1) / 2K of the products of the full matrix are done, in both directions.

    Args:
        x: (*B, inputs).
        weight: (outputs, inputs), zero beyond the staircase.
        bias: (outputs,).
        staircase: row edges from 0 to ``outputs`` and column edges from 0.

    """
    rows = x.reshape(-1, x.shape[-1])
    flat: Tensor = _StaircaseProduct.apply(rows, weight, bias, staircase)  # type: ignore[no-untyped-call]
    return flat.reshape(*x.shape[:-1], flat.shape[-1])


class _StaircaseProduct(torch.autograd.Function):
    """Every step is a product of blocks that are put side by side: differentiable any times."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor, staircase: Staircase) -> Tensor:
        rows, columns = staircase
        parts = [
            torch.addmm(bias[top:bottom], x[:, :right], weight[top:bottom, :right].mT)
            for (top, bottom), right in zip(pairwise(rows), columns[1:], strict=True)
        ]
        return torch.cat(parts, dim=1)

    @staticmethod
    def setup_context(ctx: FunctionCtx, inputs: tuple[object, ...], output: Tensor) -> None:
        x, weight, _, staircase = inputs
        ctx.save_for_backward(x, weight)  # type: ignore[arg-type]
        ctx.save_for_forward(x, weight)  # type: ignore[arg-type]
        ctx.staircase = staircase  # type: ignore[attr-defined]

    @staticmethod
    def backward(
        ctx: FunctionCtx, gradient: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors  # type: ignore[attr-defined]
        rows, columns = ctx.staircase  # type: ignore[attr-defined]
        for_x = for_weight = for_bias = None
        if ctx.needs_input_grad[0]:  # type: ignore[attr-defined]
            # A column is read by the rows of its block and by all below.
            parts = [
                gradient[:, top:] @ weight[top:, left:right]
                for top, (left, right) in zip(rows, pairwise(columns), strict=False)
            ]
            for_x = _padded(torch.cat(parts, dim=1), x.shape[1])
        if ctx.needs_input_grad[1]:  # type: ignore[attr-defined]
            parts = [
                _padded(gradient[:, top:bottom].mT @ x[:, :right], x.shape[1])
                for (top, bottom), right in zip(pairwise(rows), columns[1:], strict=True)
            ]
            for_weight = torch.cat(parts, dim=0)
        if ctx.needs_input_grad[2]:  # type: ignore[attr-defined]
            for_bias = gradient.sum(0)
        return for_x, for_weight, for_bias, None

    @staticmethod
    def jvp(
        ctx: FunctionCtx, x_dot: Tensor, weight_dot: Tensor, bias_dot: Tensor, _: None
    ) -> Tensor:
        x, weight = ctx.saved_tensors  # type: ignore[attr-defined]
        return F.linear(x_dot, weight) + F.linear(x, weight_dot) + bias_dot


def _padded(value: Tensor, columns: int) -> Tensor:
    missing = columns - value.shape[1]
    return F.pad(value, (0, missing)) if missing else value


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
