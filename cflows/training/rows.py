"""Rows to train on, as a user gives them: checked, on the device or streamed from the disk.

A dtype may not hold a column: one of spread 2 around 1e8 has a handful of float32 numbers, and a
log-density that is off by nats; one row at 1e20, the mark of a missing value, gives its column a
standard deviation beside which all other rows are one number.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from cflows.core.arguments import Array, as_numbers, as_tensor
from cflows.core.collectives import processes, share
from cflows.core.dtypes import dtype_of
from cflows.core.flow import Flow
from cflows.objectives import WeightedBatch
from cflows.training.identity import settings_of
from cflows.training.sources import (
    RowSource,
    drop_pages,
    is_mapped,
    read_scattered,
    stacked,
    unframed,
)

__all__ = [
    "CHANGE",
    "Data",
    "Part",
    "Rows",
    "Weights",
    "check_resolution",
    "far_from_zero",
    "finite",
    "refuse_fill_values",
    "rows_for",
    "weights_for",
]

FINGERPRINTED = 1000
CHANGE = 1e-4  # in standard deviations: a tenth of what the third decimal of a table shows
STEPS = 256  # units in the last place that the spread of a column's rows should have at least
LOOKED_AT = 100_000
SHARES = ((0.25, 0.75), (0.1, 0.9))  # of the rows, sorted: what the bulk of a column lies between

Part: TypeAlias = Tensor | Array | RowSource  # a DataFrame is a RowSource by its looks
PARTS = (Tensor, np.ndarray, RowSource)
Data: TypeAlias = Part | tuple[Part, Part | None] | Dataset[object]
Weights: TypeAlias = Tensor | ArrayLike


class Rows:
    """Rows x (N, D) with their context (N, C) or None, handed out in the flow's dtype.

    Tensors were moved to the flow's device and checked at once. Memory-mapped arrays and row
    sources stay on the disk: what is asked for is read, in the order in which it lies there,
    checked and moved, and nothing else, and a file's pages are given back at once. The order of all
    rows is the one thing that is kept for each, 4 bytes a row (8 from 2^31 rows on).

    A row of weight zero may lie where the flow has no density: in its place in a batch stands
    another row of the batch, with weight zero.

    Args:
        name: what messages call them.
        x: (N, D), a tensor, a memory-mapped array or a row source.
        context: (N, C), likewise, or None.
        like: a tensor of the dtype and on the device that batches shall have.
        weights: (N,) of mean one, or None; kept in memory and on the device.
        columns: names of the columns of both, where they had names.

    """

    def __init__(
        self,
        name: str,
        x: Part,
        context: Part | None,
        like: Tensor,
        weights: Tensor | None = None,
        columns: Sequence[str] = (),
    ) -> None:
        self.name, self.x, self.context, self.like = name, x, context, like
        self.weights = None if weights is None else weights.to(like)
        self.columns = columns
        self._spare: WeightedBatch | None = None
        if self.weights is not None and not bool(self.weights.all()):
            self._spare = self._batch(self.weights.argmax()[None])

    def __len__(self) -> int:
        return len(self.x)

    @property
    def streamed(self) -> bool:
        """Whether a part of them stays on the disk."""
        return not (isinstance(self.x, Tensor) and isinstance(self.context, Tensor | None))

    def take(self, chosen: Tensor) -> WeightedBatch:
        """The rows of these indices, an int64 tensor on the CPU or on the device.

        Raises:
            ValueError: a streamed row has NaN or infinite values; the message names it.

        """
        return self._counted(self._batch(chosen))

    def batches(self, size: int) -> Iterator[WeightedBatch]:
        """All rows in their order, ``size`` at a time, or of several processes' this one's share.

        Each process gets ``size`` of them at a time.
        """
        size *= processes()
        for first in range(0, len(self), size):
            x, *others = self._counted(self._batch(slice(first, first + size)))
            if len(share(x)):
                context, weights = (None if part is None else share(part) for part in others)
                yield share(x), context, weights

    def order(self, seed: int) -> Tensor:
        """All indices, shuffled by a generator of their own: the same on every device."""
        generator = torch.Generator("cpu").manual_seed(seed)
        # The same numbers in either type: torch draws them before it stores them.
        dtype = torch.int32 if self.streamed and len(self) < 2**31 else torch.int64
        order = torch.randperm(len(self), generator=generator, device="cpu", dtype=dtype)
        return order if self.streamed else order.to(self.like.device)

    def fingerprint(self) -> list[object]:
        """Names, shapes and columns' sums, by which a checkpoint tells these rows from others.

        Streamed rows are summed over a thousand of them, evenly spaced. Weights are told by a
        digest: their sum is the same for all.
        """
        result: list[object] = [list(self.columns)]
        for part in (self.x, self.context):
            if part is None:
                result.append(None)
                continue
            values = part
            if not isinstance(values, Tensor):
                stride = max(1, len(values) // FINGERPRINTED)
                values = torch.from_numpy(np.array(values[::stride], dtype=np.float64))
                drop_pages(part)
            result.append([*part.shape, values.double().sum(0).tolist()])
        return result if self.weights is None else [*result, settings_of("", self.weights)[""]]

    def _batch(self, chosen: Tensor | slice) -> WeightedBatch:
        """The rows of some indices, as they are."""
        context = weights = None
        if self.context is not None:
            context = self._read(f"{self.name}'s context", self.context, chosen)
        if self.weights is not None:
            weights = self._read("", self.weights, chosen)
        return self._read(self.name, self.x, chosen), context, weights

    def _read(self, name: str, part: Part, chosen: Tensor | slice) -> Tensor:
        if isinstance(part, Tensor):
            return part[chosen if isinstance(chosen, slice) else chosen.to(part.device)]
        if isinstance(chosen, slice):
            values = as_numbers(name, np.array(part[chosen], subok=True))
            drop_pages(part)
            return finite(name, torch.from_numpy(values).to(self.like), range(len(self))[chosen])
        ascending, back = chosen.cpu().sort()
        values = as_numbers(name, read_scattered(part, ascending.numpy()))
        return finite(name, torch.from_numpy(values)[back.argsort()].to(self.like), chosen)

    def _counted(self, batch: WeightedBatch) -> WeightedBatch:
        """The batch with rows that count in place of those of weight zero; no host is asked."""
        if self._spare is None:
            return batch
        x, context, weights = batch
        assert weights is not None
        counts, own = weights > 0, torch.arange(len(x), device=weights.device)
        first = counts.sort(descending=True, stable=True).indices
        others = torch.where(counts.any(), first[own % counts.sum().clamp(min=1)], len(x))
        stand = torch.where(counts, own, others)
        if context is not None and self._spare[1] is not None:
            context = torch.cat([context, self._spare[1]])[stand]
        return torch.cat([x, self._spare[0]])[stand], context, weights


def rows_for(flow: Flow, data: Data, name: str, weights: Weights | None = None) -> Rows:
    """A user's rows, as ``fit`` takes them, in the flow's dtype and on its device; checked.

    The columns of a frame go by the names of a ``TableFlow`` where it has all of these; a
    memory-mapped array or a ``RowSource`` is streamed.

    Raises:
        TypeError: something else was given, or what is given holds no real numbers.
        ValueError: a shape does not fit, a row has NaN or infinite values, the rows carry a graph,
            or the weights cannot be used.

    """
    parts: object = data
    if isinstance(data, Dataset) and not isinstance(data, IterableDataset):
        parts = stacked(data)
    pair = parts if isinstance(parts, tuple) and len(parts) in (1, 2) else (parts,)
    x, context = (*pair, None)[:2]
    names, columns = (name, f"{name}'s context"), list[str]()
    if hasattr(x, "iloc") and hasattr(x, "columns"):
        x, columns = unframed(names[0], x, getattr(flow, "columns", ()))
    if hasattr(context, "iloc") and hasattr(context, "columns"):
        context, beside = unframed(names[1], context, getattr(flow, "context_columns", ()))
        columns += beside
    if not isinstance(x, PARTS) or not (context is None or isinstance(context, PARTS)):
        called = type(data).__name__
        if isinstance(data, tuple):
            called = f"({', '.join(type(part).__name__ for part in data)})"
        raise TypeError(
            f"{name} must be a tensor, an array, a pair (x, context) of them or a map-style "
            f"Dataset, got {called}: torch.as_tensor turns numbers into tensors, and "
            "torch.stack(list(rows)) what comes row by row"
        )
    state = flow.state_dict().values()
    example = next((value for value in state if value.is_floating_point()), torch.zeros(()))
    like = torch.empty((), dtype=dtype_of(flow) or example.dtype, device=example.device)
    x = _placed(names[0], x, like)
    context = None if context is None else _placed(names[1], context, like)
    if len(x.shape) != 2 or len(x) == 0:
        raise ValueError(f"{name} must have shape (N, D) with N at least 1, got {tuple(x.shape)}")
    if context is not None and (len(context.shape) != 2 or len(context) != len(x)):
        raise ValueError(
            f"{name}'s context must have shape ({len(x)}, C), got {tuple(context.shape)}"
        )
    blank = None if context is None else like.expand(*context.shape)
    flow.check(like.expand(*x.shape), blank)
    for part, values in zip(names, (x, context), strict=True):
        if isinstance(values, Tensor):
            finite(part, values, range(len(x)))
    counts = None if weights is None else weights_for(weights, len(x), f"{name}'s weights")
    if counts is not None and bool((counts == 1).all()):  # equal weights are none
        counts = None
    return Rows(name, x, context, like, counts, columns)


def weights_for(weights: Weights, count: int, name: str = "weights") -> Tensor:
    """A weight for each row, scaled to a mean of one, in double precision: (N,) -> (N,).

    Equal weights become ones, exactly. Taken are tensors, arrays, and what numpy makes one of, such
    as a column of a table.

    Raises:
        TypeError: they are not real numbers.
        ValueError: another shape, a weight that is negative or not finite, or none above zero.

    """
    own = weights if isinstance(weights, Tensor) else np.asanyarray(weights)
    values = as_tensor(name, own).double()
    if values.shape != (count,):
        raise ValueError(
            f"{name} must have shape ({count},), one for each row, got {tuple(values.shape)}"
        )
    if len(bad := (~(values.isfinite() & (values >= 0))).nonzero()):
        row = int(bad[0])
        raise ValueError(
            f"{name} must be finite and not negative, got {float(values[row]):g} in row {row}"
        )
    if not bool((values > 0).any()):
        raise ValueError(f"{name} are all zero: give at least one row a positive weight")
    values = values / values.max()
    return values / values.mean()


def _placed(name: str, part: Part, like: Tensor) -> Part:
    """A tensor of the flow's dtype on its device; what is on the disk stays there."""
    if not (isinstance(part, Tensor) or (isinstance(part, np.ndarray) and not is_mapped(part))):
        return part
    tensor = as_tensor(name, part)
    if tensor.dim() == 2:
        check_resolution(name, tensor, like.dtype)
    return tensor.to(like)


def finite(name: str, values: Tensor, rows: range | Array | Tensor) -> Tensor:
    """The values of these rows, or a ValueError that names the first one which is not finite."""
    if not bool(values.isfinite().all()):
        row = int(rows[int((~values.isfinite()).any(1).nonzero()[0])])
        raise ValueError(f"{name} has NaN or infinite values, first in row {row}: drop it")
    return values


def check_resolution(
    name: str, rows: Tensor, dtype: torch.dtype, columns: Sequence[str] | None = None
) -> None:
    """Look whether each column of rows (N, D) keeps its differences in the dtype of the model.

    Raises:
        ValueError: rounding moves a column by more than 1e-4 of its spread (root mean square), or a
            fill value leaves its column one number.

    Warns:
        UserWarning: rows that are given in the dtype look as if they had been rounded to it: less
            than 256 units in the last place to a standard deviation, and neighbours a unit apart.

    """
    if dtype not in (torch.float32, torch.float64) or rows.is_complex() or len(rows) < 2:
        return  # half precision is refused elsewhere
    exact = rows.detach().double()
    if not bool(exact.isfinite().all()):
        return
    mean, spread = exact.mean(0), exact.std(0, correction=0)
    labels = list(map(str, range(rows.shape[1]))) if columns is None else list(map(repr, columns))
    refuse_fill_values(name, exact, mean, spread, dtype, labels)
    unit = torch.finfo(dtype).eps * mean.abs()
    # The root of the mean square: one far value among many is rounded by more than the others.
    lost = (exact.to(dtype).double() - exact).square().mean(0).sqrt() > CHANGE * spread
    rounded = spread < STEPS * unit
    if bool(rounded.any()):
        gaps = _some(exact).diff(dim=0)
        rounded &= torch.where(gaps > 0, gaps, torch.inf).amin(0) <= 2 * unit
    for column in ((lost | rounded) & (spread > 0)).nonzero().flatten().tolist():
        why = far_from_zero(spread[column].item(), mean[column].item(), dtype)
        line = f"column {labels[column]} of {name} {why}"
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
            f"which {str(dtype).removeprefix('torch.')} keeps no difference between the other "
            "rows: drop such rows, or fill them in, if the value marks what is missing"
        )


def _some(rows: Tensor) -> Tensor:
    """Some of the rows, evenly spaced, each column sorted."""
    some = rows[:: -(-len(rows) // LOOKED_AT)]
    if some.device.type != "cpu":
        return some.sort(0).values
    return torch.from_numpy(np.sort(some.T.numpy(), axis=1)).T  # ten times as fast as torch's


def far_from_zero(spread: float, mean: float, dtype: torch.dtype = torch.float32) -> str:
    """What is said of a column that a dtype cannot hold."""
    return (
        f"is far from zero for its spread ({spread:.3g} around {mean:.10g}), which "
        f"{str(dtype).removeprefix('torch.')} cannot hold; subtract a constant from the column, "
        "such as its mean"
    )
