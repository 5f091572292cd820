"""Rows to train on: kept on the device, or streamed from memory-mapped arrays."""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from cflows.core.arrays import Array, as_numbers, as_tensor
from cflows.core.flow import Flow, dtype_of
from cflows.objectives import WeightedBatch
from cflows.training.identity import settings_of
from cflows.training.precision import check_resolution

__all__ = [
    "Data",
    "RowSource",
    "Rows",
    "drop_pages",
    "read_scattered",
    "rows_for",
    "weights_for",
]

FINGERPRINTED = 1000
AT_ONCE = 128  # rows between two releases of pages


@runtime_checkable
class RowSource(Protocol):
    """Rows (N, D) that are read when they are asked for, such as an HDF5 data set.

    ``[]`` takes a slice, or ascending int32 or int64 row numbers, and gives a numpy array.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, D)."""

    def __len__(self) -> int:
        """N."""

    def __getitem__(self, chosen: slice | Array, /) -> Array:
        """Read rows."""


Part: TypeAlias = Tensor | Array | RowSource  # a DataFrame is a RowSource by its looks
Data: TypeAlias = Part | tuple[Part, Part | None] | Dataset[Any]


class Rows:
    """Rows x (N, D) with their context (N, C) or None, handed out in the flow's dtype.

    Tensors were moved to the flow's device and checked at once. Memory-mapped arrays and row
    sources stay on the disk: what is asked for is read, in the order in which it lies there,
    checked and moved, and nothing else, and a file's pages are given back at once. The order of all
    rows is the one thing that is kept for each, 4 bytes a row (8 from 2^31 rows on).

    Args:
        name: what messages call them.
        x: (N, D), a tensor, a memory-mapped array or a row source.
        context: (N, C), likewise, or None.
        like: a tensor of the dtype and on the device that batches shall have.
        weights: (N,) of mean one, or None; kept in memory and on the device.

    """

    def __init__(
        self,
        name: str,
        x: Part,
        context: Part | None,
        like: Tensor,
        weights: Tensor | None = None,
    ) -> None:
        self.name, self.x, self.context, self.like = name, x, context, like
        self.weights = None if weights is None else weights.to(like)

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
        x, context = self._parts()
        weights = self.weights
        return (
            self._gather(*x, chosen),
            None if context is None else self._gather(*context, chosen),
            None if weights is None else weights[chosen.to(weights.device)],
        )

    def batches(self, size: int) -> Iterator[WeightedBatch]:
        """All rows in their order, ``size`` at a time."""
        for first in range(0, len(self), size):
            x, context = (
                None if part is None else self._read(*part, slice(first, first + size), first)
                for part in self._parts()
            )
            assert x is not None
            weights = None if self.weights is None else self.weights[first : first + size]
            yield x, context, weights

    def order(self, seed: int) -> Tensor:
        """All indices, shuffled by a generator of their own: the same on every device."""
        generator = torch.Generator("cpu").manual_seed(seed)
        # The same numbers in either type: torch draws them before it stores them.
        dtype = torch.int32 if self.streamed and len(self) < 2**31 else torch.int64
        order = torch.randperm(len(self), generator=generator, device="cpu", dtype=dtype)
        return order if self.streamed else order.to(self.like.device)

    def fingerprint(self) -> list[Any]:
        """Shapes and sums, by which a checkpoint tells these rows from others.

        Streamed rows are summed over a thousand of them, evenly spaced. Weights are told by a
        digest: their sum is the same for all.
        """
        found: list[Any] = []
        for part in self._parts():
            if part is None:
                found.append(None)
                continue
            values = part[1]
            if not isinstance(values, Tensor):
                stride = max(1, len(values) // FINGERPRINTED)
                values = torch.from_numpy(np.array(values[::stride], dtype=np.float64))
                drop_pages(part[1])
            found.append([*part[1].shape, float(values.double().sum())])
        return found if self.weights is None else [*found, settings_of("", self.weights)[""]]

    def _parts(self) -> tuple[tuple[str, Part], tuple[str, Part] | None]:
        second = None if self.context is None else (f"{self.name}'s context", self.context)
        return (self.name, self.x), second

    def _gather(self, name: str, part: Part, chosen: Tensor) -> Tensor:
        if isinstance(part, Tensor):
            return part[chosen.to(part.device)]
        ascending, back = chosen.cpu().sort()
        values = torch.from_numpy(as_numbers(name, read_scattered(part, ascending.numpy())))
        values = values[back.argsort()].to(self.like)
        return _finite(name, values, chosen)

    def _read(self, name: str, part: Part, chosen: slice, first: int) -> Tensor:
        if isinstance(part, Tensor):
            return part[chosen]
        values = torch.from_numpy(as_numbers(name, np.array(part[chosen], subok=True))).to(
            self.like
        )
        drop_pages(part)
        return _finite(name, values, torch.arange(first, first + len(values)))


def rows_for(flow: Flow, data: Data, name: str, weights: Any = None) -> Rows:
    """A user's rows for a flow: in its dtype and on its device where they fit in memory; checked.

    Args:
        flow: on its device.
        data: rows (N, D), a pair of rows and context (N, C), or a map-style Dataset of one of
            these. Tensors, arrays and pandas' frames, whose columns go by the names of a
            ``TableFlow`` where they have all of these; a memory-mapped array or a ``RowSource`` is
            streamed.
        name: what messages call them.
        weights: as ``weights_for`` takes them, or None.

    Raises:
        TypeError: something else was given, or what is given holds no real numbers.
        ValueError: a shape does not fit, a row has NaN or infinite values, the rows carry a graph,
            or the weights cannot be used.

    """
    if isinstance(data, Dataset) and not isinstance(data, IterableDataset):
        data = _stacked(data)
    parts = data if isinstance(data, tuple) else (data,)
    parts = parts[:1] if len(parts) == 2 and parts[1] is None else parts
    wanted = (getattr(flow, "columns", ()), getattr(flow, "context_columns", ()))
    if len(parts) <= 2:
        parts = tuple(_unframed(name, part, n) for part, n in zip(parts, wanted, strict=False))
    if len(parts) not in (1, 2) or not all(map(_is_part, parts)):
        raise TypeError(
            f"{name} must be a tensor, an array, a pair (x, context) of them or a map-style "
            f"Dataset, got {_called(data)}: torch.as_tensor turns numbers into tensors, and "
            "torch.stack(list(rows)) what comes row by row"
        )
    state = flow.state_dict().values()
    example = next((value for value in state if value.is_floating_point()), torch.zeros(()))
    like = torch.empty((), dtype=dtype_of(flow) or example.dtype, device=example.device)
    names = (name, f"{name}'s context")
    x, context = (_placed(*part, like) for part in zip(names, (*parts, None), strict=False))
    assert x is not None
    if len(x.shape) != 2 or len(x) == 0:
        raise ValueError(f"{name} must have shape (N, D) with N at least 1, got {tuple(x.shape)}")
    if context is not None and (len(context.shape) != 2 or len(context) != len(x)):
        raise ValueError(
            f"{name}'s context must have shape ({len(x)}, C), got {tuple(context.shape)}"
        )
    shapes = [None if part is None else like.expand(*part.shape) for part in (x, context)]
    assert shapes[0] is not None
    flow.bijector.broadcast(shapes[0], shapes[1])
    for part, values in zip(names, (x, context), strict=True):
        if isinstance(values, Tensor):
            _finite(part, values, None)
    seen = None if weights is None else weights_for(weights, len(x), f"{name}'s weights")
    if seen is not None and bool((seen == 1).all()):  # equal weights are none
        seen = None
    return Rows(name, x, context, like, seen)


def weights_for(weights: Any, count: int, name: str = "weights") -> Tensor:
    """A weight for each row, scaled to a mean of one, in double precision: (N,) -> (N,).

    Equal weights become ones, exactly.

    Args:
        weights: (N,), a tensor, an array, or what numpy makes one of, such as a column of a table.
        count: N.
        name: what messages call them.

    Raises:
        TypeError: they are not real numbers.
        ValueError: another shape, a weight that is negative or not finite, or none above zero.

    """
    given = weights if isinstance(weights, Tensor) else np.asanyarray(weights)
    values = as_tensor(name, given).double()
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


def _unframed(name: str, part: Any, wanted: Sequence[str]) -> Any:
    """The numbers of a table such as pandas', its columns by the flow's names where it has them."""
    if not (hasattr(part, "iloc") and hasattr(part, "columns")):
        return part
    names = [str(column) for column in part.columns]
    if twice := [column for column in wanted if names.count(column) > 1]:
        raise ValueError(f"{name} has two columns called {twice[0]!r}: rename one")
    if set(wanted) <= set(names) and len(wanted):
        part = part.iloc[:, [names.index(column) for column in wanted]]
        names = list(wanted)
    kinds = [getattr(dtype, "kind", "O") for dtype in part.dtypes]
    if text := [column for column, kind in zip(names, kinds, strict=True) if kind not in "iufb"]:
        raise TypeError(f"{name} has columns that hold no numbers, {', '.join(map(repr, text))}: "
                        f"leave them out, as by drop(columns={text})")  # fmt: skip
    gone = part.isna().to_numpy()
    if gone.any():
        which = [column for column, lost in zip(names, gone.any(0), strict=True) if lost]
        raise ValueError(
            f"{name} has no value in {int(gone.any(1).sum())} rows, in the columns "
            f"{', '.join(map(repr, which))}: drop these rows, as by dropna(), or fill them in"
        )
    return part.to_numpy(dtype=np.float64)


def _placed(name: str, part: Part | None, like: Tensor) -> Part | None:
    """A tensor of the flow's dtype on its device; what is on the disk stays there."""
    if part is None or not isinstance(part, Tensor | np.ndarray) or _is_mapped(part):
        return part
    tensor = as_tensor(name, part)
    if tensor.dim() == 2:
        check_resolution(name, tensor, like.dtype)
    return tensor.to(like)


def _is_mapped(part: Any) -> bool:
    """Whether an array, or what it is a view of, is memory-mapped."""
    while isinstance(part, np.ndarray):
        if isinstance(part, np.memmap):
            return True
        part = part.base
    return False


def _called(data: Any) -> str:
    """The name of a type, or of both in a pair."""
    if not isinstance(data, tuple):
        return type(data).__name__
    return f"({', '.join(type(part).__name__ for part in data)})"


def _is_part(part: Any) -> bool:
    return isinstance(part, Tensor | np.ndarray | RowSource)


def read_scattered(part: Array | RowSource, chosen: Array) -> Array:
    """Rows by their ascending numbers; of a mapped array a few at a time.

    For each row the system may map as much as half a megabyte around it, which counts as memory of
    this process until it is given back.
    """
    if not _is_mapped(part):
        return part[chosen]
    pieces = range(0, max(1, len(chosen)), AT_ONCE)
    found = []
    for first in pieces:
        found.append(np.asarray(part[chosen[first : first + AT_ONCE]]))
        drop_pages(part)
    return np.concatenate(found)


def drop_pages(part: Any) -> None:
    """Give the memory of a memory-mapped array's pages back; they are read again when needed.

    Only of shared mappings: a copy-on-write one keeps changes there, and nowhere else.
    """
    shared = True
    while isinstance(part, np.ndarray):
        shared = shared and getattr(part, "mode", "") != "c"
        part = part.base
    if isinstance(part, mmap.mmap) and shared and hasattr(mmap, "MADV_DONTNEED"):
        part.madvise(mmap.MADV_DONTNEED)


def _stacked(data: Dataset[Any]) -> Tensor | tuple[Tensor, Tensor]:
    """All rows of a map-style Dataset of tensors or of pairs."""
    items = [data[index] for index in range(len(data))]  # type: ignore[arg-type]
    if isinstance(items[0], Tensor):
        return torch.stack(items)
    columns = [torch.stack(column) for column in zip(*items, strict=True)]
    return (columns[0], columns[1]) if len(columns) > 1 else columns[0]


def _finite(name: str, values: Tensor, rows: Tensor | None) -> Tensor:
    """The values, or a ValueError that names the first row which is not finite."""
    if not bool(values.isfinite().all()):
        at = int((~values.isfinite()).any(1).nonzero()[0])
        row = at if rows is None else int(rows[at])
        raise ValueError(f"{name} has NaN or infinite values, first in row {row}: drop it")
    return values
