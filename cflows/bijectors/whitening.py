"""A fixed linear map."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cflows.core.bijector import Bijector, Mapped

__all__ = ["Whitening"]


class Whitening(Bijector):
    """A fixed x = loc + A z, with log|det dx/dz| = log|det A|.

    Args:
        loc: (D,).
        matrix: A, (D, D).
        inverse_matrix: A⁻¹, (D, D), given so that no triangular solve is needed at run time.
        log_abs_det: log|det A|, computed in double precision by ``whiten``.

    Example:
        >>> import torch
        >>> from cflows import Whitening
        >>> matrix, inverse = [[2.0, 0.0], [1.0, 1.0]], [[0.5, 0.0], [-0.5, 1.0]]
        >>> white = Whitening([0.0, 0.0], matrix, inverse, log_abs_det=0.6931)
        >>> white.forward_and_log_det(torch.ones(2))
        (tensor([2., 2.]), tensor(0.6931))

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

    def forward_and_log_det(self, z: Tensor, context: Tensor | None = None) -> Mapped:
        """loc + A z."""
        with torch.autocast(z.device.type, enabled=False):
            x = self.loc + z @ self.matrix.mT
        return x, self.log_abs_det.expand(z.shape[:-1])

    def inverse_and_log_det(self, x: Tensor, context: Tensor | None = None) -> Mapped:
        """A⁻¹ (x - loc)."""
        with torch.autocast(x.device.type, enabled=False):
            z = (x - self.loc) @ self.inverse_matrix.mT
        return z, -self.log_abs_det.expand(x.shape[:-1])
