r"""Monotone splines through quantiles: what makes columns, or lengths of rows, those of a normal.

Between its knots a spline is the rational quadratic of ``cflows.bijectors.monotone``, beyond the
outer ones a straight line of their slope; both ways are closed forms. Nothing here is trained:
``cflows.gaussianise`` fits them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cflows.bijectors.monotone import in_bin
from cflows.core.bijector import Bijector, may_read

__all__ = ["Margins", "Radial"]


class _Spline(Bijector):
    """K knots a spline, as buffers: places x and values y, both ascending, slopes dy/dx > 0."""

    places: Tensor
    values: Tensor
    slopes: Tensor

    def __init__(self, features: int, places: Tensor, values: Tensor, slopes: Tensor) -> None:
        super().__init__(features)
        shape = places.shape
        if shape[-1] < 2 or values.shape != shape or slopes.shape != shape:
            raise ValueError(
                "places, values and slopes must have the same shape with 2 knots or more, got "
                f"{tuple(shape)}, {tuple(values.shape)} and {tuple(slopes.shape)}"
            )
        whole = torch.stack([places.diff(dim=-1), values.diff(dim=-1), slopes[..., 1:]])
        if may_read(whole) and not bool(
            (whole > 0).all() and whole.isfinite().all() and (slopes > 0).all()
        ):
            raise ValueError("places and values must ascend, and slopes be positive, all finite")
        for name, value in (("places", places), ("values", values), ("slopes", slopes)):
            self.register_buffer(name, value.detach().clone())

    def _map(self, inputs: Tensor, *, inverse: bool) -> tuple[Tensor, Tensor]:
        """y and log dy/dx of x, or the other way round, by row of knots: (R, N) each."""
        start = self.values if inverse else self.places
        slopes = self.slopes.reciprocal() if inverse else self.slopes
        inside = torch.minimum(torch.maximum(inputs, start[:, :1]), start[:, -1:])
        # A bin's number from 0 on; the inner knots alone, so that the ends fall in a bin.
        bins = torch.searchsorted(start[:, 1:-1].contiguous(), inside.detach(), right=True)
        corners = tuple(
            knots.gather(1, bins + side)
            for knots in (self.places, self.values, self.slopes)
            for side in (0, 1)
        )
        outputs, log_slope = in_bin(inside, corners, inverse=inverse)
        beyond = torch.where(inputs < start[:, :1], slopes[:, :1], slopes[:, -1:])
        return outputs + beyond * (inputs - inside), log_slope


class Margins(_Spline):
    """A monotone spline of each column: z_i = s_i(x_i), with log|det dz/dx| = Σ_i log s_i'(x_i).

    s_i is rational quadratic between the K knots (x, z) of column i and linear beyond them. Knots
    at quantiles of a column and of the standard normal make the column nearly normal: the copula,
    how columns hang together, is what is left to a flow.

    Args:
        places: x of each column's knots, ascending, (D, K).
        values: z of them, ascending, (D, K).
        slopes: dz/dx at them, positive, (D, K).

    Raises:
        ValueError: shapes that differ, or knots that do not ascend.

    Example:
        >>> import torch
        >>> from cflows import Margins
        >>> knots = torch.tensor([[0.0, 1.0, 3.0]]), torch.tensor([[-1.0, 0.0, 1.0]])
        >>> margins = Margins(*knots, torch.tensor([[1.0, 0.7, 0.5]]))
        >>> margins.inverse(torch.tensor([[1.0], [5.0]]))
        tensor([[0.],
                [2.]])

    """

    def __init__(self, places: Tensor, values: Tensor, slopes: Tensor) -> None:
        super().__init__(len(places), places, values, slopes)

    def forward_and_log_det(
        self, z: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """s⁻¹(z), a root of a quadratic."""
        return self._columns(z, inverse=True)

    def inverse_and_log_det(
        self, x: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """s(x)."""
        return self._columns(x, inverse=False)

    def _columns(self, rows: Tensor, *, inverse: bool) -> tuple[Tensor, Tensor]:
        outputs, log_slope = self._map(
            rows.reshape(-1, self.features).mT.contiguous(), inverse=inverse
        )
        return outputs.mT.reshape(rows.shape), log_slope.sum(0).reshape(rows.shape[:-1])


class Radial(_Spline):
    """A monotone map of each row's length: z = x g(r) / r with r = |x|.

        log|det dz/dx| = log g'(r) + (D - 1) log(g(r) / r)

    Knots at quantiles of the whitened rows' lengths and of the χ distribution of D degrees of
    freedom make the lengths those of a standard normal (Lyu and Simoncelli 2009, "Nonlinear
    Extraction of Independent Components of Natural Images Using Radial Gaussianization").
    The spline is one of logarithms, log g = s(log r): below the first knot, whose slope is 1, all
    rows are scaled alike, so that the map is smooth at 0; beyond the last one g is a power of r,
    as heavy tails ask for.

    Args:
        features: D.
        places: log r of the K knots, ascending, (K,).
        values: log g of them, ascending, (K,).
        slopes: d log g / d log r at them, positive, the first one 1, (K,).

    Raises:
        ValueError: shapes that differ, knots that do not ascend, or a first slope other than 1.

    Example:
        >>> import torch
        >>> from cflows import Radial
        >>> radial = Radial(2, torch.tensor([0.0, 1.0]), torch.tensor([0.0, 0.5]),
        ...                 torch.tensor([1.0, 0.5]))
        >>> radial.inverse(torch.tensor([[0.3, 0.4]]))  # of length 1/2, below the first knot
        tensor([[0.3000, 0.4000]])

    """

    def __init__(self, features: int, places: Tensor, values: Tensor, slopes: Tensor) -> None:
        if places.dim() != 1:
            raise ValueError(f"places must have shape (K,), got {tuple(places.shape)}")
        super().__init__(features, places[None], values[None], slopes[None])
        if may_read(slopes) and float(slopes[0]) != 1:
            raise ValueError(f"the first slope must be 1, got {float(slopes[0]):g}")

    def forward_and_log_det(
        self, z: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """z r / g(r), r from g(r) = |z|."""
        return self._scaled(z, inverse=True)

    def inverse_and_log_det(
        self, x: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """x g(r) / r."""
        return self._scaled(x, inverse=False)

    def _scaled(self, rows: Tensor, *, inverse: bool) -> tuple[Tensor, Tensor]:
        first = (self.values if inverse else self.places)[0, 0]
        # Below the first knot nothing depends on the length: neither 0 nor its gradient is NaN.
        squared = torch.linalg.vecdot(rows, rows).clamp(min=(2 * first).exp())
        log_length = 0.5 * squared.log()
        outputs, log_slope = self._map(log_length.reshape(1, -1), inverse=inverse)
        scale = outputs.reshape(log_length.shape) - log_length
        log_det = log_slope.reshape(log_length.shape) + self.features * scale
        return rows * scale.exp().unsqueeze(-1), log_det
