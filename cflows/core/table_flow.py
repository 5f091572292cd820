"""A flow over the named columns of a table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from cflows.core.bijector import Bijector
from cflows.core.context import ContextNetwork
from cflows.core.flow import Flow

__all__ = ["Outside", "TableFlow"]


class Outside(NamedTuple):
    """How many rows lie outside of those that a flow was trained on.

    Attributes:
        rows: their number.
        beyond: of those, how many leave the range of the training rows in a column.
        far: how many leave one by more than it is wide, or hold no number.
        distance: from the range, of the row that leaves it most, in standard deviations of the
            training rows; negative where none does. Where rows are far, only columns count that
            they leave by more than their width.
        column: in which it does.

    """

    rows: int
    beyond: int
    far: int
    distance: float
    column: str

    def __str__(self) -> str:
        """What there is to say where some are far."""
        return (
            f"{self.far:,} of {self.rows:,} draws lie far outside of the training rows, the "
            f"furthest {self.distance:.3g} standard deviations, in {self.column!r}: fewer layers, "
            "a lower learning rate or more rows hold the tails"
        )


class TableFlow(Flow):
    """A flow that knows what its features are called, also after ``save`` and ``load``.

    A context is given in the table's units; the bijector and the base, or the context network that
    stands before them, see (context - loc) / scale.

    Args:
        bijector: f, noise to data.
        base: as ``Flow`` takes it.
        columns: D names, each its own; x0, x1, ... by default.
        context_columns: C names, likewise; c0, c1, ... by default.
        context_loc: (C,), what is subtracted from the context; 0 by default.
        context_scale: (C,), what it is divided by, positive; 1 by default.
        extent: (3, D), the lowest and the highest value of each column and its standard deviation
            in the training rows (``preprocessing.extent``), by which ``outside`` counts; None where
            they are not known.
        context_network: as ``Flow`` takes it.

    Raises:
        ValueError: another number of names or of values than features, or one name twice.

    Example:
        >>> from cflows import Affine, TableFlow
        >>> TableFlow(Affine([1.70, 70.0], [0.1, 9.0]), columns=["height", "weight"]).columns
        ('height', 'weight')

    """

    context_loc: Tensor
    context_scale: Tensor
    extent: Tensor | None

    def __init__(
        self,
        bijector: Bijector,
        base: nn.Module | None = None,
        columns: Sequence[str] | None = None,
        context_columns: Sequence[str] | None = None,
        context_loc: Sequence[float] | Tensor | None = None,
        context_scale: Sequence[float] | Tensor | None = None,
        extent: Sequence[Sequence[float]] | Tensor | None = None,
        context_network: ContextNetwork | None = None,
    ) -> None:
        super().__init__(bijector, base, context_network)
        d, c = self.features, self.context_features
        self.columns = _names(columns, d, "x", "features")
        self.context_columns = _names(context_columns, c, "c", "context features")
        names = [*self.columns, *self.context_columns]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two columns are called {twice[0]!r}: give each its own name")
        loc = torch.zeros(c) if context_loc is None else torch.as_tensor(context_loc)
        scale = torch.ones(c) if context_scale is None else torch.as_tensor(context_scale)
        if loc.shape != (c,) or scale.shape != (c,) or not bool((scale > 0).all()):
            raise ValueError(
                f"context_loc and context_scale must have shape ({c},), the scale positive"
            )
        self.register_buffer("context_loc", loc.detach().clone(), persistent=c > 0)
        self.register_buffer("context_scale", scale.detach().clone(), persistent=c > 0)
        known = None if extent is None else torch.as_tensor(extent).detach().clone()
        if known is not None and known.shape != (3, d):
            raise ValueError(f"extent must have shape (3, {d}), got {tuple(known.shape)}")
        self.register_buffer("extent", known)

    def outside(self, x: Tensor) -> Outside | None:
        """Count the rows that lie outside of the training rows, None where their extent is unknown.

        Args:
            x: (N, D), draws as a rule.

        Example:
            >>> import torch
            >>> from cflows import Affine, TableFlow
            >>> flow = TableFlow(Affine([0.0], [1.0]), extent=[[-2.0], [2.0], [1.0]])
            >>> flow.outside(torch.tensor([[0.0], [3.0], [-9.0]]))
            Outside(rows=3, beyond=2, far=1, distance=7.0, column='x0')

        """
        if self.extent is None:
            return None
        low, high, spread = self.extent.to(x)
        over = torch.maximum(x - high, low - x)
        far = ~(over <= high - low)
        distance = (over / spread).nan_to_num(nan=math.inf, posinf=math.inf)
        if bool(far.any()):
            distance = distance.where(far, -math.inf)
        furthest, column = distance.amax(0).max(0)
        return Outside(
            rows=len(x),
            beyond=int((over > 0).any(-1).sum()),
            far=int(far.any(-1).sum()),
            distance=float(furthest),
            column=self.columns[int(column)],
        )

    def seen(self, context: Tensor | None) -> Tensor | None:
        """(context - loc) / scale, or what the context network makes of it."""
        if context is None:
            return None
        return super().seen((context - self.context_loc) / self.context_scale)


def _names(names: Sequence[str] | None, count: int, letter: str, what: str) -> tuple[str, ...]:
    names = [f"{letter}{i}" for i in range(count)] if names is None else names
    if len(names) != count:
        raise ValueError(f"{len(names)} column names for {count} {what}: give one each")
    return tuple(names)
