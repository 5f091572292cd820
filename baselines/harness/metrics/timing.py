"""What one call costs: seconds, memory, network evaluations; of a density and of a sample."""

from __future__ import annotations

import math
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from timeit import default_timer
from typing import Any

import numpy as np
import torch
from torch import Tensor

from baselines.harness.metrics.memory import call_peak_mb
from cflows import Flow

__all__ = ["FIELDS", "Limits", "both", "measure", "processor"]

FIELDS = ("rows", "what", "ms", "ms_q1", "ms_q3", "repeats", "memory_mb", "nfe_call", "nfe_row")
ROWS = 1000  # of ``measure``


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
def both(
    flow: Flow, x: Tensor, limits: Limits, *, with_memory: bool = True
) -> list[dict[str, Any]]:
    """Measure the density of the rows x (N, D) and N samples: two records with ``FIELDS``.

    The caller fixes the threads and sees to it that nothing else runs. Evaluations are the calls of
    the flow's networks, each for all N rows: ``nfe_call`` in one call, ``nfe_row`` that divided by
    N, what a row pays where the rows share them. The memory takes one more call, or is None.
    """
    works = {"density": lambda: flow.log_prob(x), "sample": lambda: flow.sample(len(x))}
    found = []
    for what, work in works.items():
        before = flow.evaluations
        first = _seconds(work, x.device)
        nfe = flow.evaluations - before
        seconds: list[float] = []
        while first <= limits.longest and len(seconds) < limits.repeats:
            if len(seconds) >= 3 and sum(seconds) > limits.patience:
                break
            seconds.append(_seconds(work, x.device))
        low, middle, high = np.quantile(seconds or [first], (0.25, 0.5, 0.75)) * 1e3
        memory = call_peak_mb(work, x.device) if seconds and with_memory else None
        quartiles = (float(middle), float(low), float(high))
        values = (len(x), what, *quartiles, len(seconds) or 1, memory, nfe, nfe / len(x))
        found.append(dict(zip(FIELDS, values, strict=True)))
    return found


def measure(flow: Flow, rows: Tensor) -> dict[str, Any]:
    """Time densities and samples of 1000 rows, as ``both`` does; however long they take.

    Args:
        flow: in evaluation mode.
        rows: at least one row of data, (N, D); the first 1000 are scored, repeated if fewer.

    Returns:
        the entries of cost.json: medians in milliseconds per 1000 rows with quartiles, and network
        evaluations a call.

    """
    x = rows.repeat(-(-ROWS // len(rows)), 1)[:ROWS]
    found = both(flow, x, Limits(patience=3.0, longest=math.inf), with_memory=False)
    result: dict[str, Any] = {"repeats": min(record["repeats"] for record in found)}
    for record in found:
        name = record["what"]
        result |= {
            f"nfe_{name}": record["nfe_call"],
            f"{name}_ms_per_1000": record["ms"],
            f"{name}_ms_quartiles": [record["ms_q1"], record["ms_q3"]],
        }
    return result


def processor(device: str = "cpu") -> str:
    """Name what a device is made of: the model of the processor, or of the GPU."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    # Not torch's Timer, which warms up twice before each figure; its clock waits for the GPU, which
    # would give one that nobody uses a context.
    clock = default_timer
    if device.type == "cuda":
        from torch.utils.benchmark import timer as clock
    start = clock()
    work()
    return clock() - start
