"""Columns that a dtype cannot hold: too far from zero for their spread, or beside a fill value.

A column of spread 2 around 1e8 has a handful of float32 numbers, and a log-density that is off by
nats. One row at 1e20, the mark of a missing value, gives its column a standard deviation beside
which all other rows are one number.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["CHANGE", "check_resolution", "far_from_zero", "refuse_fill_values"]

CHANGE = 1e-4  # in standard deviations: a tenth of what the third decimal of a table shows
STEPS = 256  # units in the last place that the spread of a column's rows should have at least
LOOKED_AT = 100_000
SHARES = ((0.25, 0.75), (0.1, 0.9))  # of the rows, sorted: what the bulk of a column lies between


def check_resolution(
    name: str, rows: Tensor, dtype: torch.dtype, columns: Sequence[str] | None = None
) -> None:
    """Look whether each column keeps its differences in a dtype.

    Args:
        name: what messages call the rows.
        rows: (N, D), as they are before they are cast.
        dtype: that they are modelled in.
        columns: names of the D columns; their numbers where there are none.

    Raises:
        ValueError: rounding moves a column by more than 1e-4 of its spread (root mean square), or a
            fill value leaves its column one number.

    Warns:
        UserWarning: rows that are given in the dtype look as if they had been rounded to it: less
            than 256 units in the last place to a standard deviation, and neighbours a unit apart.

    """
    if dtype not in (torch.float32, torch.float64) or rows.is_complex():
        return  # half precision is refused elsewhere
    exact = rows.detach().double()
    if len(rows) < 2 or not bool(exact.isfinite().all()):
        return
    mean, spread = exact.mean(0), exact.std(0, correction=0)
    labels = list(map(str, range(rows.shape[1]))) if columns is None else list(map(repr, columns))
    refuse_fill_values(name, exact, mean, spread, dtype, labels)
    unit = torch.finfo(dtype).eps * mean.abs()
    # The root of the mean square: one far value among many is rounded by more than the others.
    lost = (exact.to(dtype).double() - exact).square().mean(0).sqrt() > CHANGE * spread
    gaps = _some(exact).diff(dim=0)
    finest = torch.where(gaps > 0, gaps, torch.inf).amin(0)
    rounded = (spread < STEPS * unit) & (finest <= 2 * unit)
    for column in ((lost | rounded) & (spread > 0)).nonzero().flatten().tolist():
        line = (
            f"column {labels[column]} of {name} "
            f"{far_from_zero(spread[column].item(), mean[column].item(), dtype)}"
        )
        if lost[column]:
            raise ValueError(line)
        warnings.warn(line, stacklevel=4)


def refuse_fill_values(
    name: str,
    rows: Tensor,
    mean: Tensor,
    spread: Tensor,
    dtype: torch.dtype,
    labels: Sequence[str],
    *,
    in_order: bool = True,
) -> None:
    """Refuse a column in which few values are so far out that all others are one number beside.

    Args:
        name: what messages call the rows.
        rows: (N, D) in double precision, or some of them.
        mean: of all rows, (D,).
        spread: their standard deviation, (D,).
        dtype: that they are modelled in.
        labels: D names.
        in_order: whether the rows stand in the user's order, so that a row's number helps.

    Raises:
        ValueError: the column and the value, with its row.

    """
    some = _some(rows)
    bulk = torch.zeros_like(spread)
    for low, high in SHARES:
        ends = some[[int(low * (len(some) - 1)), int(high * (len(some) - 1))]]
        bulk = torch.where(bulk > 0, bulk, ends[1] - ends[0])
    # Far from zero beside its own spread is another matter: here the spread is the far values'.
    unit = torch.finfo(dtype).eps * torch.maximum(mean.abs(), spread)
    hidden = (bulk > 0) & (bulk < STEPS * unit) & (spread > STEPS * bulk)
    for column in hidden.nonzero().flatten().tolist():
        values = rows[:, column]
        row = int((values - values.median()).abs().argmax())
        where = f" in row {row}" if in_order else ""
        raise ValueError(
            f"column {labels[column]} of {name} is {values[row].item():g}{where}, beside "
            f"which {_called(dtype)} keeps no difference between the other rows: drop such rows, "
            "or fill them in, if the value marks what is missing"
        )


def _some(rows: Tensor) -> Tensor:
    """Some of the rows, evenly spaced, each column sorted."""
    return rows[:: -(-len(rows) // LOOKED_AT)].sort(0).values


def _called(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def far_from_zero(spread: float, mean: float, dtype: torch.dtype = torch.float32) -> str:
    """What is said of a column that a dtype cannot hold."""
    return (
        f"is far from zero for its spread ({spread:.3g} around {mean:.10g}), which "
        f"{_called(dtype)} cannot hold; subtract a constant from the column, "
        "such as its mean"
    )
