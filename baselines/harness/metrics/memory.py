"""Peak memory: of a cell, where the system tells, and of one call, in tensors alive at once."""

from __future__ import annotations

import contextlib
import os
import re
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, UntypedStorage
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

__all__ = ["call_peak_mb", "forget_peak", "peak_mb", "resident_mb"]


def resident_mb(field: str = "VmRSS") -> float:
    """Resident memory of this process, ``VmRSS`` now or ``VmHWM`` at its peak, in MB."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        import resource

        scale = 2**20 if os.uname().sysname == "Darwin" else 2**10
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale
    told = re.search(rf"{field}:\s+(\d+) kB", status)
    return int(told[1]) / 1024 if told else 0.0


def forget_peak(device: str) -> None:
    """Let the peak start anew for this cell, where the system allows it."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    if device == "cuda":  # else a GPU that nobody uses would be given a context
        torch.cuda.reset_peak_memory_stats()


def peak_mb(device: str, before: float) -> float:
    """The peak since ``forget_peak``: of the GPU, or of this process above what it had before."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return max(0.0, resident_mb("VmHWM") - before)


def call_peak_mb(work: Callable[[], object], device: torch.device) -> float:
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
        func: Callable[..., object],
        types: Sequence[type],
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        out = func(*args, **(kwargs or {}))
        # What was there already is no cost of the call: a view of a weight, an output given.
        inputs = {
            value.untyped_storage()._cdata
            for value in tree_iter((args, kwargs))
            if isinstance(value, Tensor)
        }
        for value in tree_iter(out):
            if isinstance(value, Tensor):
                self._follow(value.untyped_storage(), inputs)
        return out

    def _follow(self, storage: UntypedStorage, inputs: set[int]) -> None:
        key = storage._cdata
        if key in self.alive or key in inputs:
            return
        self.alive[key] = storage.nbytes()
        self.now += self.alive[key]
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.now -= self.alive.pop(key, 0)
