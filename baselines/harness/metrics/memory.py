"""How much memory a cell has needed, where the system tells."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

import torch

__all__ = ["forget_peak", "peak_mb", "resident_mb"]


def resident_mb(field: str = "VmRSS") -> float:
    """Resident memory of this process, ``VmRSS`` now or ``VmHWM`` at its peak, in MB."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        import resource

        scale = 2**20 if os.uname().sysname == "Darwin" else 2**10
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale
    found = re.search(rf"{field}:\s+(\d+) kB", status)
    return int(found[1]) / 1024 if found else 0.0


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
