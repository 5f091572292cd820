"""How cost grows: with the rows of a call, with the dimension, with the depth.

The first is measured on trained cells, since a continuous flow's evaluations follow its dynamics;
the other two on untrained models of fixed width. A power law is fitted to each, cost ~ size^slope.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from baselines.flows.autoregressive import Autoregressive
from baselines.harness.metrics import timing
from baselines.harness.metrics.timing import Call, Limits
from baselines.models import registry
from cflows import Flow
from cflows.core.atomic_write import write_whole

__all__ = [
    "LEAST_SIZE",
    "SWEEPS",
    "Made",
    "Sized",
    "by_rows",
    "kept_or_made",
    "slope",
    "sweep",
    "ways",
]

Made = TypeVar("Made")

ROWS = {False: (1, 100, 10_000), True: (1, 100, 1000)}  # by whether it is quick
SWEEPS = {"features": (2, 4, 8, 16, 32, 64, 128, 256, 512), "depth": (1, 2, 4, 8, 16, 32)}
QUICK = {"features": (2, 16, 32, 64, 128), "depth": (1, 4, 8, 16)}
FEATURES, DEPTH = 8, 2  # of the one while the other grows
SWEPT_ROWS = 1000
LEAST_SIZE = {"features": 16, "depth": 4}  # of the fit: below it a call's overhead is what costs
SECONDS = {False: 240.0, True: 15.0}  # of a whole sweep, by whether it is quick


class Sized(Call, total=False):
    """A call of a model at a size; a ``note`` in place of its figures says why it was left out."""

    model: str
    size: int
    features: int
    depth: int
    way: str  # of an autoregressive flow's slow direction, "" of others
    note: str


def limits(quick: bool) -> Limits:
    """How long a call is measured."""
    return Limits(3, 0.3, 1.0) if quick else Limits()


def ways(flow: Flow) -> Iterator[str]:
    """Yield each way of the slow direction, the flow set to it: one, or two if autoregressive."""
    parts = [part for part in flow.modules() if isinstance(part, Autoregressive)]
    kept = [part.inversion for part in parts]
    for way in ("cached", "sequential") if parts else ("",):
        for part in parts:
            part.inversion = way
        yield way
    for part, inversion in zip(parts, kept, strict=True):
        part.inversion = inversion


def by_rows(flow: Flow, test: Tensor, quick: bool = False) -> list[Sized]:
    """Densities and samples of 1 row to 10,000, in every way; the rows are repeated."""
    records: list[Sized] = []
    for way in ways(flow):
        for rows in ROWS[quick]:
            line: Sized = {"way": way, "size": rows}
            x = test.repeat(-(-rows // len(test)), 1)[:rows]
            records += [{**line, **call} for call in timing.both(flow, x, limits(quick))]
    return records


def sweep(name: str, model_names: Sequence[str], quick: bool, device: str) -> list[Sized]:
    """Measure 1000 densities and samples of untrained models of growing size.

    Args:
        name: a key of ``SWEEPS``, which is what grows; the other one is fixed.
        model_names: names of models.
        quick: fewer sizes, and seconds.
        device: ``"cpu"`` or ``"cuda"``.

    Returns:
        a record a call. Left out is one of which the size before took long, or all has taken
        ``SECONDS``, or whose model cannot have that size.

    """
    end = time.perf_counter() + SECONDS[quick]
    slow: dict[tuple[str, str], float] = {}
    records: list[Sized] = []
    # Size by size, the dear ones last: where the time ends, little is missing of most models.
    for size in (QUICK if quick else SWEEPS)[name]:
        features = size if name == "features" else FEATURES
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(SWEPT_ROWS, features, generator=generator).to(device)
        for model in sorted(model_names, key=lambda name: bool(registry.solvers(name))):
            head: Sized = {"model": model, "size": size, "features": features}
            try:
                flow, depth = _untrained(model, features, size if name == "depth" else None)
            except Exception as error:  # a function of the user's own may raise whatever it likes
                records.append({**head, "note": " ".join(str(error).split())})
                continue
            for way in ways(flow.to(device, x.dtype)):
                line: Sized = {**head, "depth": depth, "way": way}
                took = slow.get((model, way), 0.0)
                if took > limits(quick).longest / 4:
                    records.append({**line, "note": f"the size before took {took:.1f} s a call"})
                elif time.perf_counter() > end:
                    records.append({**line, "note": "the time of the sweep was over"})
                else:
                    calls = timing.both(flow, x, limits(quick))
                    records += [{**line, **call} for call in calls]
                    slow[model, way] = max(call["ms"] for call in calls) / 1e3
    return records


def kept_or_made(
    path: Path, key: Mapping[str, object], make: Callable[[], list[Made]]
) -> list[Made]:
    """Read the records of a file, or make and write them where it is of another key or missing."""
    with contextlib.suppress(FileNotFoundError, ValueError, KeyError):
        kept = json.loads(path.read_text())
        if kept["key"] == dict(key):
            return list(kept["records"])
    records = make()
    write_whole(path, json.dumps({"key": dict(key), "records": records}, indent=1) + "\n")
    return records


def slope(sizes: Sequence[float], values: Sequence[float], least: float = 0) -> float | None:
    """The slope of log value over log size by least squares, of sizes from ``least``.

    None below three points: two always lie on a line.

    Example:
        >>> round(slope([1, 2, 4, 8], [3, 12, 48, 192]), 6)
        2.0

    """
    points = [(a, b) for a, b in zip(sizes, values, strict=True) if a >= least and a > 0 < b]
    if len({a for a, _ in points}) < 3:
        return None
    x, y = np.log(np.array(points, np.float64)).T
    return float(np.polyfit(x, y, 1)[0])


def _untrained(model: str, features: int, depth: int | None) -> tuple[Flow, int]:
    """A model in evaluation mode, at a depth or at one near ``DEPTH`` that it can have."""
    for tried in (DEPTH, 1) if depth is None else (depth,):
        try:
            return registry.preset(model, features, tried).eval(), tried
        except ValueError as error:
            refusal = error
    raise refusal
