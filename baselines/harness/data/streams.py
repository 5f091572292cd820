"""A file that is too large to be loaded: its rows are read when they are asked for."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from baselines.harness.data.choice import refuse_constant
from baselines.harness.data.dataset import DataError, Matrix
from baselines.harness.data.quantised import uniform
from baselines.harness.data.rows import BLOCK, SPLITS, Split, SplitName, numbered
from cflows.core.arguments import Array
from cflows.training.sources import drop_pages, read_scattered

__all__ = ["Stream", "Streamed", "Summary"]

CHUNK = 2**22  # numbers that are checked at a time
Single = npt.NDArray[np.float32]
Vector = npt.NDArray[np.float64]


class Summary(NamedTuple):
    """Of each column: the largest |x|, mean, standard deviation, largest |float32(x) - x|."""

    largest: Vector
    mean: Vector
    spread: Vector
    change: Vector


class Streamed:
    """A memory-mapped table with a split, the counterpart of ``Dataset`` that is not in memory.

    Args:
        path: the file.
        array: its rows, (N, D), real numbers.
        split: of the N rows.
        seed: of the noise.
        indices: which of the array's columns are used; None for all.
        spared: names of columns that may be constant, such as a context.

    Attributes:
        columns: their names.
        source: the file, as messages name it.
        summary: what ``check`` found, noise included; all columns survive it.
        notes: what is to be warned of.
        noise: the width of each column's noise, (D,), or None.
        still: those of the spared columns that are constant in training.

    """

    def __init__(
        self,
        path: Path,
        array: Array,
        split: Split,
        seed: int,
        indices: Sequence[int] | None = None,
        spared: Sequence[str] = (),
    ) -> None:
        self.path, self.array, self.split, self.seed = path, array, split, seed
        names = numbered(array.shape[1])
        self.indices = list(range(len(names)) if indices is None else indices)
        self.columns, self.source = tuple(names[i] for i in self.indices), str(path)
        self.still: tuple[str, ...] = ()
        self.notes: tuple[str, ...] = ()
        self.summary = self.check(spared)
        self.noise: Vector | None = None

    def add_noise(self, widths: Vector) -> None:
        """Let rows have uniform noise of these widths, (D,), and the summary count it."""
        self.noise = widths
        with np.errstate(over="ignore"):
            self.summary = self.summary._replace(
                largest=self.summary.largest + widths,
                spread=np.hypot(self.summary.spread, widths / math.sqrt(12)),
            )

    def part(self, name: SplitName, columns: Sequence[int]) -> Stream:
        """Some columns of a split."""
        return Stream(self, name, tuple(columns))

    def rows(self, chosen: npt.NDArray[np.int64]) -> Matrix:
        """Rows by their ascending numbers in the file, with their noise."""
        values = self._read(chosen)
        if self.noise is not None:
            values += self.noise * uniform(chosen, len(self.noise), self.seed)
        return values

    def every(self, most: int) -> Matrix:
        """So many rows of the file at most, evenly spaced, as they are."""
        return self._read(np.arange(0, len(self.array), -(-len(self.array) // most)))

    def _read(self, chosen: npt.NDArray[np.int64]) -> Matrix:
        """Neighbours as a slice, others each on its own."""
        values = np.empty((len(chosen), len(self.columns)))
        for first in range(0, len(chosen), self._size):
            part = chosen[first : first + self._size]
            start, end = int(part[0]), int(part[-1]) + 1
            if end - start < 2 * len(part):
                rows = self.array[start:end][part - start]
                drop_pages(self.array)
            else:
                rows = read_scattered(self.array, part)
            values[first : first + len(part)] = rows[:, self.indices]
        return values

    def check(self, spared: Sequence[str]) -> Summary:
        """Read all rows once, and say of each column what decides whether float32 can hold it.

        DataError where a value is not finite, or a column constant in training and not spared.
        """
        d = len(self.columns)
        one = self.array[self.split.rows("train", np.array([0]))[0]][self.indices].astype(
            np.float64
        )
        largest, change, sums, squares = np.zeros((4, d))
        varies = np.zeros(d, bool)
        for first, values in self.chunks():
            self._refuse_not_finite(first, values)
            exact = values.astype(np.float64)
            if not varies.all():
                varies |= (np.delete(exact, self._held_out(first, len(exact)), 0) != one).any(0)
            largest = np.maximum(largest, np.abs(exact).max(0))
            with np.errstate(over="ignore"):  # what overflows is beyond float32, and refused so
                change = np.maximum(change, np.abs(exact.astype(np.float32) - exact).max(0))
                exact -= one
                sums, squares = sums + exact.sum(0), squares + (exact**2).sum(0)
        self.still = tuple(n for n, v in zip(self.columns, varies, strict=True) if not v)
        constant = {
            name: value
            for name, value in zip(self.columns, one.tolist(), strict=True)
            if name in self.still and name not in spared
        }
        refuse_constant(self.path, constant, self.split.size("train"))
        with np.errstate(over="ignore", invalid="ignore"):
            mean = sums / len(self.array)
            spread = np.sqrt(np.maximum(squares / len(self.array) - mean**2, 0))
            return Summary(largest, one + mean, spread, change)

    def _refuse_not_finite(self, first: int, values: Array) -> None:
        for row, column in np.argwhere(~np.isfinite(values))[:1]:
            raise DataError(
                f"{self.path}: column {self.columns[column]!r} is {values[row, column]} in row "
                f"{first + row} (counted from 0); drop such rows or fill them in"
            )

    def _held_out(self, first: int, count: int) -> npt.NDArray[np.int64]:
        blocks = np.arange(first // BLOCK, min((first + count) // BLOCK, self.split.blocks))
        return np.concatenate([self.split.held_out(name, blocks) for name in SPLITS[1:]]) - first

    @property
    def _size(self) -> int:
        """Rows of a chunk: whole blocks of the split."""
        return max(1, CHUNK // len(self.columns) // BLOCK) * BLOCK

    def chunks(self) -> Iterator[tuple[int, Array]]:
        """The file's rows as they are, some at a time, with the number of the first."""
        for first in range(0, len(self.array), self._size):
            yield first, np.array(self.array[first : first + self._size])[:, self.indices]
            drop_pages(self.array)


@dataclass(frozen=True, eq=False)
class Stream:
    """Some columns of one split of a table, a ``cflows.training.sources.RowSource`` in float32.

    Attributes:
        table: where the rows are.
        name: of the split.
        columns: which of the table's, by number.
        loc: (D,), what is subtracted from the rows, or a number.
        scale: (D,), what they are divided by then, or a number.

    """

    table: Streamed
    name: SplitName
    columns: tuple[int, ...]
    loc: Single | float = 0.0
    scale: Single | float = 1.0

    @property
    def shape(self) -> tuple[int, int]:
        """(N, D)."""
        return len(self), len(self.columns)

    def __len__(self) -> int:
        return self.table.split.size(self.name)

    def __getitem__(self, chosen: slice | npt.NDArray[np.int64]) -> Single:
        if isinstance(chosen, slice):
            chosen = np.arange(*chosen.indices(len(self)))
        rows = self.table.rows(self.table.split.rows(self.name, chosen))
        return ((rows[:, self.columns] - self.loc) / self.scale).astype(np.float32)
