"""A flow over the named columns of a table."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .bijector import Bijector
from .flow import Flow
from .storage import register

__all__ = ["TableFlow"]


@register
class TableFlow(Flow):
    """A flow that knows what its features are called, also after ``save`` and ``load``.

    A context is given in the table's units; the bijector and the base see (context - loc) / scale.

    Args:
        bijector: f, noise to data.
        base: as ``Flow`` takes it.
        columns: D names, each its own; x0, x1, ... by default.
        context_columns: C names, likewise; c0, c1, ... by default.
        context_loc: (C,), what is subtracted from the context; 0 by default.
        context_scale: (C,), what it is divided by, positive; 1 by default.

    Raises:
        ValueError: another number of names or of values than features, or one name twice.

    Example:
        >>> from cflows import Affine, TableFlow
        >>> TableFlow(Affine([1.70, 70.0], [0.1, 9.0]), columns=["height", "weight"]).columns
        ('height', 'weight')

    """

    context_loc: Tensor
    context_scale: Tensor

    def __init__(
        self,
        bijector: Bijector,
        base: nn.Module | None = None,
        columns: Sequence[str] | None = None,
        context_columns: Sequence[str] | None = None,
        context_loc: Sequence[float] | Tensor | None = None,
        context_scale: Sequence[float] | Tensor | None = None,
    ) -> None:
        super().__init__(bijector, base)
        d, c = bijector.features, bijector.context_features
        self.columns = _names(columns, d, "x", "features")
        self.context_columns = _names(context_columns, c, "c", "context features")
        _refuse_twice([*self.columns, *self.context_columns])
        loc = torch.zeros(c) if context_loc is None else torch.as_tensor(context_loc)
        scale = torch.ones(c) if context_scale is None else torch.as_tensor(context_scale)
        if loc.shape != (c,) or scale.shape != (c,) or not bool((scale > 0).all()):
            raise ValueError(
                f"context_loc and context_scale must have shape ({c},), the scale positive"
            )
        self.register_buffer("context_loc", loc.detach().clone(), persistent=c > 0)
        self.register_buffer("context_scale", scale.detach().clone(), persistent=c > 0)

    def trajectory(
        self, start: Tensor, times: Sequence[float], context: Tensor | None = None
    ) -> Tensor:
        """As ``Flow.trajectory``; the context in the table's units."""
        return super().trajectory(start, times, self._standardised(context))

    def _check(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor | None]:
        x, context = super()._check(x, context)
        return x, self._standardised(context)

    def _standardised(self, context: Tensor | None) -> Tensor | None:
        return None if context is None else (context - self.context_loc) / self.context_scale


def _names(given: Sequence[str] | None, count: int, letter: str, what: str) -> tuple[str, ...]:
    names = [f"{letter}{i}" for i in range(count)] if given is None else given
    if len(names) != count:
        raise ValueError(f"{len(names)} column names for {count} {what}: give one each")
    return tuple(names)


def _refuse_twice(names: Sequence[str]) -> None:
    if twice := sorted({name for name in names if list(names).count(name) > 1}):
        raise ValueError(f"two columns are called {twice[0]!r}: give each its own name")
