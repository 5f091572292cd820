"""What one call costs: seconds, memory, network evaluations; of a density and of a sample."""

from __future__ import annotations

import contextlib
import math
import platform
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from timeit import default_timer
from typing import TypedDict, final

import numpy as np
import torch
from torch import Tensor

from baselines.harness.metrics.memory import call_peak_mb
from cflows import Flow

__all__ = ["Call", "Cost", "Limits", "both", "measure", "processor"]

ROWS = 1000  # of ``measure``


class Call(TypedDict, total=False):
    """What a call costs, a line of the files of cost: all of it, but where it was left out.

    ``what`` is ``"density"`` or ``"sample"``; the milliseconds are the median and quartiles of so
    many repeats; ``memory_mb`` is None where it was not followed. Evaluations are the calls of the
    flow's networks, each for all rows: ``nfe_call`` in one call, ``nfe_row`` that divided by the
    rows, what a row pays where they share them.
    """

    rows: int
    what: str
    ms: float
    ms_q1: float
    ms_q3: float
    repeats: int
    memory_mb: float | None
    nfe_call: int
    nfe_row: float


@final
class Cost(TypedDict, total=False):
    """The entries of cost.json: medians of 1000 rows with quartiles, and evaluations a call."""

    repeats: int
    nfe_density: int
    density_ms_per_1000: float
    density_ms_quartiles: list[float] | None
    nfe_sample: int
    sample_ms_per_1000: float
    sample_ms_quartiles: list[float] | None
    processor: str


@dataclass(frozen=True)
class Limits:
    """How long to measure: repeats after a call to warm up, three at least, within the patience.

    A call of more than `longest` seconds is neither repeated nor its memory followed; its first run
    then stands for it.
    """

    repeats: int = 7
    patience: float = 2.0
    longest: float = 5.0


LIMITS = {False: Limits(patience=1.5, longest=math.inf), True: Limits(3, longest=0.3)}
"""Of ``measure``, by whether it is quick."""


@torch.no_grad()
def both(flow: Flow, x: Tensor, limits: Limits, *, with_memory: bool = True) -> tuple[Call, Call]:
    """Measure the density of the rows x (N, D), and N samples.

    The caller fixes the threads and sees to it that nothing else runs. The memory takes one more
    call, or is None.
    """

    def measured(what: str, work: Callable[[], object]) -> Call:
        before = flow.evaluations
        first = _seconds(work, x.device)
        nfe = flow.evaluations - before
        seconds: list[float] = []
        while first <= limits.longest and len(seconds) < limits.repeats:
            if len(seconds) >= 3 and sum(seconds) > limits.patience:
                break
            seconds.append(_seconds(work, x.device))
        low, middle, high = np.quantile(seconds or [first], (0.25, 0.5, 0.75)) * 1e3
        return {
            "rows": len(x),
            "what": what,
            "ms": float(middle),
            "ms_q1": float(low),
            "ms_q3": float(high),
            "repeats": len(seconds) or 1,
            "memory_mb": call_peak_mb(work, x.device) if seconds and with_memory else None,
            "nfe_call": nfe,
            "nfe_row": nfe / len(x),
        }

    return (
        measured("density", lambda: flow.log_prob(x)),
        measured("sample", lambda: flow.sample(len(x))),
    )


def measure(flow: Flow, rows: Tensor, quick: bool = False) -> Cost:
    """Time densities and samples of 1000 rows, as ``both`` does; however long they take.

    A call that is not repeated has no quartiles.

    Args:
        flow: in evaluation mode.
        rows: at least one row of data, (N, D); the first 1000 are scored, repeated if fewer.
        quick: fewer repeats, and none of a call that takes long.

    """
    x = rows.repeat(-(-ROWS // len(rows)), 1)[:ROWS]
    density, sample = both(flow, x, LIMITS[quick], with_memory=False)
    return {
        "repeats": min(density["repeats"], sample["repeats"]),
        "nfe_density": density["nfe_call"],
        "density_ms_per_1000": density["ms"],
        "density_ms_quartiles": _quartiles(density),
        "nfe_sample": sample["nfe_call"],
        "sample_ms_per_1000": sample["ms"],
        "sample_ms_quartiles": _quartiles(sample),
    }


def processor(device: str = "cpu") -> str:
    """Name what a device is made of: the model of the processor, or of the GPU."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    with contextlib.suppress(OSError):
        if named := re.search(r"^model name\s*:(.*)", Path("/proc/cpuinfo").read_text(), re.M):
            return named[1].strip()
    return platform.processor() or platform.machine()


def _quartiles(call: Call) -> list[float] | None:
    return [call["ms_q1"], call["ms_q3"]] if call["repeats"] > 1 else None


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    # Not torch's Timer, which warms up twice before each figure; its clock waits for the GPU, which
    # would give one that nobody uses a context.
    clock = default_timer
    if device.type == "cuda":
        from torch.utils.benchmark import timer as clock
    start = clock()
    work()
    return clock() - start
