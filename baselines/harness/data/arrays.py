"""Arrays that numpy wrote: .npy, read whole or mapped into memory, and .npz."""

from __future__ import annotations

from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib.npyio import NpzFile

from baselines.harness.data.dataset import DataError, Matrix
from baselines.harness.data.rows import SPLITS, Choose, RawTable, numbered
from baselines.harness.data.sources import Input
from cflows.core.arguments import Array

__all__ = ["mapped_npy", "read_npy", "read_npz"]


def read_npy(source: Input, choose: Choose) -> RawTable:
    """Read an .npy file whole; DataError where it is damaged, or no matrix or vector of reals."""
    with source.open() as file:
        array = _loaded(source, file, ".npy", "numpy.save from a float array")
    if isinstance(array, NpzFile):
        raise DataError(
            f"{source}: holds an .npz archive; name it .npz, or save one array with numpy.save"
        )
    values = _matrix(source, "", array)
    names = numbered(values.shape[1])
    kept = list(choose(names))
    columns = tuple(names[i] for i in kept)
    return RawTable(values[:, kept], columns, lambda i: f"row {i} (counted from 0)")


def mapped_npy(path: Path) -> Array | None:
    """Map an .npy file's (N, D) rows into memory; None where it holds something else.

    ``read_npy`` says what is wrong with that, or reads it.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception:  # as in _loaded
        return None
    usable = isinstance(array, np.memmap) and array.ndim == 2 and array.dtype.kind in "fiu"
    return array if usable else None


def read_npz(source: Input, choose: Choose) -> RawTable:
    """Read an .npz archive of one array, or of the arrays train, validation and test.

    DataError where it is damaged, has other keys, or holds no matrices or vectors of reals.
    """
    with source.open() as file:  # numpy leaves a file open that it finds to be no archive
        archive = _loaded(source, file, ".npz", "numpy.savez from float arrays")
        if not isinstance(archive, NpzFile):
            raise DataError(f"{source}: holds one array without an archive; name it .npy")
        keys = tuple(archive.files)
        if set(keys) != set(SPLITS) and len(keys) != 1:
            raise DataError(
                f"{source}: holds {', '.join(map(repr, keys)) or 'nothing'}; save one array, or "
                "the three train, validation and test"
            )
        keys = SPLITS if len(keys) > 1 else keys
        parts = [_member(source, archive, key) for key in keys]
    widths = [part.shape[1] for part in parts]
    if len(set(widths)) > 1:
        raise DataError(
            f"{source}: train, validation and test have {', '.join(map(str, widths))} columns; "
            "give them the same"
        )
    starts = np.cumsum([0, *map(len, parts)])

    def where(row: int) -> str:
        part = int(np.searchsorted(starts, row, side="right")) - 1
        return f"row {row - starts[part]} of {keys[part]!r} (counted from 0)"

    names = numbered(widths[0])
    kept = list(choose(names))
    return RawTable(
        np.concatenate([part[:, kept] for part in parts]),
        tuple(names[i] for i in kept),
        where,
        (len(parts[0]), len(parts[1]), len(parts[2])) if len(parts) > 1 else None,
    )


def _loaded(source: Input, file: IO[bytes], suffix: str, writer: str) -> Array | NpzFile:
    try:
        content: Array | NpzFile = np.load(file, allow_pickle=False)
    except OSError:
        raise
    except Exception as error:  # numpy lets out what its zip, header and memory steps raise
        raise DataError(
            f"{source}: not a complete {suffix} file of plain numbers; write it with {writer}"
        ) from error
    return content


def _member(source: Input, archive: NpzFile, name: str) -> Matrix:
    try:
        array = archive[name]
    except Exception as error:  # likewise
        raise DataError(
            f"{source}: array {name!r} is damaged or no plain numbers; "
            "write it with numpy.savez from float arrays"
        ) from error
    return _matrix(source, f"array {name!r} ", array)


def _matrix(source: Input, what: str, array: Array) -> Matrix:
    if array.dtype.kind not in "fiu":
        raise DataError(
            f"{source}: {what}holds {array.dtype} values; save real numbers, such as float64"
        )
    if array.ndim == 1:
        array = array[:, None]
    if array.ndim != 2 or not array.shape[1]:
        raise DataError(
            f"{source}: {what}has shape {array.shape}; save a matrix of rows and columns"
        )
    # What overflows becomes infinite, and is refused as such.
    with np.errstate(over="ignore", invalid="ignore"):
        return np.ascontiguousarray(array, dtype=np.float64)
