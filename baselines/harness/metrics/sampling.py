"""The second comparison: what a density costs, and what a sample costs."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from baselines.harness.metrics.timing import wait
from cflows import Flow

__all__ = ["REPEATS", "measure", "processor"]

REPEATS = 7
PATIENCE = 3.0
ROWS = 1000


def measure(flow: Flow, rows: Tensor) -> dict[str, Any]:
    """Time densities and samples of 1000 rows, without gradient.

    Each is run once to warm up, then ``REPEATS`` times, fewer (three at least) where that would
    take longer than ``PATIENCE`` seconds; the device is waited for. The caller fixes the threads
    and sees to it that nothing else runs.

    Args:
        flow: in evaluation mode.
        rows: at least one row of data, (N, D); the first 1000 are scored, repeated if fewer.

    Returns:
        the entries of cost.json: medians in milliseconds per 1000 rows with quartiles, and network
        evaluations a call.

    """
    x = rows.repeat(-(-ROWS // len(rows)), 1)[:ROWS]
    with torch.no_grad():
        density, nfe_density = _timed(flow, lambda: flow.log_prob(x), x.device)
        sample, nfe_sample = _timed(flow, lambda: flow.sample(ROWS), x.device)
    result: dict[str, Any] = {"repeats": min(len(density), len(sample))}
    for name, seconds, nfe in (("density", density, nfe_density), ("sample", sample, nfe_sample)):
        low, median, high = np.quantile(seconds, (0.25, 0.5, 0.75)) * 1e3
        result |= {
            f"nfe_{name}": nfe,
            f"{name}_ms_per_1000": float(median),
            f"{name}_ms_quartiles": [float(low), float(high)],
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


def _timed(flow: Flow, work: Callable[[], object], device: torch.device) -> tuple[list[float], int]:
    before = flow.evaluations
    work()
    evaluations = flow.evaluations - before
    seconds: list[float] = []
    while len(seconds) < REPEATS and (len(seconds) < 3 or sum(seconds) < PATIENCE):
        wait(device)
        start = time.perf_counter()
        work()
        wait(device)
        seconds.append(time.perf_counter() - start)
    return seconds, evaluations
