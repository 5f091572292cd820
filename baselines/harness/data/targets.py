r"""Densities in several dimensions that are known up to a normaliser, which is known here.

    gaussian10    a normal in 10 columns, correlated, standard deviations from .1 to 3
    funnel10      Neal 2003, "Slice sampling", section 8: v ~ N(0, 9), x_i | v ~ N(0, exp v), i < 10
    manywell8     four double wells x^4 - 6 x² - x / 2 beside normals (Noé et al. 2019, "Boltzmann
                  generators"; Midgley et al. 2023, "Flow Annealed Importance Sampling Bootstrap"):
                  16 modes, of unequal weight
    mixture40     40 normals on the plane, at places drawn in [-40, 40]² (Midgley et al. 2023)

Each is given without its normaliser, so that an estimate of log Z has something to find.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from baselines.harness.data.dataset import DataError

__all__ = ["TARGETS", "Target", "target"]


@dataclass(frozen=True)
class Target:
    """An unnormalised density on R^D.

    Args:
        name: what tables call it.
        features: D.
        log_density: (*B, D) -> (*B,).
        log_normaliser: log Z.
        spread: standard deviation of a normal base that covers it.

    """

    name: str
    features: int
    log_density: Callable[[Tensor], Tensor]
    log_normaliser: float
    spread: float

    def log_prob(self, x: Tensor) -> Tensor:
        """Normalised, (*B, D) -> (*B,)."""
        return self.log_density(x) - self.log_normaliser


def target(name: str) -> Target:
    """Return the target of a name; DataError where it is unknown.

    Example:
        >>> round(target("funnel10").log_normaliser, 3)
        10.288

    """
    if name not in TARGETS:
        raise DataError(f"no target is called {name!r}; the targets are {', '.join(TARGETS)}")
    return TARGETS[name]


LOG_2PI = math.log(2 * math.pi)
WELLS = 4
MODES, SCALE = 40, math.log(1 + math.e)  # softplus(1), as in the paper's code


def _gaussian() -> Target:
    rng = np.random.default_rng(0)
    turn = np.linalg.qr(rng.standard_normal((10, 10)))[0]
    deviations = np.geomspace(0.1, 3.0, 10)
    precision = torch.from_numpy(turn @ np.diag(deviations**-2.0) @ turn.T)
    mean = torch.from_numpy(rng.standard_normal(10))

    def log_density(x: Tensor) -> Tensor:
        apart = x - mean.to(x)
        return -0.5 * (apart @ precision.to(x) * apart).sum(-1)

    return Target("gaussian10", 10, log_density, 5 * LOG_2PI + float(np.log(deviations).sum()), 2.0)


def _funnel_log_density(x: Tensor) -> Tensor:
    v, rest = x[..., 0], x[..., 1:]
    # The inner normals with their width, which v decides; without the constants.
    inner = 0.5 * rest.square().sum(-1) * torch.exp(-v) + 0.5 * rest.shape[-1] * v
    return -v.square() / 18 - inner


def _many_well_log_density(x: Tensor) -> Tensor:
    well, other = x[..., 0::2], x[..., 1::2]
    return (-well.pow(4) + 6 * well.square() + 0.5 * well - 0.5 * other.square()).sum(-1)


def _log_well() -> float:
    """Log ∫ exp(-x^4 + 6 x² + x / 2) dx, by the trapezoidal rule, exact to rounding."""
    x = np.linspace(-6.0, 6.0, 20_001)
    values = -(x**4) + 6 * x**2 + 0.5 * x
    return float(np.log(np.exp(values - values.max()).sum() * (x[1] - x[0])) + values.max())


def _mixture() -> Target:
    rng = np.random.default_rng(0)
    places = torch.from_numpy(rng.uniform(-40.0, 40.0, (MODES, 2)))

    def log_density(x: Tensor) -> Tensor:
        apart = (x.unsqueeze(-2) - places.to(x)).square().sum(-1)
        return torch.logsumexp(-0.5 * apart / SCALE**2, -1)

    return Target(
        "mixture40", 2, log_density, LOG_2PI + 2 * math.log(SCALE) + math.log(MODES), 30.0
    )


TARGETS: Mapping[str, Target] = {
    made.name: made
    for made in (
        _gaussian(),
        Target("funnel10", 10, _funnel_log_density, 5 * LOG_2PI + math.log(3.0), 2.0),
        Target(
            "manywell8",
            2 * WELLS,
            _many_well_log_density,
            WELLS * (_log_well() + 0.5 * LOG_2PI),
            2.0,
        ),
        _mixture(),
    )
}
