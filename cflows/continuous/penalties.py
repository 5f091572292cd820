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

Rate = Callable[[Local, Tensor], Tensor]


PENALTIES: dict[str, Rate] = {
    # ‖f‖² and ‖f‖₁.
    "kinetic": lambda local, products: local.value.square().sum(-1),
    "l1": lambda local, products: local.value.abs().sum(-1),
    # ‖J‖_F², estimated by Σ_k ‖J v_k‖².
    "frobenius": lambda local, products: products.square().sum((0, -1)),
    # ‖J f‖², the change of the velocity along its own direction; fᵀJ for a foreign module.
    "directional": lambda local, products: local.products(local.value[None])[0].square().sum(-1),
    # Σ_i J_ii², and Σ_{i≠j} J_ij², estimated.
    "diagonal_frobenius": lambda local, products: local.diagonal().square().sum(-1),
    "off_diagonal_frobenius": lambda local, products: (
        products.square().sum((0, -1)) - local.diagonal().square().sum(-1)
    ),
}
"""Name -> the rate: (field near its states, J v_k (k, N, D)) -> (N,)."""

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
        PENALTIES[name](local, products) * end_time ** (1 - _POWER.get(name, 2)) for name in names
    ]
