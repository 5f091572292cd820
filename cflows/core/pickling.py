"""Pickles of modules whose weights are parametrised, for joblib, spawned processes, torch.save."""

from __future__ import annotations

from collections import OrderedDict
from typing import SupportsIndex, TypeAlias

import torch
from torch import nn
from torch.nn.utils import parametrize

from cflows.core.registry import is_own, register, shown

__all__ = ["Pickled"]

Reduced: TypeAlias = str | tuple[object, ...]

COMPAT = "torch.nn.utils.parametrizations"


class Pickled(nn.Module):
    """A part of a flow: registered where it is defined, and pickled whatever is parametrised in it.

    Torch gives each module that it parametrises (spectral norm, weight norm, ...) a class made for
    that one instance, which no unpickler could find. What is written instead is the class before,
    the names of the parametrised tensors, and all that the module holds.

    Subclasses of packages with short tags are registered as they are defined; those of the user's
    own by ``cflows.register``.

    Example:
        >>> import pickle, torch
        >>> from cflows import FFJORD
        >>> flow = FFJORD(2, hidden=(8,), field={"spectral": True}).eval()
        >>> again = pickle.loads(pickle.dumps(flow))
        >>> x = torch.zeros(1, 2)
        >>> bool(again.log_prob(x) == flow.log_prob(x))
        True

    """

    def __init_subclass__(cls, **keywords: object) -> None:
        super().__init_subclass__(**keywords)
        if is_own(cls):
            register(cls)

    def extra_repr(self) -> str:
        """The arguments that the part was built with, its own parts left out."""
        return ", ".join(shown(self))

    def __reduce_ex__(self, protocol: SupportsIndex) -> Reduced:
        for part in self.modules():
            if parametrize.is_parametrized(part):
                # Of this instance alone: torch made the class for it.
                type(part).__reduce_ex__ = _reduced  # type: ignore[assignment, method-assign]
        if parametrize.is_parametrized(self):
            return _reduced(self, protocol)
        return super().__reduce_ex__(protocol)


def _reduced(module: nn.Module, protocol: SupportsIndex) -> Reduced:
    names = list(getattr(module, "parametrizations"))  # noqa: B009, mypy takes it for a tensor
    base = parametrize.type_before_parametrizations(module)
    # Weight norm leaves a local function there, for the state of its predecessor.
    hooks = module._load_state_dict_pre_hooks
    kept = {key: hook for key, hook in hooks.items() if getattr(hook, "__module__", "") != COMPAT}
    state = {**module.__dict__, "_load_state_dict_pre_hooks": OrderedDict(kept)}
    return _restored, (base, names), state


def _restored(base: type[nn.Module], names: list[str]) -> nn.Module:
    """A module of this class with these tensors parametrised, whose contents are still to come."""
    module = base.__new__(base)
    nn.Module.__init__(module)
    for name in names:
        module.register_parameter(name, nn.Parameter(torch.empty(0)))
        parametrize.register_parametrization(module, name, nn.Identity())
    return module
