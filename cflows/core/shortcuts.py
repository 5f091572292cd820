"""Where work may be done on another way than by torch's own calls, one after the other.

Not where a transform, a compiler or forward differentiation has a rule of its own for each
operation, nor where somebody watches a module's calls or has put another one in its place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import forward_ad
from torch.nn.modules import module as every_module

__all__ = [
    "exported",
    "fusible",
    "may_be_read",
    "may_read",
    "plain",
    "recorded",
    "transformed",
    "uncompiled",
    "unwatched",
]

T = TypeVar("T")


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


def uncompiled(function: Callable[..., T], *arguments: Any) -> T:
    """Call a function from compiled code without compiling it."""
    disabled: Callable[..., T] = torch.compiler.disable(function)  # type: ignore[no-untyped-call]
    return disabled(*arguments)


def may_read(value: Tensor) -> bool:
    """Whether a check may ask a tensor for its numbers: not while something traces or transforms.

    Under torch.func's transforms, torch.compile, torch.export, torch.jit.trace and make_fx, within
    the capture of a CUDA graph, and for tensors without numbers (meta, fake), checks of values are
    left out: what they would refuse becomes NaN or infinite.

    Example:
        >>> import torch
        >>> from cflows.core.shortcuts import may_read
        >>> may_read(torch.ones(2)), may_read(torch.ones(2, device="meta"))
        (True, False)

    """
    # First, since the compiler sees through no question below.
    if torch.compiler.is_compiling():
        return False
    return not (
        torch._C._get_tracing_state() is not None
        or torch._C._are_functorch_transforms_active()
        or value.is_meta
        or isinstance(value, FakeTensor)
        or torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY) is not None
        or (value.is_cuda and torch.cuda.is_current_stream_capturing())
    )


def fusible(x: Tensor) -> bool:
    """Whether a custom ``torch.autograd.Function`` may stand for several operations on x.

    torch.func, compilation and tracing, and forward differentiation, have a rule of their own for
    each operation: they see no custom Function.
    """
    return may_read(x) and forward_ad._current_level < 0


def plain(x: Tensor) -> bool:
    """Whether neither autocast nor a transform asks for torch's own operations."""
    return fusible(x) and not torch.is_autocast_enabled(x.device.type)


def may_be_read(layers: Iterable[nn.Module], kind: type[nn.Module]) -> bool:
    """Whether the layers' weights say all that a call of them would do.

    Not so where a hook watches the calls or computes the weights (``weight_norm``, ``prune``, the
    older ``spectral_norm``), nor for another class in a layer's place (low-rank adapters, quantised
    layers). ``torch.nn.utils.parametrize`` may be read.

    Args:
        layers: which.
        kind: what they were built as; a subclass with a forward of its own is another class.

    Example:
        >>> from torch import nn
        >>> from cflows.core.shortcuts import may_be_read
        >>> layer = nn.Linear(2, 3)
        >>> _ = layer.register_forward_hook(lambda *_: None)
        >>> may_be_read([nn.Linear(2, 3)], nn.Linear), may_be_read([layer], nn.Linear)
        (True, False)

    """
    parts, forward = list(layers), kind.forward
    return unwatched(parts) and all(
        isinstance(part, kind) and type(part).forward is forward and "forward" not in part.__dict__
        for part in parts
    )


def unwatched(modules: Iterable[nn.Module]) -> bool:
    """Whether no hook, of these modules or of all, would notice that they are not called."""
    return not every_module._has_any_global_hook() and not any(  # type: ignore[no-untyped-call]
        module._forward_pre_hooks
        or module._forward_hooks
        or module._backward_pre_hooks
        or module._backward_hooks
        for module in modules
    )
