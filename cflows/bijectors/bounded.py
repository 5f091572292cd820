"""A map of chosen columns into their bounds: the data end of a flow of mixed columns."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.distributions import constraints
from torch.nn import functional as F

from cflows.bijectors.elementwise import Elementwise, box
from cflows.core.within import within

__all__ = ["Bounded"]

Bound = float | None


class Bounded(Elementwise):
    """Each column within bounds of its own, or free.

        l < x < ∞:   x = l + exp(z),         log dx/dz = z
        -∞ < x < u:  x = u - exp(-z),        log dx/dz = -z
        l < x < u:   x = l + (u - l) σ(z),   log dx/dz = log(u - l) + log σ(z) + log σ(-z)
        free:        x = z

    ``forward`` never rounds to a bound: the last numbers of the dtype inside are the outermost
    values. So a draw is inside, and has a density; of one that is held there, ``log_prob`` is the
    density at that value, and differs from the one drawn with it, that of its z, by a few nats (3.4
    with z of deviation 5 above a bound of 100, in float32). ``inverse`` takes a value on a
    bound for the number next to it, since float32 rounds there what lies within 3e-8 of 1.

    Args:
        lower: l of each of the D columns, None where there is none.
        upper: u of each, likewise.

    Raises:
        ValueError: bounds that leave no room; (in evaluation mode) ``inverse`` was given a value
            outside of them.

    Example:
        >>> import torch
        >>> from cflows import Bounded
        >>> waiting_and_share = Bounded([0.0, 0.0], [None, 1.0])
        >>> waiting_and_share(torch.tensor([0.0, 0.0]))
        tensor([1.0000, 0.5000])

    """

    low: Tensor
    high: Tensor

    def __init__(self, lower: Sequence[Bound], upper: Sequence[Bound]) -> None:
        if len(lower) != len(upper):
            raise ValueError(
                f"lower has {len(lower)} bounds, upper {len(upper)}: give one each a column, None "
                "where there is none"
            )
        super().__init__(len(lower))
        lows = [-math.inf if bound is None else float(bound) for bound in lower]
        highs = [math.inf if bound is None else float(bound) for bound in upper]
        self._ends = (lows, highs)  # as they were given, whatever the dtype
        low, high = torch.tensor(lows), torch.tensor(highs)
        for column, (a, b) in enumerate(zip(low.tolist(), high.tolist(), strict=True)):
            if not a < b:
                raise ValueError(f"column {column} has no room between {a:g} and {b:g}")
        self.register_buffer("low", low)
        self.register_buffer("high", high)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Bounded:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if not self.low.is_meta:  # rounded anew: 0.7 in float32 is another bound in float64
            lows, highs = self._ends
            self.low, self.high = self.low.new_tensor(lows), self.high.new_tensor(highs)
        return self

    @property
    def codomain(self) -> constraints.Constraint:
        """The box of the bounds."""
        return box(self.low, self.high)

    def value(self, z: Tensor) -> Tensor:
        """The value inside of the bounds."""
        below, above, both = self._kinds()
        low, high = (torch.where(end.isfinite(), end, 0) for end in (self.low, self.high))
        # Where another branch is taken, its argument is zero: an overflow would spoil gradients.
        most = math.log(torch.finfo(z.dtype).max)
        distance = torch.where(below, z, torch.where(above, -z, 0)).clamp(max=most).exp()
        x = torch.where(below, low + distance, torch.where(above, high - distance, z))
        return torch.where(both, low + (high - low) * torch.sigmoid(z), x)

    def root(self, x: Tensor) -> Tensor:
        """log(x - l), -log(u - x), log(x - l) - log(u - x), or x."""
        below, above, both = self._kinds()
        from_low = torch.where(below | both, x - self.low, 1).log()
        from_high = torch.where(above | both, self.high - x, 1).log()
        return torch.where(below | above | both, from_low - from_high, x)

    def log_slope(self, z: Tensor, x: Tensor) -> Tensor:
        """The columns' log dx/dz."""
        below, above, both = self._kinds()
        slope = torch.where(below, z, torch.where(above, -z, 0))
        width = torch.where(both, self.high - self.low, 1)
        return torch.where(both, F.logsigmoid(z) + F.logsigmoid(-z) + width.log(), slope)

    def _within(self, x: Tensor) -> Tensor:
        x = within(
            x,
            (x >= self.low) & (x <= self.high),
            self.forward(torch.zeros_like(self.low)),
            "{value:g} is outside of the bounds of its column: widen them, or drop these rows",
            check=not self.training,
        )
        return self._inside(x)

    def _inside(self, x: Tensor) -> Tensor:
        """Held at the outermost numbers inside; beside zero the least that is not subnormal."""
        tiny = torch.finfo(self.low.dtype).tiny
        infinity = torch.full_like(self.low, math.inf)
        low = torch.maximum(torch.nextafter(self.low, infinity), self.low + tiny)
        high = torch.minimum(torch.nextafter(self.high, -infinity), self.high - tiny)
        free = ~(self.low.isfinite() | self.high.isfinite())
        return x.clamp(torch.where(free, -infinity, low), torch.where(free, infinity, high))

    def _kinds(self) -> tuple[Tensor, Tensor, Tensor]:
        """Which columns are bounded from below alone, from above alone, and twice: (D,) each."""
        has_low, has_high = self.low.isfinite(), self.high.isfinite()
        return has_low & ~has_high, has_high & ~has_low, has_low & has_high
