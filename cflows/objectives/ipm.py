r"""Integral probability metrics: distances of two samples, where no density is evaluated.

A flow that is only sampled from can be trained by them. Each batch brings N rows, and the flow
draws N. With a context the joint samples (x, c) are compared, the same c on both sides.

Weights of the rows make these a weighted sample; with a context the draws, one for each row's, have
the same weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cflows.core.density import Density
from cflows.objectives.base import Batch, Objective

__all__ = ["MMD", "SlicedWasserstein", "mmd", "sliced_wasserstein"]


class MMD(Objective):
    """Squared maximum mean discrepancy, by ``mmd``.

        MMD² = E k(x, x') + E k(y, y') - 2 E k(x, y),  k(x, y) = mean_σ exp(-|x - y|² / 2σ²)

    (Gretton et al. 2012, "A Kernel Two-Sample Test", lemma 6). Zero only where the two laws agree;
    the estimate is unbiased, so it is negative at times. Columns of unlike units want
    standardisation first, since the kernels see distances.

    Args:
        widths: the σ, in the data's units; None for the median heuristic: ``factors`` times the
            median distance between the rows of the batch (section 8 there, of the rows alone so
            that the kernel does not follow the flow, each counted once whatever its weight).
        factors: of the median.

    Raises:
        ValueError: a width or factor is not positive.

    Example:
        >>> import torch
        >>> from cflows import MMD, Affine, Flow
        >>> _ = torch.manual_seed(0)
        >>> rows, flow = torch.randn(500, 2), Flow(Affine([0.0, 0.0], [1.0, 1.0]))
        >>> near = MMD()(flow, (rows, None))
        >>> far = MMD()(flow, (rows + 3, None))
        >>> bool(near < 0.01), bool(far > 0.5)
        (True, True)

    """

    def __init__(
        self,
        widths: Sequence[float] | None = None,
        *,
        factors: Sequence[float] = (0.25, 0.5, 1.0, 2.0, 4.0),
    ) -> None:
        super().__init__()
        for name, values in (("widths", widths), ("factors", factors)):
            if values is not None and (not values or min(values) <= 0):
                raise ValueError(f"{name} must list positive numbers, got {values}")
        self.widths = None if widths is None else tuple(widths)
        self.factors = tuple(factors)

    def forward(self, flow: Density, batch: Batch, weights: Tensor | None = None) -> Tensor:
        """The unbiased estimate of MMD² from N rows and N draws, N at least 2."""
        drawn, rows = _samples(flow, batch)
        widths = self.widths or median_distance(rows) * rows.new_tensor(self.factors)
        paired = batch[1] is not None
        of_draws = weights if paired else None
        return mmd(drawn, rows, widths, paired=paired, x_weights=of_draws, y_weights=weights)


class SlicedWasserstein(Objective):
    """Sliced Wasserstein distance, to the p-th power, by ``sliced_wasserstein``.

        SW_p^p = E_θ ∫_0^1 |F_θ⁻¹(t) - G_θ⁻¹(t)|^p dt,   θ uniform on the sphere

    (Bonneel et al. 2015, "Sliced and Radon Wasserstein Barycenters of Measures"; Kolouri et al.
    2019, "Generalized Sliced Wasserstein Distances", equation 7). On a line optimal transport pairs
    sorted values, so a direction costs a sort. The minimum over samples is a little narrower than
    the data, by the noise of N order statistics: large batches.

    Args:
        projections: directions a step.
        order: p, at least 1.

    Raises:
        ValueError: projections or order are less than 1.

    Example:
        >>> import torch
        >>> from cflows import Affine, Flow, SlicedWasserstein
        >>> _ = torch.manual_seed(0)
        >>> rows, flow = torch.randn(500, 2), Flow(Affine([0.0, 0.0], [1.0, 1.0]))
        >>> near = SlicedWasserstein()(flow, (rows, None))
        >>> far = SlicedWasserstein()(flow, (rows + 3, None))  # |shift|² / 2 = 9
        >>> bool(near < 0.1), bool(7 < far < 11)
        (True, True)

    """

    def __init__(self, projections: int = 64, *, order: float = 2.0) -> None:
        super().__init__()
        if projections < 1 or order < 1:
            raise ValueError(
                f"projections and order must be at least 1, got {projections} and {order}"
            )
        self.projections, self.order = projections, order

    def forward(self, flow: Density, batch: Batch, weights: Tensor | None = None) -> Tensor:
        """SW_p^p between N rows and N draws; a batch counts by the mean of its weights."""
        drawn, rows = _samples(flow, batch)
        directions = torch.randn(
            self.projections, rows.shape[1], dtype=rows.dtype, device=rows.device
        )
        directions = directions / directions.norm(dim=1, keepdim=True)
        if weights is None:
            return sliced_wasserstein(drawn, rows, directions, self.order)
        of_draws = torch.ones_like(weights) if batch[1] is None else weights
        return weights.mean() * weighted_sliced_wasserstein(
            drawn, rows, of_draws, weights, directions, self.order
        )


def mmd(
    x: Tensor,
    y: Tensor,
    widths: Sequence[float] | Tensor,
    *,
    paired: bool = False,
    x_weights: Tensor | None = None,
    y_weights: Tensor | None = None,
) -> Tensor:
    """The unbiased estimate of MMD² between two samples (Gretton et al. 2012, equation 3).

    Args:
        x: (M, D), M at least 2.
        y: (N, D), N at least 2.
        widths: σ of the Gaussian kernels, whose mean is the kernel.
        paired: whether x_i and y_i depend on one another, with M = N: k(x_i, y_i) is then left out
            (equation 4).
        x_weights: (M,), of mean one over what x was taken from; a pair of rows counts by the
            product of its weights, over M (M - 1) as without them.
        y_weights: (N,), likewise.

    Raises:
        ValueError: a sample has fewer than two rows.

    Example:
        >>> import torch
        >>> from cflows.objectives.ipm import mmd
        >>> x = torch.linspace(-2, 2, 50).unsqueeze(1)
        >>> mmd(x, x + 3, [1.0]) > mmd(x, x + 1, [1.0])
        tensor(True)

    """
    if min(len(x), len(y)) < 2:
        raise ValueError(f"MMD needs two rows a sample, got {len(x)} and {len(y)}: larger batches")
    # Distances are differences of squares: near the origin they lose the fewest digits.
    centre = y.mean(0).detach()
    x, y = x - centre, y - centre
    rates = 0.5 / torch.as_tensor(widths, dtype=x.dtype, device=x.device).square()
    along_x, along_y = _kernel(x, x, rates), _kernel(y, y, rates)
    across = _weighted(_kernel(x, y, rates), x_weights, y_weights)
    same = _mean_off_diagonal(_weighted(along_x, x_weights, x_weights))
    same = same + _mean_off_diagonal(_weighted(along_y, y_weights, y_weights))
    return same - 2 * (_mean_off_diagonal(across) if paired else across.mean())


def sliced_wasserstein(x: Tensor, y: Tensor, directions: Tensor, order: float = 2.0) -> Tensor:
    """Mean over directions (K, D) of |sorted x·θ - sorted y·θ|^p, for x and y (N, D)."""
    along_x, along_y = (sample @ directions.mT for sample in (x, y))
    gap = along_x.sort(dim=0).values - along_y.sort(dim=0).values
    return (gap.square() if order == 2 else gap.abs().pow(order)).mean()


def weighted_sliced_wasserstein(
    x: Tensor,
    y: Tensor,
    x_weights: Tensor,
    y_weights: Tensor,
    directions: Tensor,
    order: float = 2.0,
) -> Tensor:
    """``sliced_wasserstein`` of x (M, D) and y (N, D), each row by its share of the weights.

    On a line the quantile functions are steps: between two neighbouring jumps of either the gap is
    one number.

    Example:
        >>> import torch
        >>> from cflows.objectives.ipm import weighted_sliced_wasserstein
        >>> x, y = torch.tensor([[0.0], [0.0], [3.0]]), torch.tensor([[0.0], [3.0]])
        >>> shares = torch.ones(3), torch.tensor([2.0, 1.0])
        >>> weighted_sliced_wasserstein(x, y, *shares, torch.ones(1, 1))
        tensor(0.)

    """
    steps = []
    for sample, weights in ((x, x_weights), (y, y_weights)):
        values, at = (sample @ directions.mT).T.contiguous().sort(dim=1)
        least = torch.finfo(weights.dtype).tiny
        ends = weights[at].cumsum(1) / weights.sum().clamp(min=least)
        steps.append((values, ends.contiguous()))
    cuts = torch.cat([ends for _, ends in steps], dim=1).sort(dim=1).values
    pieces = cuts.diff(dim=1, prepend=torch.zeros_like(cuts[:, :1]))
    middles = (cuts - pieces / 2).contiguous()
    along_x, along_y = (
        values.gather(1, torch.searchsorted(ends, middles).clamp(max=values.shape[1] - 1))
        for values, ends in steps
    )
    gap = along_x - along_y
    costs = gap.square() if order == 2 else gap.abs().pow(order)
    return (pieces * costs).sum(1).mean()


@torch.no_grad()
def median_distance(rows: Tensor, most: int = 512) -> Tensor:
    """The median of |x_i - x_j| over i < j, of the first ``most`` rows.

    Where most of the rows are copies of one another it is zero, and the mean takes its place.
    """
    distances = torch.pdist(rows[:most])
    middle = distances.median()
    # The least width whose square, which divides, is still a number.
    least = torch.finfo(rows.dtype).tiny ** 0.25
    return torch.where(middle > 0, middle, distances.mean()).clamp(min=least)


def _samples(flow: Density, batch: Batch) -> tuple[Tensor, Tensor]:
    """Draws and rows, as many of each, with the context as further columns."""
    rows, context = batch
    if context is None:
        return flow.rsample((len(rows),)), rows
    drawn = flow.rsample((), context)
    return torch.cat([drawn, context], dim=1), torch.cat([rows, context], dim=1)


def _kernel(x: Tensor, y: Tensor, rates: Tensor) -> Tensor:
    """Mean over rates of exp(-rate |x_i - y_j|²), (M, N)."""
    squares = x.square().sum(1, keepdim=True) + y.square().sum(1) - 2 * x @ y.mT
    squares = squares.clamp(min=0)
    total = torch.exp(-rates[0] * squares)
    for rate in rates[1:]:
        total = total + torch.exp(-rate * squares)
    return total / len(rates)


def _weighted(kernel: Tensor, of_rows: Tensor | None, of_columns: Tensor | None) -> Tensor:
    kernel = kernel if of_rows is None else kernel * of_rows.unsqueeze(1)
    return kernel if of_columns is None else kernel * of_columns


def _mean_off_diagonal(kernel: Tensor) -> Tensor:
    return (kernel.sum() - kernel.diagonal().sum()) / (len(kernel) * (len(kernel) - 1))
