"""The dtype of a module, which is one for all of its parts."""

from __future__ import annotations

import itertools

import torch
from torch import nn

__all__ = ["dtype_of", "refuse_mixed"]


def dtype_of(module: nn.Module) -> torch.dtype | None:
    """Dtype of the first floating-point parameter, else buffer; None where there is none."""
    values = itertools.chain(module.parameters(), module.buffers())
    return next((value.dtype for value in values if value.is_floating_point()), None)


def refuse_mixed(module: nn.Module) -> None:
    """Refuse parts of several dtypes, none of which need be wrong by itself.

    Raises:
        TypeError: two floating-point tensors of the module differ in dtype.

    """
    first: dict[torch.dtype, str] = {}
    for name, value in (*module.named_parameters(), *module.named_buffers()):
        if value.is_floating_point():
            first.setdefault(value.dtype, name)
    if len(first) > 1:
        several = " and ".join(f"{dtype} ({name})" for dtype, name in first.items())
        raise TypeError(f"the flow mixes {several}: cast it whole, by .float() or .double()")
