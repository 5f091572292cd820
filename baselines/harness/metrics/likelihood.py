"""The first comparison: how likely the held-out rows are, and how far to trust that figure."""

from __future__ import annotations

import math
from typing import TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cflows import Flow, log_likelihood

__all__ = ["Scores", "drawn", "evaluate", "picture", "round_trip_error", "scored", "solver_gap"]

CHECKED_ROWS = {False: 2000, True: 500}  # by whether it is quick
GRID = 160
NOTHING = -1e4  # nats: log p where there is no density, which pictures can interpolate
PATHS = 150


class Scores(TypedDict):
    """What result.json holds of the test rows.

    The mean log-density of a row in nats with twice its standard error over rows; the solver's gap,
    mean and maximum (None for a discrete flow); the largest |f(f⁻¹(x)) - x| in units of the data's
    standard deviation, in the data's own where the rows have none.
    """

    test_log_prob: float
    test_log_prob_2se: float
    solver_gap: float | None
    solver_gap_max: float | None
    round_trip_error: float


def evaluate(flow: Flow, test: Tensor, quick: bool = False) -> tuple[Scores, Tensor]:
    """Score the test rows (N, D) in the data's units, and check the score; and log p of each, (N,).

    The flow is a trained one, in evaluation mode; fewer rows are checked where it is `quick`.
    """
    checked = slice(CHECKED_ROWS[quick])
    log_prob = log_likelihood(flow, test).double()
    gap = solver_gap(flow, test[checked], log_prob[checked])
    return {
        "test_log_prob": float(log_prob.mean()),
        "test_log_prob_2se": 2 * float(log_prob.std()) / math.sqrt(len(log_prob)),
        "solver_gap": None if gap is None else float(gap.mean()),
        "solver_gap_max": None if gap is None else float(gap.max()),
        "round_trip_error": round_trip_error(flow, test[checked]),
    }, log_prob


def solver_gap(
    flow: Flow, x: Tensor, log_prob: Tensor, context: Tensor | None = None
) -> Tensor | None:
    """|log p(x) at a tenth of the tolerance - log p(x)| a row, (N, D), (N,) -> (N,).

    None where the flow has no solver: a gap of zero would be a claim.
    """
    if not flow.is_continuous:
        return None
    with flow.tightened(10.0):
        return (log_likelihood(flow, x, context).double() - log_prob).abs()


@torch.no_grad()
def scored(
    flow: Flow,
    x: Tensor,
    context: Tensor | None = None,
    device: torch.device | str = "cpu",
    batch_size: int = 2000,
) -> Tensor:
    """Log p of rows, on the CPU, (N, D) -> (N,): -inf outside of the flow's support.

    Args:
        flow: on the device.
        x: (N, D), of which so many rows at a time are brought to the device.
        context: (N, C), or (1, C) for all rows.
        device: of the flow.
        batch_size: rows at a time.

    """
    log_prob = []
    for first in range(0, len(x), batch_size):
        part = slice(first, first + batch_size)
        own = None if context is None else context.expand(len(x), -1)[part].to(device)
        log_prob.append(flow.distribution(own).log_prob(x[part].to(device)).cpu())
    return torch.cat(log_prob)


@torch.no_grad()
def picture(flow: Flow, rows: Tensor, samples: int = 2000) -> dict[str, np.ndarray]:
    """What a picture of a density in the plane needs: log p on a grid, samples, and paths.

    Args:
        flow: of two features.
        rows: the test rows, (N, 2); the grid covers their central 99.8 percent and a margin. Of a
            continuous flow, whose density is smooth and dear, every second point of either side is
            computed and log p between them interpolated.
        samples: how many to draw.

    """
    (x0, x1), (y0, y1) = (_limits(column) for column in rows.T.double().cpu().numpy())
    size = GRID // 2 if flow.is_continuous else GRID
    x, y = (torch.linspace(*ends, size, dtype=torch.float64) for ends in ((x0, x1), (y0, y1)))
    grid = torch.cartesian_prod(y, x).flip(1).to(rows)
    density = scored(flow, grid, device=rows.device, batch_size=GRID * 40).clamp(min=NOTHING)
    density = density.view(1, 1, size, size)
    density = F.interpolate(density, (GRID, GRID), mode="bilinear", align_corners=True)
    torch.manual_seed(0)
    paths = {}
    if flow.is_continuous:
        start = flow.base.sample((PATHS,))
        times = torch.linspace(0, 1, 25).tolist()
        paths["paths"] = flow.trajectory(start, times).cpu().numpy()
    return paths | {
        "density": density.view(GRID, GRID).numpy(),
        "extent": np.array([x0, x1, y0, y1]),
        "samples": flow.sample(samples).cpu().numpy(),
        "data": rows[:10_000].cpu().numpy(),
    }


@torch.no_grad()
def drawn(flow: Flow, count: int) -> np.ndarray:
    """Draws of a flow, the same at each call, (count, D)."""
    torch.manual_seed(0)
    draws: np.ndarray = flow.sample(count).cpu().double().numpy()
    return draws


def _limits(column: np.ndarray) -> tuple[float, float]:
    """Where a picture of this column begins and ends; never nothing, whatever the column holds."""
    with np.errstate(invalid="ignore"):
        low, high = np.quantile(column, (0.001, 0.999)).tolist()
    if not (math.isfinite(low) and math.isfinite(high)):
        return -1.0, 1.0
    # Steps of the grid must stay apart in float32 too.
    least = 1e-4 * max(abs(low), abs(high)) or 1.0
    middle, half = (low + high) / 2, 0.58 * max(high - low, least)
    return middle - half, middle + half


@torch.no_grad()
def round_trip_error(flow: Flow, x: Tensor) -> float:
    """The largest |f(f⁻¹(x)) - x| of rows (N, D), in their standard deviations."""
    back = flow.bijector.forward(flow.bijector.inverse(x))
    std = x.std(0)
    return float(((back - x).abs() / std.where(std > 0, 1.0)).max())
