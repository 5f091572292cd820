"""Widths of hidden layers for a given number of parameters, so that models compare at equal size.

A number counts every entry of every parameter, those that a MADE masks among them: it is what a
table's column says.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator
from functools import cache

from baselines.models.model import ModelError
from baselines.models.registry import find, preset, takes_widths

__all__ = ["TOLERANCE", "counted", "solved"]

TOLERANCE = 0.015  # so that no two models differ by more than 3 percent
NEAR = 0.002  # near enough to look no further
WIDEST = 2**14

Widths = tuple[int, int]


@cache
def counted(name: str, features: int, depth: int, hidden: Widths | None = None) -> int:
    """Return the number of parameters of a model, in its own widths or in others."""
    flow = preset(name, features, depth, hidden=hidden)
    return sum(parameter.numel() for parameter in flow.parameters())


@cache
def solved(name: str, features: int, depth: int, parameters: int) -> Widths:
    """Return the widths of two hidden layers at which a model has nearest to so many parameters.

    Args:
        name: of the model.
        features: D.
        depth: layers or blocks.
        parameters: the wanted number.

    Raises:
        ModelError: the model's widths cannot be chosen, or none come within ``TOLERANCE``.

    Example:
        >>> solved("maf", 6, 5, 20_000)
        (48, 60)

    """
    if not takes_widths(name):
        raise ModelError(
            f"{name} has fixed sizes: leave it out of --parameters"
            if ":" not in name
            else f"{name} takes no widths: give the function a third argument, hidden"
        )

    def count(hidden: Widths) -> int:
        return counted(name, features, depth, hidden)

    # Equal widths first: the widest that have no more than the wanted number.
    width = _widest(lambda width: count((width, width)) <= parameters)
    best = (max(width, 1),) * 2
    for hidden in _around(width):
        if abs(count(hidden) - parameters) < abs(count(best) - parameters):
            best = hidden
        if abs(count(best) - parameters) <= NEAR * parameters:
            break
    if abs(count(best) - parameters) > TOLERANCE * parameters:
        unit = find(name).unit
        raise ModelError(
            f"{name} at {depth} {unit} in {features} columns cannot have {parameters:,} parameters "
            f"to within {TOLERANCE:.1%}: the nearest is {count(best):,} in widths of {best}; ask "
            "for more"
        )
    return best


def _widest(fits: Callable[[int], bool]) -> int:
    """The largest width that fits, 0 where none does."""
    high = 1
    while high < WIDEST and fits(high):
        high *= 2
    wider = range(high // 2 + 1, high)
    return high // 2 + bisect_left(wider, True, key=lambda width: not fits(width))


def _around(width: int) -> Iterator[Widths]:
    """Pairs of widths near an equal one, the most equal first."""
    for apart in range(max(4, width // 4)):
        for more in range(-1, 4):
            first, second = width - apart, width + apart + more
            if first >= 1 and second >= 1:
                yield first, second
