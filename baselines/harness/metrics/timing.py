"""What one call costs: seconds, memory, network evaluations; of a density and of a sample."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from baselines.harness.metrics.footprint import peak_mb
from cflows import Flow

__all__ = ["FIELDS", "Limits", "both", "wait"]

FIELDS = ("rows", "what", "ms", "ms_q1", "ms_q3", "repeats", "memory_mb", "nfe_call", "nfe_row")


@dataclass(frozen=True)
class Limits:
    """How long to measure.

    Attributes:
        repeats: of a call, after one to warm up; three at least where the patience ends before.
        patience: seconds of repeats.
        longest: seconds of a call beyond which it is neither repeated nor its memory followed; its
            first run then stands for it.

    """

    repeats: int = 7
    patience: float = 2.0
    longest: float = 5.0


@torch.no_grad()
def both(flow: Flow, x: Tensor, limits: Limits) -> list[dict[str, Any]]:
    """Measure the density of the rows x (N, D) and N samples: two records with ``FIELDS``.

    The caller fixes the threads and sees to it that nothing else runs. Evaluations are the calls of
    the flow's networks, each for all N rows: ``nfe_call`` in one call, ``nfe_row`` that divided by
    N, what a row pays where the rows share them.
    """
    works = {"density": lambda: flow.log_prob(x), "sample": lambda: flow.sample(len(x))}
    return [_record(flow, work, what, len(x), x.device, limits) for what, work in works.items()]


def wait(device: torch.device) -> None:
    """Wait for what a GPU still has to do."""
    if device.type == "cuda":  # else a GPU that nobody uses would be given a context
        torch.cuda.synchronize(device)


def _record(
    flow: Flow,
    work: Callable[[], object],
    what: str,
    rows: int,
    device: torch.device,
    limits: Limits,
) -> dict[str, Any]:
    before = flow.evaluations
    first = _seconds(work, device)
    nfe = flow.evaluations - before
    seconds: list[float] = []
    while first <= limits.longest and len(seconds) < limits.repeats:
        if len(seconds) >= 3 and sum(seconds) > limits.patience:
            break
        seconds.append(_seconds(work, device))
    low, middle, high = np.quantile(seconds or [first], (0.25, 0.5, 0.75)) * 1e3
    return {
        "rows": rows,
        "what": what,
        "ms": float(middle),
        "ms_q1": float(low),
        "ms_q3": float(high),
        "repeats": len(seconds) or 1,
        "memory_mb": peak_mb(work, device) if seconds else None,
        "nfe_call": nfe,
        "nfe_row": nfe / rows,
    }


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    wait(device)
    start = time.perf_counter()
    work()
    wait(device)
    return time.perf_counter() - start
