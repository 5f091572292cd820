r"""What can be integrated along a path, to keep a field easy to solve.

Each penalty is a rate g(f, ∂f/∂x) ≥ 0 of one row, and its value ∫_0^T g dt. Finlay et al. 2020,
"How to train your neural ODE", weight ``kinetic`` and ``frobenius``; the others are those of the
FFJORD code. Where the trace is estimated, ‖J‖_F² = E‖J v‖² comes free with the probe.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from cflows.continuous.fields import Local

__all__ = ["PENALTIES", "rates"]

Rate = Callable[[Local, Tensor, Tensor], Tensor]


def _kinetic(local: Local, velocity: Tensor, products: Tensor) -> Tensor:
    """‖f‖²."""
    return velocity.square().sum(-1)


def _l1(local: Local, velocity: Tensor, products: Tensor) -> Tensor:
    """‖f‖₁."""
    return velocity.abs().sum(-1)


def _frobenius(local: Local, velocity: Tensor, products: Tensor) -> Tensor:
    """‖J‖_F², estimated by Σ_k ‖J v_k‖²."""
    return products.square().sum((0, -1))


def _directional(local: Local, velocity: Tensor, products: Tensor) -> Tensor:
    """‖J f‖², the change of the velocity along its own direction; fᵀJ for a foreign module."""
    return local.products(velocity.unsqueeze(0))[0].square().sum(-1)


def _diagonal_frobenius(local: Local, velocity: Tensor, products: Tensor) -> Tensor:
    """Σ_i J_ii²."""
    return local.diagonal().square().sum(-1)


def _off_diagonal_frobenius(local: Local, velocity: Tensor, products: Tensor) -> Tensor:
    """Σ_{i≠j} J_ij², estimated."""
    return _frobenius(local, velocity, products) - _diagonal_frobenius(local, velocity, products)


PENALTIES: dict[str, Rate] = {
    "kinetic": _kinetic,
    "l1": _l1,
    "frobenius": _frobenius,
    "directional": _directional,
    "diagonal_frobenius": _diagonal_frobenius,
    "off_diagonal_frobenius": _off_diagonal_frobenius,
}
"""Name -> the rate: (field near its states, velocity (N, D), J v_k (k, N, D)) -> (N,)."""

_PROBED = {"frobenius", "off_diagonal_frobenius"}
_POWER = {"l1": 1, "directional": 4}


def rates(
    names: tuple[str, ...], local: Local, probes: Tensor | None, spare: Tensor, end_time: Tensor
) -> list[Tensor]:
    """The rates dq/ds of the named penalties, ds = dt / T.

    Args:
        names: of ``PENALTIES``.
        local: the field T f near its states.
        probes: those of the trace, or None where it is exact.
        spare: probes to use in that case, one product more.
        end_time: T. A rate of degree p in f is T^p too large, and dt = T ds makes up for one T.

    """
    vectors = spare if probes is None else probes
    products = local.products(vectors) if _PROBED & set(names) else vectors
    return [
        PENALTIES[name](local, local.value, products) * end_time ** (1 - _POWER.get(name, 2))
        for name in names
    ]
