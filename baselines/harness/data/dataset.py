"""What every source of data returns, what is known of it beforehand, and the error they raise."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from baselines.harness.data.pixels import Pixels

__all__ = ["CATALOGUE", "SPLITS", "DataError", "Dataset", "Entry", "Matrix", "Part", "SplitName"]

Kind = Literal["toy", "image", "table", "file"]
SplitName = Literal["train", "validation", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")
Matrix = npt.NDArray[np.float64]
Part = npt.NDArray[np.float32] | npt.NDArray[np.float64]

_CHUNK = 2**17  # rows


class DataError(ValueError):
    """A name, file or table that cannot be used: one line, what is wrong and what would be right.

    Runs of white space, line breaks included, become single spaces, so that a message stays one
    line whatever a file or a library put into it.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


@dataclass(frozen=True, eq=False)
class Dataset:
    """Three splits of real rows, and where they come from.

    Args:
        name: what tables and file names call it.
        train: rows to fit, float64 or float32, shape (N, D); memory-mapped where they were stored.
        validation: rows to choose with (early stopping, hyperparameters), shape (N', D).
        test: rows to report on, shape (N'', D).
        columns: the D column names.
        source: the paper, package or file behind the rows.
        licence: the terms of the source, as it states them.
        kind: "toy" is drawn from a known recipe, "image" is patches or pictures, "table" is one of
            the field's sets, "file" is the user's own.
        subset: whether this is not the published set but other rows of its kind.
        known_checksum: the checksum, where it was computed when the rows were stored.
        notes: what a user should be warned of, a line each.
        pixels: how rows were made from whole-numbered pixels; None where they were not.
        order: the number, counted from 0, that each row has in its file, those to train first, then
            to validate and to test; None where these follow one another.

    Raises:
        DataError: a split is not of real numbers, or not of shape (N, D) with D = len(columns).

    Example:
        >>> rows = np.arange(6.0).reshape(3, 2)
        >>> Dataset("tiny", rows, rows, rows, ("a", "b"), "here", "none", "file").features
        2

    """

    name: str
    train: Part
    validation: Part
    test: Part
    columns: tuple[str, ...]
    source: str
    licence: str
    kind: Kind
    subset: bool = False
    known_checksum: str = ""
    notes: tuple[str, ...] = ()
    pixels: Pixels | None = None
    order: npt.NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        for rows in self.splits:
            real = rows.dtype in (np.float32, np.float64)
            if not real or rows.ndim != 2 or rows.shape[1] != self.features:
                raise DataError(
                    f"{self.name}: a split is {rows.dtype} of shape {rows.shape}; it must be "
                    f"float64 or float32 of shape (N, {self.features}), one column a name"
                )

    @property
    def splits(self) -> tuple[Part, Part, Part]:
        """The rows to train, validate and test."""
        return self.train, self.validation, self.test

    @property
    def features(self) -> int:
        """D, the number of columns."""
        return len(self.columns)

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Rows to train, validate and test."""
        return len(self.train), len(self.validation), len(self.test)

    @property
    def note(self) -> str:
        """What must be said beside figures of these rows; empty where there is nothing."""
        said = f"{self.name} is a subset here: its figures are not comparable with published ones"
        return said if self.subset else ""

    @property
    def checksum(self) -> str:
        """SHA-256, in hex, over the shape and the little-endian float64 of each split in turn."""
        if self.known_checksum:
            return self.known_checksum
        digest = hashlib.sha256()
        for rows in self.splits:
            digest.update(repr(rows.shape).encode())
            for first in range(0, len(rows), _CHUNK):
                digest.update(np.ascontiguousarray(rows[first : first + _CHUNK], "<f8").tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class Entry:
    """A registered data set: what can be said without loading it, and how it is loaded.

    Attributes:
        name: as it is typed.
        about: what the rows are, in a few words.
        columns: how many.
        sizes: rows to train, validate and test, of the published set.
        source: the paper, package or archive behind the rows.
        licence: the terms of the source, as it states them.
        load: a seed to the rows.
        here: where the rows are on this machine, in a few words, or empty; nothing is read for it
            but a file's header.

    """

    name: str
    about: str
    columns: int
    sizes: tuple[int, int, int]
    source: str
    licence: str
    load: Callable[[int], Dataset]
    here: Callable[[], str]


class About(NamedTuple):
    """What an entry says of its rows, in its order."""

    about: str
    columns: int
    sizes: tuple[int, int, int]
    source: str
    licence: str


CATALOGUE: Mapping[str, About] = {
    name: About(**{**about, "sizes": tuple(about["sizes"])})
    for name, about in json.loads(Path(__file__).with_name("catalogue.json").read_text()).items()
}
