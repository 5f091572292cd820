"""What a file holds before it is a data set: rows, column names, the way to split them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from baselines.harness.data.dataset import SPLITS, Matrix, SplitName

__all__ = ["SPLITS", "Choose", "Fault", "RawTable", "Split", "SplitName", "numbered", "tidy"]

MIN_ROWS = 20  # so that validation and test have two rows each
BLOCK = 10

Numbers = npt.NDArray[np.int64]
Choose: TypeAlias = Callable[[Sequence[str]], Sequence[int]]
"""From the names of a table's columns to the indices of those that are wanted."""


class Fault(NamedTuple):
    """Why a column cannot be used.

    Attributes:
        row: the first that has the fault.
        what: where that is and what it holds, as in ``is nan in line 7``.
        remedy: what would be right, beside leaving the column out.

    """

    row: int
    what: str
    remedy: str


@dataclass(frozen=True, eq=False)
class RawTable:
    """The rows of a file, of the columns that are wanted.

    Attributes:
        values: (N, D); NaN throughout in columns that have a fault.
        columns: D names.
        where: where a row stands in the file, for messages.
        sizes: rows of training, validation and test, which then stand in this order; None where
            the file leaves the split to us.
        faults: of columns whose fields are no numbers, by their indices.
        booleans: names of the columns that hold false and true, as 0 and 1.
        notes: what a user should know of how the file was read.

    """

    values: Matrix
    columns: tuple[str, ...]
    where: Callable[[int], str]
    sizes: tuple[int, int, int] | None = None
    faults: Mapping[int, Fault] = field(default_factory=dict)
    booleans: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class Split:
    """Which of n rows train, validate and test: of each ten in succession 8, 1 and 1, at random.

    So the split takes a fifth of a byte a row, and rows that drift along a file are shared out
    evenly. What is left behind the last ten trains.

    Args:
        n: the number of rows.
        seed: fixes the split.

    Example:
        >>> split = Split(20, seed=0)
        >>> [split.rows(name).tolist() for name in ("validation", "test")]
        [[3, 15], [8, 19]]

    """

    def __init__(self, n: int, seed: int) -> None:
        self.n, self.blocks = n, n // BLOCK
        rng = np.random.default_rng(seed)
        validation = rng.integers(BLOCK, size=self.blocks, dtype=np.uint8)
        test = rng.integers(BLOCK - 1, size=self.blocks, dtype=np.uint8)
        test += test >= validation
        self._held_out = {"validation": validation, "test": test}

    def size(self, name: SplitName) -> int:
        """How many rows a split has."""
        return self.n - 2 * self.blocks if name == "train" else self.blocks

    def rows(self, name: SplitName, chosen: Numbers | None = None) -> Numbers:
        """Where a split's rows stand in the file, ascending: all, or those of these numbers."""
        k = np.arange(self.size(name)) if chosen is None else chosen.astype(np.int64)
        if name != "train":
            return self.held_out(name, k)
        block = np.minimum(k // (BLOCK - 2), self.blocks)
        within = k - (BLOCK - 2) * block
        whole = block < self.blocks  # the others lie behind the last ten
        held_out = np.stack([part[block[whole]] for part in self._held_out.values()])
        for gone in np.sort(held_out, axis=0):
            within[whole] += within[whole] >= gone
        numbers: Numbers = BLOCK * block + within
        return numbers

    def held_out(self, name: SplitName, blocks: Numbers) -> Numbers:
        """Where the rows of validation or test stand that come from these blocks of ten."""
        numbers: Numbers = BLOCK * blocks + self._held_out[name][blocks]
        return numbers


def numbered(features: int) -> tuple[str, ...]:
    """Names for columns that have none: x0, x1, ..."""
    return tuple(f"x{i}" for i in range(features))


def tidy(names: Sequence[object]) -> tuple[str, ...]:
    r"""Columns' names as every format gives them: in one line, with single blanks.

    The first loses the mark of a comment, which text cannot tell from one.

    Example:
        >>> tidy(["# a", "b\n in  m"])
        ('a', 'b in m')

    """
    lines = [" ".join(str(name).split()) for name in names]
    return (*[name.lstrip("#% ") for name in lines[:1]], *lines[1:])
