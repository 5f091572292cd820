"""Arrays that numpy wrote: .npy, read whole or mapped into memory, and .npz."""

from __future__ import annotations

from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from baselines.harness.data.dataset import DataError, Matrix
from baselines.harness.data.inputs import Input
from baselines.harness.data.rows import SPLITS, RawTable, numbered

__all__ = ["mapped_npy", "read_npy", "read_npz"]

Array = npt.NDArray[Any]


def read_npy(path: Input) -> RawTable:
    """Read an .npy file whole.

    Raises:
        DataError: damaged, or not a matrix or a vector of real numbers.
        OSError: it cannot be read.

    """
    with path.open("rb") as file:
        array = _loaded(path, file, ".npy", "numpy.save from a float array")
    if not isinstance(array, np.ndarray):
        raise DataError(f"{path}: holds an .npz archive; name it .npz, or save one array with "
                        "numpy.save")  # fmt: skip
    values = _matrix(path, "", array)
    return RawTable(values, numbered(values.shape[1]), lambda i: f"row {i} (counted from 0)")


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


def read_npz(path: Input) -> RawTable:
    """Read an .npz archive of one array, or of the arrays train, validation and test.

    Raises:
        DataError: damaged, other keys, or not matrices or vectors of real numbers.
        OSError: it cannot be read.

    """
    with path.open("rb") as file:  # numpy leaves a file open that it finds to be no archive
        archive = _loaded(path, file, ".npz", "numpy.savez from float arrays")
        if isinstance(archive, np.ndarray):
            raise DataError(f"{path}: holds one array without an archive; name it .npy")
        keys = tuple(archive.files)
        if set(keys) != set(SPLITS) and len(keys) != 1:
            raise DataError(f"{path}: holds {', '.join(map(repr, keys)) or 'nothing'}; save one "
                            "array, or the three train, validation and test")  # fmt: skip
        names = SPLITS if len(keys) > 1 else keys
        return _joined(path, names, [_member(path, archive, name) for name in names])


def _member(path: Input, archive: Any, name: str) -> Matrix:
    try:
        array = archive[name]
    except Exception as error:  # as in _loaded
        raise DataError(
            f"{path}: array {name!r} is damaged or no plain numbers; "
            "write it with numpy.savez from float arrays"
        ) from error
    return _matrix(path, f"array {name!r} ", array)


def _joined(path: Input, names: tuple[str, ...], parts: list[Matrix]) -> RawTable:
    widths = [part.shape[1] for part in parts]
    if len(set(widths)) > 1:
        raise DataError(f"{path}: train, validation and test have {', '.join(map(str, widths))} "
                        "columns; give them the same")  # fmt: skip
    sizes = [len(part) for part in parts]

    ends = np.cumsum(sizes)

    def place(row: int) -> str:
        part = int(np.searchsorted(ends, row, side="right"))
        return f"row {row - ends[part] + sizes[part]} of {names[part]!r} (counted from 0)"

    return RawTable(
        np.concatenate(parts),
        numbered(widths[0]),
        place,
        (sizes[0], sizes[1], sizes[2]) if len(parts) > 1 else None,
    )


def _loaded(path: Input, file: IO[bytes], suffix: str, writer: str) -> Any:
    try:
        return np.load(file, allow_pickle=False)
    except OSError:
        raise
    except Exception as error:  # numpy lets out what its zip, header and memory steps raise
        raise DataError(
            f"{path}: not a complete {suffix} file of plain numbers; write it with {writer}"
        ) from error


def _matrix(path: Input, what: str, array: Array) -> Matrix:
    if array.dtype.kind not in "fiu":
        raise DataError(f"{path}: {what}holds {array.dtype} values; save real numbers, such as "
                        "float64")  # fmt: skip
    if array.ndim == 1:
        array = array[:, None]
    if array.ndim != 2 or not array.shape[1]:
        raise DataError(f"{path}: {what}has shape {array.shape}; save a matrix of rows and columns")
    # What overflows becomes infinite, and is refused as such.
    with np.errstate(over="ignore", invalid="ignore"):
        return np.ascontiguousarray(array, dtype=np.float64)
