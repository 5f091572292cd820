"""The peak memory of a call: bytes of tensors alive at once, beyond those that were before it."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

__all__ = ["peak_mb"]


def peak_mb(work: Callable[[], object], device: torch.device) -> float:
    """Call ``work`` once more, and return the most megabytes (2^20 bytes) that it held at once.

    On a GPU the allocator tells. On a CPU the resident size of the process does not, since memory
    that was freed is kept for the next call: there every operation's new storages are followed
    until they die. What a kernel takes for itself and returns is not seen.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        torch.cuda.synchronize(device)
        return float(torch.cuda.max_memory_allocated(device) - before) / 2**20
    with _Followed() as followed:
        work()
    return float(followed.peak) / 2**20


class _Followed(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the storages that operations make, and takes them off as they die."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.alive: dict[int, int] = {}
        self.now = self.peak = 0

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        # What was there already is no cost of the call: a view of a weight, an output given.
        given = {
            value.untyped_storage()._cdata
            for value in tree_iter((args, kwargs))
            if isinstance(value, Tensor)
        }
        for value in tree_iter(out):
            if isinstance(value, Tensor):
                self._follow(value.untyped_storage(), given)
        return out

    def _follow(self, storage: Any, given: set[int]) -> None:
        key = storage._cdata
        if key in self.alive or key in given:
            return
        self.alive[key] = storage.nbytes()
        self.now += self.alive[key]
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.now -= self.alive.pop(key, 0)
