"""Rows that are no tensors yet: frames, Datasets, memory-mapped arrays and row sources."""

from __future__ import annotations

import mmap
from collections.abc import Sequence, Sized
from typing import TYPE_CHECKING, Protocol, cast, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from cflows.core.arguments import Array

if TYPE_CHECKING:
    import pandas

__all__ = ["RowSource", "drop_pages", "is_mapped", "read_scattered", "stacked", "unframed"]

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


def unframed(name: str, part: pandas.DataFrame, wanted: Sequence[str]) -> tuple[Array, list[str]]:
    """A table's numbers and its columns' names: those wanted and in their order, if it has all."""
    names = [str(column) for column in part.columns]
    if twice := [column for column in wanted if names.count(column) > 1]:
        raise ValueError(f"{name} has two columns called {twice[0]!r}: rename one")
    if set(wanted) <= set(names) and len(wanted):
        part = part.iloc[:, [names.index(column) for column in wanted]]
        names = list(wanted)
    kinds = [getattr(dtype, "kind", "O") for dtype in part.dtypes]
    if text := [column for column, kind in zip(names, kinds, strict=True) if kind not in "iufb"]:
        raise TypeError(
            f"{name} has columns that hold no numbers, {', '.join(map(repr, text))}: "
            f"leave them out, as by drop(columns={text})"
        )
    gone = part.isna().to_numpy()
    if gone.any():
        which = [names[at] for at in np.flatnonzero(gone.any(0))]
        raise ValueError(
            f"{name} has no value in {int(gone.any(1).sum())} rows, in the columns "
            f"{', '.join(map(repr, which))}: drop these rows, as by dropna(), or fill them in"
        )
    return part.to_numpy(dtype=np.float64), names


def stacked(data: Dataset[object]) -> Tensor | tuple[Tensor, ...]:
    """All rows of a map-style Dataset of tensors or of pairs."""
    items = [data[index] for index in range(len(cast(Sized, data)))]
    if isinstance(items[0], Tensor):
        return torch.stack(cast(list[Tensor], items))
    columns = zip(*cast(list[tuple[Tensor, ...]], items), strict=True)
    parts = tuple(torch.stack(column) for column in columns)
    return parts if len(parts) > 1 else parts[0]


def is_mapped(part: object) -> bool:
    """Whether an array, or what it is a view of, is memory-mapped."""
    while isinstance(part, np.ndarray):
        if isinstance(part, np.memmap):
            return True
        part = part.base
    return False


def read_scattered(part: Array | RowSource, chosen: Array) -> Array:
    """Rows by their ascending numbers; of a mapped array a few at a time.

    For each row the system may map as much as half a megabyte around it, which counts as memory of
    this process until it is given back.
    """
    if not is_mapped(part):
        return part[chosen]
    pieces = []
    for first in range(0, max(1, len(chosen)), AT_ONCE):
        pieces.append(np.asarray(part[chosen[first : first + AT_ONCE]]))
        drop_pages(part)
    return np.concatenate(pieces)


def drop_pages(part: object) -> None:
    """Give the memory of a memory-mapped array's pages back; they are read again when needed.

    Only of shared mappings: a copy-on-write one keeps changes there, and nowhere else.
    """
    shared = True
    while isinstance(part, np.ndarray):
        shared = shared and getattr(part, "mode", "") != "c"
        part = part.base
    if isinstance(part, mmap.mmap) and shared and hasattr(mmap, "MADV_DONTNEED"):
        part.madvise(mmap.MADV_DONTNEED)
