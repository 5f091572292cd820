"""The user's own table: a .csv, .npy or .npz file of real numbers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from . import quantised
from .arrays import mapped_npy, read_npy, read_npz
from .dataset import DataError, Dataset, Matrix
from .delimited import read_csv
from .quantised import Width
from .rows import MIN_ROWS, SPLITS, Split, Table
from .streams import Streamed

__all__ = ["MIN_ROWS", "STREAMED_BYTES", "is_supported", "read", "stream", "table"]

STREAMED_BYTES = 2**28
LICENCE = "not stated: the user's own file"


def read(
    path: str | Path, *, seed: int = 0, dequantise: Width | None = None, spared: Sequence[str] = ()
) -> Dataset:
    """Read a table and split its rows 80 / 10 / 10, if it is not split already.

    A .csv file is UTF-8, with or without a byte order mark; its delimiter, a comma, semicolon, bar,
    tab or blanks, is found from its second line. The first line is a header if it has a field that
    is not a number, so that one of years alone is taken for a row; without one, and for arrays,
    columns are called x0, x1, ... Empty lines are skipped.
    An .npy file holds a matrix of real numbers, or a vector, which is one column. An .npz file
    holds one of these, or three: train, validation and test, which are taken as they are.
    All are read whole here, a .csv file at about four times its size: what is larger than memory
    must be an .npy file of a matrix, and goes to ``stream``.

    Of each ten rows in succession one validates and one tests, see ``rows.Split``. Training rows
    keep the file's order; the others are shuffled, so that the first of them stand for all.

    Args:
        path: the file; its name, suffix included, becomes the name of the data set, so that
            moons.csv and the toy moons stay apart.
        seed: fixes the split and the noise.
        dequantise: ``"auto"`` adds U[0, 1) times its own step to each column whose values repeat on
            a grid; a number is the width of the noise of each column whose values repeat. None
            leaves the rows as they are. What is left to be warned of is in the data set's notes.
        spared: columns that are looked at as little as they get noise, such as a context.

    Raises:
        DataError: no such file, not a file, another suffix, unreadable; fewer than 20 rows, rows of
            unequal length, a field that is not a finite number, a column constant in training.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.save(f"{folder}/rows.npy", np.random.default_rng(0).normal(size=(50, 3)))
        ...     data = read(f"{folder}/rows.npy")
        >>> data.train.shape, data.validation.shape, data.test.shape, data.columns
        ((40, 3), (5, 3), (5, 3), ('x0', 'x1', 'x2'))

    """
    path = Path(path)
    table = _open(path)
    _refuse_few(path, table)
    _refuse_not_finite(path, table)
    n = len(table.values)
    looked_at = table.values[:: -(-n // quantised.EXAMINED)]
    notes, noise = _remedied(path, table.columns, looked_at, spared, dequantise)
    values = table.values
    if noise is not None:
        values = values + noise * quantised.uniform(np.arange(n), len(noise), seed)
    train, validation, test = _split(values, table.sizes, seed)
    _refuse_constant(path, train, table.columns)
    return Dataset(
        path.name,
        train,
        validation,
        test,
        columns=table.columns,
        source=str(path),
        licence=LICENCE,
        kind="file",
        notes=notes,
    )


def stream(
    path: str | Path, *, seed: int = 0, dequantise: Width | None = None, spared: Sequence[str] = ()
) -> Streamed | None:
    """Map a large .npy file into memory; None for what ``read`` should read.

    The split and the noise are those of ``read``; the file is read once, in chunks, to be checked.

    Raises:
        DataError: a value that is not finite, or a constant column.

    """
    path = Path(path)
    if path.suffix.lower() != ".npy" or not path.is_file():
        return None
    if path.stat().st_size <= STREAMED_BYTES or (array := mapped_npy(path)) is None:
        return None
    found = Streamed(path, array, Split(len(array), seed), seed)
    looked_at = found.every(quantised.EXAMINED)
    found.notes, noise = _remedied(path, found.columns, looked_at, spared, dequantise)
    if noise is not None:
        found.add_noise(noise)
    return found


def table(path: str | Path) -> tuple[Matrix, tuple[str, ...]]:
    r"""Read every row of a file in its order, with the column names: (N, D), D names.

    The formats are those of ``read``; one row is enough, and a column may be constant.

    Raises:
        DataError: as ``read``, for a file that is not a table of finite numbers.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "one.csv"
        ...     _ = path.write_text("height,weight\n1.7,70\n")
        ...     table(path)
        (array([[ 1.7, 70. ]]), ('height', 'weight'))

    """
    path = Path(path)
    found = _open(path)
    if not len(found.values):
        raise DataError(f"{path}: holds no rows; give at least one")
    _refuse_not_finite(path, found)
    return found.values, found.columns


def is_supported(path: str | Path) -> bool:
    """Return whether the suffix, in either case, is one that ``read`` knows.

    Example:
        >>> is_supported("rows.CSV"), is_supported("rows.parquet")
        (True, False)

    """
    return Path(path).suffix.lower() in _READERS


def _open(path: Path) -> Table:
    try:
        if path.is_dir():
            raise DataError(f"{path}: is a directory; name one .csv, .npy or .npz file")
        if not path.exists():
            raise DataError(f"{path}: file not found; check the path, relative to {Path.cwd()}")
        if not is_supported(path):
            suffix = f"suffix {path.suffix!r}" if path.suffix else "no suffix"
            raise DataError(
                f"{path}: cannot read a file with {suffix}; save it as .csv, .npy or .npz"
            )
        if not path.stat().st_size:
            raise DataError(f"{path}: the file is empty; give at least {MIN_ROWS} rows of numbers")
        return _READERS[path.suffix.lower()](path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    except MemoryError as error:
        raise DataError(
            f"{path}: does not fit in memory; save it as an .npy matrix of float32, which cflows "
            "fit reads from the disk"
        ) from error


def _split(
    values: Matrix, sizes: tuple[int, int, int] | None, seed: int
) -> tuple[Matrix, Matrix, Matrix]:
    if sizes is not None:
        train, validation, test = np.split(values, np.cumsum(sizes[:2]))
        return train, validation, test
    split = Split(len(values), seed)
    rng = np.random.default_rng([seed, 1])  # not the stream that the split was drawn from
    validation, test = (values[rng.permutation(split.rows(name))] for name in SPLITS[1:])
    return values[split.rows("train")], validation, test


def _remedied(
    path: Path,
    columns: Sequence[str],
    looked_at: Matrix,
    spared: Sequence[str],
    dequantise: Width | None,
) -> tuple[tuple[str, ...], quantised.Vector | None]:
    """What is to be warned of, and the width of each column's noise or None."""
    found = [
        quantised.Repeats() if name in spared else column
        for name, column in zip(columns, quantised.repeats_of(looked_at), strict=True)
    ]
    noise = None if dequantise is None else quantised.widths(found, dequantise)
    noise = noise if noise is not None and noise.any() else None
    return quantised.notes(str(path), columns, looked_at, found, dequantise), noise


def _refuse_few(path: Path, table: Table) -> None:
    n = len(table.values)
    if table.sizes is None and n < MIN_ROWS:
        raise DataError(
            f"{path}: too few rows ({n}) to split into training, validation and test; "
            f"give at least {MIN_ROWS}"
        )
    for name, size in zip(SPLITS, table.sizes or (), strict=False):
        if size < 2:
            raise DataError(f"{path}: {name!r} has too few rows ({size}); give at least 2")


def _refuse_not_finite(path: Path, table: Table) -> None:
    finite = np.isfinite(table.values)
    if finite.all():
        return
    row, column = np.argwhere(~finite)[0]
    raise DataError(
        f"{path}: column {table.columns[column]!r} is {table.values[row, column]} in "
        f"{table.place(row)}; drop such rows or fill them in"
    )


def _refuse_constant(path: Path, train: Matrix, columns: tuple[str, ...]) -> None:
    for column, values in zip(columns, train.T, strict=True):
        if (values == values[0]).all():
            raise DataError(
                f"{path}: column {column!r} is constant, {values[0]:g} in all {len(values)} rows "
                "of the training split, and has no density; drop the column"
            )


_READERS = {".csv": read_csv, ".npy": read_npy, ".npz": read_npz}
