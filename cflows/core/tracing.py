"""What may not be done where the values are not there: under torch.func, torch.compile, export."""

from __future__ import annotations

import torch

__all__ = ["exported", "recorded", "transformed"]


def transformed() -> bool:
    """Whether a transform of torch.func (vmap, grad, jacrev, ...) is at work.

    Each value stands for many there, or is differentiated by rules that torch.autograd.grad does
    not know; a tensor that is kept outlives its transform.
    """
    return torch._C._are_functorch_transforms_active()


def recorded() -> bool:
    """Whether the operations are recorded, by torch.compile or torch.export, to be run later."""
    return torch.compiler.is_compiling()


def exported() -> bool:
    """Whether torch.export records."""
    # torch 2.6 has no such question: there a compilation is told from an export by nothing.
    ask = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)
    return bool(ask())
