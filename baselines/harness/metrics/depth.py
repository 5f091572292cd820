"""The third comparison: what depth buys.

Depth is not one quantity. A discrete flow is deeper by layers, each one pass of a network; a
continuous flow by blocks, each one field and one solve, of as many evaluations as its dynamics ask
for. So a depth is always named with its unit, and stands beside the evaluations that it cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

from torch import Tensor

from baselines.harness.metrics import likelihood, scaling, timing
from baselines.harness.metrics.timing import Call
from baselines.models.model import Model, ModelError
from cflows import Adaptive, FixedGrid, Flow, log_likelihood

__all__ = ["END_TIME", "STEPS", "Stepped", "settings", "solver_steps"]

END_TIME = "ffjord-time"  # the model whose depth is how long its field acts: no more layers
STEPS = (1, 2, 4, 8, 16, 32)
STEPPED_ROWS = {False: 2000, True: 500}  # by whether it is quick
JUDGE = Adaptive("dopri5", rtol=1e-6, atol=1e-6)


class Stepped(TypedDict):
    """A trained flow on a fixed grid of rk4, of so many steps a block.

    Its test log-likelihood with the error over rows; the mean and the largest of a row's
    |log p - log p by an adaptive solve at 1e-6|; the round-trip error; what the rows cost.
    """

    steps: int
    test_log_prob: float
    test_log_prob_2se: float
    error_mean: float
    error_max: float
    round_trip_error: float
    density: Call
    sample: Call


def settings(model: Model, asked: Sequence[int] | None, *, deepest_only: bool = False) -> list[int]:
    """Return the depths at which a model is run, ascending.

    Args:
        model: the model.
        asked: what the user asked for, of every model alike; None for the model's own.
        deepest_only: whether one, the largest, will do.

    Raises:
        ModelError: a depth below 1.

    """
    depths = sorted(set(asked if asked is not None else model.depths))
    if not depths or depths[0] < 1:
        raise ModelError(f"depths must be whole numbers of at least 1, got {list(asked or ())}")
    return depths[-1:] if deepest_only else depths


def solver_steps(flow: Flow, test: Tensor, quick: bool = False) -> list[Stepped]:
    """What a trained continuous flow's likelihood and cost are on fixed grids of rk4.

    Args:
        flow: with at least one continuous part, in evaluation mode.
        test: (N, D); the first rows are scored.
        quick: fewer rows and grids, and one timing in place of several.

    """
    x = test[: STEPPED_ROWS[quick]]
    with flow.using(solver=JUDGE):
        true = log_likelihood(flow, x).double()
    records: list[Stepped] = []
    for steps in STEPS[::2] if quick else STEPS:
        with flow.using(solver=FixedGrid("rk4", steps)):
            log_prob = log_likelihood(flow, x).double()
            density, sample = timing.both(flow, x, scaling.limits(quick))
            error = (log_prob - true).abs()
            records.append(
                {
                    "steps": steps,
                    "test_log_prob": float(log_prob.mean()),
                    "test_log_prob_2se": 2 * float(log_prob.std()) / len(x) ** 0.5,
                    "error_mean": float(error.mean()),
                    "error_max": float(error.max()),
                    "round_trip_error": likelihood.round_trip_error(flow, x),
                    "density": density,
                    "sample": sample,
                }
            )
    return records
