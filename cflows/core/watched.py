"""Modules that somebody watches, or that stand in another's place, must be called and not read."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn
from torch.nn.modules import module as every_module

__all__ = ["may_be_read", "unwatched"]


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
        >>> from cflows.core.watched import may_be_read
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
