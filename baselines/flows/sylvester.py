r"""Sylvester flows (van den Berg, Hasenclever, Tomczak and Welling 2018).

A planar map with M hidden units in place of one,

    x = z + Q R tanh(R̃ Qᵀz + b)                     (section 3)

where Q (D, M) has orthonormal columns and R, R̃ (M, M) are upper triangular. By Sylvester's
determinant identity the log-determinant costs M operations once the map is computed,

    log|det dx/dz| = Σ_i log(1 + R_ii R̃_ii tanh'(h_i)),   h = R̃ Qᵀz + b

and the map is invertible where each R_ii R̃_ii > -1. For the inverse put v = Qᵀz and
y = Qᵀx, so that y = v + R tanh(R̃v + b) is triangular: its last row is one increasing scalar
equation in v_M, the row before it one in v_{M-1} given v_M, and so on up.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from baselines.flows.planar import SMALLEST_SLOPE, START, Amortized, RootBijector
from baselines.flows.stack import stacked
from baselines.inversion.roots import MAX_ITERATIONS, tanh_slope
from cflows import Flow
from cflows.core.arguments import known
from cflows.core.bijector import Mapped

__all__ = ["ORTHOGONALS", "Sylvester", "SylvesterFlow"]

ORTHOGONALS = ("identity", "reversed", "householder")


class Sylvester(RootBijector):
    """x = z + Q R tanh(R̃ Qᵀz + b), with log|det dx/dz| = Σ_i log(1 + R_ii R̃_ii tanh'(h_i)).

    van den Berg et al. 2018, section 3. The diagonals of R and R̃ are √(1 - ε) tanh of free numbers,
    ε = 10⁻³, so that each product is above -1. The inverse solves M scalar equations, the last
    first: with h_i = R̃_ii v_i + e_i, and e_i known, h + R_ii R̃_ii tanh(h) = R̃_ii y_i + e_i for the
    rest y_i of row i.

    Args:
        features: D.
        context_features: C; the context shifts R, R̃ and b.
        hidden: M <= D, the hidden units; by default D.
        orthogonal: Q: ``"identity"``, the first M coordinates as they are, ``"reversed"``, the last
            M coordinates from last to first (the paper's triangular flows take these two in turn),
            or ``"householder"``, the first M columns of a product of M learned reflections.
        max_iterations: allowed to each scalar equation of the inverse.

    Raises:
        InversionError: by the inverse, where a row needs more than max_iterations.
        ValueError: M or Q is not among those above.

    Example:
        >>> import torch
        >>> from baselines import Sylvester
        >>> sylvester = Sylvester(5, hidden=2)
        >>> x, log_det = sylvester.forward_and_log_det(torch.ones(3, 5))
        >>> torch.allclose(sylvester.inverse(x), torch.ones(3, 5))
        True
        >>> sylvester.inversion_status.converged
        True

    """

    rows: Tensor
    columns: Tensor

    def __init__(
        self,
        features: int,
        *,
        context_features: int = 0,
        hidden: int | None = None,
        orthogonal: str = "householder",
        max_iterations: int = MAX_ITERATIONS,
    ) -> None:
        super().__init__(features, context_features, max_iterations)
        hidden = features if hidden is None else hidden
        if not 1 <= hidden <= features:
            raise ValueError(f"hidden must be within 1 to features={features}, got {hidden}")
        self.hidden, self.orthogonal = hidden, known("orthogonal", orthogonal, ORTHOGONALS)
        rows, columns = torch.triu_indices(hidden, hidden)
        self.register_buffer("rows", rows)
        self.register_buffer("columns", columns)
        outer, inner = START * torch.randn(len(rows)), torch.randn(len(rows)) / hidden**0.5
        start = torch.cat([outer, inner, torch.zeros(hidden)])
        self.parts = Amortized(start, context_features)
        if orthogonal == "householder":
            self.reflections = nn.Parameter(torch.randn(hidden, features))

    def forward_and_log_det(self, z: Tensor, context: Tensor | None = None) -> Mapped:
        """z + Q R tanh(R̃ Qᵀz + b)."""
        outer, inner, b = self._outer_inner_b(context)
        # In low precision the inverse would not be that of this map.
        with torch.autocast(z.device.type, enabled=False):
            q = self._q(z)
            t = torch.tanh(_product(inner, z @ q) + b)
            x = z + _product(outer, t) @ q.mT
        return x, _log_det(t, outer, inner)

    def inverse_and_log_det(self, x: Tensor, context: Tensor | None = None) -> Mapped:
        """x - Q R tanh(h), from the roots h of the rows, the last first."""
        outer, inner, b = self._outer_inner_b(context)
        with torch.autocast(x.device.type, enabled=False):
            q = self._q(x)
            t = self._activations(x @ q, outer, inner, b)
            z = x - _product(outer, t) @ q.mT
        return z, -_log_det(t, outer, inner)

    def _activations(self, y: Tensor, outer: Tensor, inner: Tensor, b: Tensor) -> Tensor:
        """tanh(h) (*B, M) at the point that the map takes to y, by back-substitution."""
        self.inversion_status = None
        v, t = y[..., :0], y[..., :0]
        for i in reversed(range(self.hidden)):
            rest = y[..., i] - (outer[..., i, i + 1 :] * t).sum(-1)
            known = b[..., i] + (inner[..., i, i + 1 :] * v).sum(-1)
            r, r_inner = outer[..., i, i], inner[..., i, i]
            t_i = torch.tanh(self._root(r_inner * rest + known, 1 + r * r_inner))
            t = torch.cat([t_i[..., None], t], dim=-1)
            v = torch.cat([(rest - r * t_i)[..., None], v], dim=-1)
        return t

    def _outer_inner_b(self, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """R and R̃ (*B, M, M), b (*B, M)."""
        size = len(self.rows)
        outer, inner, b = self.parts(context).split([size, size, self.hidden], dim=-1)
        return self._triangular(outer), self._triangular(inner), b

    def _triangular(self, entries: Tensor) -> Tensor:
        diagonal = (1 - SMALLEST_SLOPE) ** 0.5 * torch.tanh(entries)
        entries = torch.where(self.rows == self.columns, diagonal, entries)
        matrix = entries.new_zeros(*entries.shape[:-1], self.hidden, self.hidden)
        matrix[..., self.rows, self.columns] = entries
        return matrix

    def _q(self, like: Tensor) -> Tensor:
        """Q (D, M)."""
        q = torch.eye(self.features, dtype=like.dtype, device=like.device)
        if self.orthogonal == "reversed":
            q = q.flip(1)
        q = q[:, : self.hidden]
        if self.orthogonal == "householder":
            for reflection in nn.functional.normalize(self.reflections, dim=-1):
                q = q - 2 * torch.outer(reflection, reflection @ q)
        return q


class SylvesterFlow(Flow):
    """Sylvester maps in a row: a sample in one pass, a density in M scalar roots a layer.

    Args:
        features: D.
        context_features: C, 0 for an unconditional density.
        layers: K.
        hidden: M <= D, the hidden units of each layer; by default D.
        orthogonal: ``"householder"``, or ``"alternate"``: identity, reversed, identity, ..., which
            leaves the coordinates in the middle as they are where 2M < D.
        base: the distribution of z; by default the standard normal.

    Example:
        >>> import torch
        >>> from baselines import SylvesterFlow
        >>> SylvesterFlow(5, layers=2, hidden=3).log_prob(torch.zeros(3, 5)).shape
        torch.Size([3])

    """

    def __init__(
        self,
        features: int,
        *,
        context_features: int = 0,
        layers: int = 4,
        hidden: int | None = None,
        orthogonal: str = "householder",
        base: nn.Module | None = None,
    ) -> None:
        known("orthogonal", orthogonal, ("alternate", *ORTHOGONALS))
        kinds = ("identity", "reversed") if orthogonal == "alternate" else (orthogonal,)

        def layer(k: int) -> Sylvester:
            return Sylvester(
                features,
                context_features=context_features,
                hidden=hidden,
                orthogonal=kinds[k % len(kinds)],
            )

        super().__init__(stacked(features, layers, layer), base)


def _product(matrix: Tensor, vector: Tensor) -> Tensor:
    """(*B, M, M) or one (M, M) for all rows, and (*B, M) -> (*B, M)."""
    if matrix.dim() == 2:
        return vector @ matrix.mT
    return (matrix @ vector[..., None])[..., 0]


def _log_det(t: Tensor, outer: Tensor, inner: Tensor) -> Tensor:
    slopes = 1 + (outer.diagonal(dim1=-2, dim2=-1) * inner.diagonal(dim1=-2, dim2=-1))
    return tanh_slope(t, slopes).log().sum(-1)
