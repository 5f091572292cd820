"""What every source of data returns, and the one error they raise."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

__all__ = ["DataError", "Dataset", "Matrix"]

Matrix = npt.NDArray[np.float64]


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
        train: rows to fit, float64, shape (N, D).
        validation: rows to choose with (early stopping, hyperparameters), shape (N', D).
        test: rows to report on, shape (N'', D).
        columns: the D column names.
        source: the paper, package or file behind the rows.
        licence: the terms of the source, as it states them.
        kind: "toy" is drawn from a known recipe, "image" is patches, "file" is the user's own.

    Raises:
        DataError: a split is not float64, or not of shape (N, D) with D = len(columns).

    Example:
        >>> rows = np.arange(6.0).reshape(3, 2)
        >>> Dataset("tiny", rows, rows, rows, ("a", "b"), "here", "none", "file").features
        2

    """

    name: str
    train: Matrix
    validation: Matrix
    test: Matrix
    columns: tuple[str, ...]
    source: str
    licence: str
    kind: Literal["toy", "image", "file"]

    def __post_init__(self) -> None:
        for rows in (self.train, self.validation, self.test):
            if rows.dtype != np.float64 or rows.ndim != 2 or rows.shape[1] != self.features:
                raise DataError(
                    f"{self.name}: a split is {rows.dtype} of shape {rows.shape}; "
                    f"it must be float64 of shape (N, {self.features}), one column a name"
                )

    @property
    def features(self) -> int:
        """D, the number of columns."""
        return len(self.columns)

    @property
    def checksum(self) -> str:
        """SHA-256, in hex, over the shape and the little-endian bytes of each split in turn."""
        digest = hashlib.sha256()
        for rows in (self.train, self.validation, self.test):
            digest.update(repr(rows.shape).encode())
            digest.update(np.ascontiguousarray(rows, dtype="<f8").tobytes())
        return digest.hexdigest()
