"""Fixed maps fitted to the training rows, which a flow carries at its data end.

Their log-determinant is part of the density, so ``log_prob`` and ``sample`` speak the data's units.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .bijector import Bijector
from .elementwise import Affine
from .storage import register

__all__ = ["Whitening", "standardise", "whiten"]


def standardise(rows: Tensor) -> Affine:
    """Map of each column on its own: x = mean + std z.

    Args:
        rows: the training rows, (N, D), N at least 2.

    Raises:
        ValueError: a column is constant or not finite; the message names it.

    """
    mean, std = rows.double().mean(0), rows.double().std(0, correction=0)
    _check_spread(std)
    return Affine(mean.to(rows.dtype), std.to(rows.dtype))


def whiten(rows: Tensor, floor: float = 1e-8) -> Whitening:
    """Map to zero mean and identity covariance: x = mean + Σ^½ z.

    Σ^½ is the symmetric root, so that z stays as near to the standardised x as a white variable can
    (Kessy, Lewin and Strimmer 2018, "Optimal Whitening and Decorrelation": ZCA).

    Args:
        rows: the training rows, (N, D), N larger than D.
        floor: the least eigenvalue of the correlation matrix that counts as a direction.

    Raises:
        ValueError: a column is constant, not finite, or a linear combination of others.

    """
    exact = rows.double()
    mean, std = exact.mean(0), exact.std(0, correction=0)
    _check_spread(std)
    correlation = torch.cov(((exact - mean) / std).T, correction=0).reshape(len(std), -1)
    eigenvalues, vectors = torch.linalg.eigh(correlation)
    if float(eigenvalues[0]) < floor:
        raise ValueError(
            f"the columns are linearly dependent (least eigenvalue of their correlation "
            f"{float(eigenvalues[0]):.1e}): drop one, or standardise instead"
        )
    root, inverse_root = (vectors * eigenvalues**power @ vectors.T for power in (0.5, -0.5))
    return Whitening(
        mean.to(rows.dtype),
        (std[:, None] * root).to(rows.dtype),
        (inverse_root / std).to(rows.dtype),
        float(std.log().sum() + 0.5 * eigenvalues.log().sum()),
    )


@register
class Whitening(Bijector):
    """A fixed x = loc + A z, with log|det dx/dz| = log|det A|.

    Args:
        loc: (D,).
        matrix: A, (D, D).
        inverse_matrix: A⁻¹, (D, D), given so that no triangular solve is needed at run time.
        log_abs_det: log|det A|, computed in double precision by ``whiten``.

    """

    loc: Tensor
    matrix: Tensor
    inverse_matrix: Tensor
    log_abs_det: Tensor

    def __init__(
        self,
        loc: Sequence[float] | Tensor,
        matrix: Sequence[Sequence[float]] | Tensor,
        inverse_matrix: Sequence[Sequence[float]] | Tensor,
        log_abs_det: float,
    ) -> None:
        loc = torch.as_tensor(loc)
        super().__init__(len(loc))
        for name, value in (
            ("loc", loc),
            ("matrix", torch.as_tensor(matrix)),
            ("inverse_matrix", torch.as_tensor(inverse_matrix)),
            ("log_abs_det", torch.tensor(log_abs_det, dtype=loc.dtype)),
        ):
            self.register_buffer(name, value.detach().clone())

    def forward_and_log_det(
        self, z: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Loc + A z."""
        z, _ = self.broadcast(z, context)
        with torch.autocast(z.device.type, enabled=False):
            x = self.loc + z @ self.matrix.mT
        return x, self.log_abs_det.expand(z.shape[:-1])

    def inverse_and_log_det(
        self, x: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """A⁻¹ (x - loc)."""
        x, _ = self.broadcast(x, context)
        with torch.autocast(x.device.type, enabled=False):
            z = (x - self.loc) @ self.inverse_matrix.mT
        return z, -self.log_abs_det.expand(x.shape[:-1])


def _check_spread(std: Tensor) -> None:
    bad = (~(std.isfinite() & (std > 0))).nonzero().flatten().tolist()
    if bad:
        raise ValueError(f"column {bad[0]} of the rows is constant or not finite: drop it")
