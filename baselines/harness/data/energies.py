"""Two-dimensional targets given by a log-density alone, for training without rows.

The four energies of Rezende and Mohamed 2015, "Variational Inference with Normalizing Flows",
table 1, and four densities whose normaliser is known. p(z) = exp(-U(z)) / Z throughout.

As printed, U2, U3 and U4 have no Z: they do not depend on how far out z1 is, or nearly so, and
exp(-U) is not integrable. The paper's pictures show [-4, 4]². Here these three have a wall, the
quadratic Σ_i ((|z_i| - 4)₊ / 0.4)² / 2, which leaves the square as it is printed. U1 needs none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from baselines.harness.data.dataset import DataError

__all__ = ["ENERGIES", "Energy", "GridKL", "energy", "grid_kl"]

Box = tuple[tuple[float, float], tuple[float, float]]

EDGE, WALL = 4.0, 0.4
CELLS = 2000


@dataclass(frozen=True)
class Energy:
    """An unnormalised density exp(-U(z)) on the plane.

    Args:
        name: what tables call it.
        potential: U, (*B, 2) -> (*B,).
        box: the least and greatest z1, then z2, beyond which there is less than 1e-5 of the mass.
        known_log_normaliser: log Z where it has a closed form.

    """

    name: str
    potential: Callable[[Tensor], Tensor]
    box: Box
    known_log_normaliser: float | None = None

    def log_density(self, z: Tensor) -> Tensor:
        """-U(z), (*B, 2) -> (*B,): what ``ReverseKL`` takes."""
        return -self.potential(z)

    @cached_property
    def log_normaliser(self) -> float:
        """Log Z, in closed form or by the trapezoidal rule over the box, in double precision."""
        known = self.known_log_normaliser
        return self.quadrature() if known is None else known

    def log_prob(self, z: Tensor) -> Tensor:
        """-U(z) - log Z, (*B, 2) -> (*B,)."""
        return self.log_density(z) - self.log_normaliser

    def quadrature(self, cells: int = CELLS) -> float:
        """Log ∫ exp(-U) over the box, on cells² cells."""
        points, log_weights = grid(self.box, cells)
        rows = zip(points, log_weights, strict=True)
        logs = [torch.logsumexp(self.log_density(row) + weight, 0) for row, weight in rows]
        return float(torch.stack(logs).logsumexp(0))


class GridKL(NamedTuple):
    """KL(q || p) over a box, in nats, and how much of q the box holds."""

    kl: float
    mass: float


def energy(name: str) -> Energy:
    """Return the target of a name; DataError where it is unknown.

    Example:
        >>> round(energy("gaussian").log_normaliser, 4)
        1.3271

    """
    if name not in ENERGIES:
        raise DataError(f"no energy is called {name!r}; the energies are {', '.join(ENERGIES)}")
    return ENERGIES[name]


@torch.no_grad()
def grid_kl(
    log_prob: Callable[[Tensor], Tensor],
    target: Energy,
    *,
    box: Box | None = None,
    cells: int = 400,
    dtype: torch.dtype = torch.float32,
) -> GridKL:
    """KL(q || p) = ∫ q (log q - log p) by the trapezoidal rule.

    Args:
        log_prob: log q, (N, 2) -> (N,), such as a flow's.
        target: p.
        box: where to integrate; by default the target's box. What q has outside does not count:
            look at the mass, which is 1 where there is nothing.
        cells: in each direction.
        dtype: of the points that log q is given.

    Example:
        >>> target = energy("banana")
        >>> result = grid_kl(target.log_prob, target)
        >>> round(result.kl, 6), round(result.mass, 4)
        (0.0, 1.0)

    """
    points, log_weights = grid(target.box if box is None else box, cells)
    kl = mass = 0.0
    for row, log_weight in zip(points, log_weights, strict=True):
        log_q = log_prob(row.to(dtype)).double()
        share = torch.exp(log_q + log_weight)
        # Where q is zero its share is zero, whatever log q - log p says.
        gap = torch.where(share > 0, log_q - target.log_prob(row), 0.0)
        kl, mass = kl + float((share * gap).sum()), mass + float(share.sum())
    return GridKL(kl, mass)


def grid(box: Box, cells: int) -> tuple[Tensor, Tensor]:
    """Points (cells + 1, cells + 1, 2) and the trapezoidal rule's log-weights, in float64."""
    axes, weights = [], []
    for low, high in box:
        axes.append(torch.linspace(low, high, cells + 1, dtype=torch.float64))
        weight = torch.full((cells + 1,), (high - low) / cells, dtype=torch.float64)
        weight[[0, -1]] /= 2
        weights.append(weight.log())
    points = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
    return points, weights[0][:, None] + weights[1]


def _u1(z: Tensor) -> Tensor:
    radius: Tensor = z.norm(dim=-1)
    ring = 0.5 * ((radius - 2) / 0.4).square()
    return ring - torch.logaddexp(_log_bump(z[..., 0] - 2, 0.6), _log_bump(z[..., 0] + 2, 0.6))


def _u2(z: Tensor) -> Tensor:
    return 0.5 * ((z[..., 1] - _w1(z)) / 0.4).square() + _wall(z)


def _u3(z: Tensor) -> Tensor:
    above = z[..., 1] - _w1(z)
    dip = 3 * torch.exp(_log_bump(z[..., 0] - 1, 0.6))
    return _wall(z) - torch.logaddexp(_log_bump(above, 0.35), _log_bump(above + dip, 0.35))


def _u4(z: Tensor) -> Tensor:
    above = z[..., 1] - _w1(z)
    step = 3 * torch.sigmoid((z[..., 0] - 1) / 0.3)
    return _wall(z) - torch.logaddexp(_log_bump(above, 0.4), _log_bump(above + step, 0.35))


def _w1(z: Tensor) -> Tensor:
    return torch.sin(2 * math.pi * z[..., 0] / 4)


def _log_bump(distance: Tensor, width: float) -> Tensor:
    return -0.5 * (distance / width).square()


def _wall(z: Tensor) -> Tensor:
    return 0.5 * (F.relu(z.abs() - EDGE) / WALL).square().sum(-1)


def _gaussian(z: Tensor) -> Tensor:
    """Variances 1 and correlation 0.8."""
    a, b = z[..., 0], z[..., 1]
    return 0.5 * (a.square() - 1.6 * a * b + b.square()) / 0.36


def _mixture(z: Tensor) -> Tensor:
    """Three normals of width 0.5, 2 from the origin, with weights 1, 2 and 3."""
    angle = 2 * math.pi / 3 * torch.arange(3, dtype=z.dtype, device=z.device)
    centres = 2 * torch.stack([torch.cos(angle), torch.sin(angle)], dim=-1)
    weights = torch.arange(1, 4, dtype=z.dtype, device=z.device)
    squares = (z.unsqueeze(-2) - centres).square().sum(-1)
    return -torch.logsumexp(weights.log() - squares / 0.5, dim=-1)


def _banana(z: Tensor) -> Tensor:
    """Haario et al. 1999: z1 ~ N(0, 1), z2 - (z1² - 1) ~ N(0, 0.5²)."""
    a, b = z[..., 0], z[..., 1]
    return 0.5 * a.square() + 0.5 * ((b - a.square() + 1) / 0.5).square()


def _funnel(z: Tensor) -> Tensor:
    """Neal 2003, in two dimensions and of a milder slope: z1 ~ N(0, 1), z2 ~ N(0, exp(z1))."""
    a, b = z[..., 0], z[..., 1]
    return 0.5 * a.square() + 0.5 * b.square() * torch.exp(-a) + 0.5 * a


_SQUARE: Box = ((-7.0, 7.0), (-7.0, 7.0))
_LOG_2PI = math.log(2 * math.pi)

ENERGIES: Mapping[str, Energy] = {
    target.name: target
    for target in (
        Energy("u1", _u1, _SQUARE),
        Energy("u2", _u2, _SQUARE),
        Energy("u3", _u3, _SQUARE),
        Energy("u4", _u4, _SQUARE),
        Energy("gaussian", _gaussian, _SQUARE, _LOG_2PI + math.log(0.6)),
        Energy("mixture", _mixture, _SQUARE, _LOG_2PI + math.log(6 * 0.25)),
        Energy("banana", _banana, ((-6.0, 6.0), (-5.0, 36.0)), _LOG_2PI + math.log(0.5)),
        Energy("funnel", _funnel, ((-6.0, 6.0), (-60.0, 60.0)), _LOG_2PI),
    )
}
