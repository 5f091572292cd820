"""A flow over the named columns of a table."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from .bijector import Bijector
from .flow import Flow
from .storage import register

__all__ = ["TableFlow"]


@register
class TableFlow(Flow):
    """A flow that knows what its features are called, also after ``save`` and ``load``.

    Args:
        bijector: f, noise to data.
        base: as ``Flow`` takes it.
        columns: D names, each its own; x0, x1, ... by default.

    Raises:
        ValueError: another number of names than features, or one name twice.

    Example:
        >>> from cflows import Affine, TableFlow
        >>> TableFlow(Affine([1.70, 70.0], [0.1, 9.0]), columns=["height", "weight"]).columns
        ('height', 'weight')

    """

    def __init__(
        self,
        bijector: Bijector,
        base: nn.Module | None = None,
        columns: Sequence[str] | None = None,
    ) -> None:
        super().__init__(bijector, base)
        if columns is None:
            columns = [f"x{i}" for i in range(bijector.features)]
        if len(columns) != bijector.features:
            raise ValueError(
                f"{len(columns)} column names for {bijector.features} features: give one each"
            )
        if twice := sorted({name for name in columns if list(columns).count(name) > 1}):
            raise ValueError(f"two columns are called {twice[0]!r}: give each its own name")
        self.columns = tuple(columns)
