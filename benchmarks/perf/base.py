"""What the suites share: flows of a few sizes, weights with a history, numbers that are numbers."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from baselines import IAF, MAF, NICE, NSF, RealNVP
from cflows import FFJORD, Flow

SIZES = {"2x64": (2, 64), "6x100": (6, 100), "43x512": (43, 512)}
"""D and H, the width of the two hidden layers."""

DISCRETE: dict[str, Callable[..., Flow]]
DISCRETE = {"maf": MAF, "iaf": IAF, "realnvp": RealNVP, "nice": NICE, "nsf": NSF}
FLOWS = ("ffjord", *DISCRETE)
WEIGHTS = ("initial", "trained")
LAYERS = 5
TRAINED = 10  # iterations: enough for weights that are no longer special, few enough for a setup


class Suite:
    """A suite over axes, named in its class line; asv reads ``params`` and ``param_names``."""

    timeout = 300
    params: list[tuple[object, ...]]
    param_names: list[str]

    def __init_subclass__(cls, **axes: tuple[object, ...]) -> None:
        super().__init_subclass__()
        cls.param_names, cls.params = list(axes), list(axes.values())


def flow_of(name: str, features: int, width: int, **settings: object) -> Flow:
    """The flow of this name, from a fixed seed, its last layers no longer zero."""
    torch.manual_seed(0)
    hidden = (width, width)
    flow = (
        FFJORD(features, hidden=hidden, **settings)
        if name == "ffjord"
        else DISCRETE[name](features, layers=LAYERS, hidden=hidden, **settings)
    )
    # At the identity a solve has nothing to do, and a sweep nothing to wait for.
    for part in flow.parameters():
        if not part.any():
            nn.init.normal_(part, std=0.05)
    return flow


def rows_of(features: int, count: int) -> Tensor:
    """Correlated rows with a bend, (count, D): what a flow has to do something about."""
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(count, features, generator=generator, dtype=torch.float64)
    mixed = noise + 0.5 * noise.roll(1, dims=1).square()
    return ((mixed - mixed.mean(0)) / mixed.std(0)).to(torch.get_default_dtype())


def iteration_of(flow: Flow, x: Tensor, rate: float = 1e-3) -> Callable[[], float]:
    """One training iteration of maximum likelihood, as ``fit`` does it; returns the loss."""
    optimizer = torch.optim.Adam(flow.parameters(), rate)
    flow.train()

    def iterate() -> float:
        optimizer.zero_grad()
        loss = -flow.log_prob(x).mean()
        loss.backward()
        flow.review()
        optimizer.step()
        return float(loss.detach())

    return iterate


def prepared(flow: Flow, x: Tensor, weights: str) -> Flow:
    """The flow with ``"initial"`` weights, or with those after a short training on the rows."""
    if weights == "trained":
        torch.manual_seed(2)
        iterate = iteration_of(flow, x)
        checked([iterate() for _ in range(TRAINED)][-1])
    return flow.eval()


def checked(value: float) -> float:
    """The value; ArithmeticError where it is not finite."""
    if not math.isfinite(value):
        raise ArithmeticError(f"a benchmark gave {value}: there is nothing to compare")
    return value
