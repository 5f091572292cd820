"""The user's own table: a .csv or .npy file of real numbers."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .dataset import DataError, Dataset, Matrix

__all__ = ["MIN_ROWS", "is_supported", "read", "table"]

MIN_ROWS = 20  # so that validation and test have two rows each


class _Table(NamedTuple):
    values: Matrix
    columns: tuple[str, ...]
    place: Callable[[int], str]  # where a row stands in the file, for messages


class _Line(NamedTuple):
    number: int
    text: str


def read(path: str | Path, *, seed: int = 0) -> Dataset:
    """Read a table, shuffle its rows and split them 80 / 10 / 10.

    A .csv file is UTF-8, with or without a byte order mark; its delimiter, a comma, semicolon, bar,
    tab or blanks, is found from its second line. The first line is a header if it has a field that
    is not a number; without one, and for .npy, columns are called x0, x1, ... Empty lines are
    skipped.
    A .npy file holds a matrix of real numbers, or a vector, which is one column.

    Args:
        path: the file; its name, suffix included, becomes the name of the data set, so that
            moons.csv and the toy moons stay apart.
        seed: fixes the split.

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
    n = len(table.values)
    if n < MIN_ROWS:
        raise DataError(
            f"{path}: too few rows ({n}) to split into training, validation and test; "
            f"give at least {MIN_ROWS}"
        )
    _refuse_not_finite(path, table)
    rows = table.values[np.random.default_rng(seed).permutation(n)]
    validation, test, train = np.split(rows, (n // 10, 2 * (n // 10)))
    _refuse_constant(path, train, table.columns)
    return Dataset(
        path.name,
        train,
        validation,
        test,
        columns=table.columns,
        source=str(path),
        licence="not stated: the user's own file",
        kind="file",
    )


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


def _open(path: Path) -> _Table:
    try:
        if path.is_dir():
            raise DataError(f"{path}: is a directory; name one .csv or .npy file")
        if not path.exists():
            raise DataError(f"{path}: file not found; check the path, relative to {Path.cwd()}")
        if not is_supported(path):
            suffix = f"suffix {path.suffix!r}" if path.suffix else "no suffix"
            raise DataError(f"{path}: cannot read a file with {suffix}; save it as .csv or .npy")
        if not path.stat().st_size:
            raise DataError(f"{path}: the file is empty; give at least {MIN_ROWS} rows of numbers")
        return _READERS[path.suffix.lower()](path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error


def _read_npy(path: Path) -> _Table:
    try:
        with path.open("rb") as file:
            array = np.load(file, allow_pickle=False)
    except OSError:
        raise
    except Exception as error:  # numpy lets out what its zip, header and memory steps raise
        raise DataError(
            f"{path}: not a complete .npy file of plain numbers; "
            "write it with numpy.save from a float array"
        ) from error
    if not isinstance(array, np.ndarray):
        raise DataError(f"{path}: holds an .npz archive; save one array with numpy.save")
    if array.dtype.kind not in "fiu":
        raise DataError(f"{path}: holds {array.dtype} values; save real numbers, such as float64")
    if array.ndim == 1:
        array = array[:, None]
    if array.ndim != 2 or not array.shape[1]:
        raise DataError(f"{path}: has shape {array.shape}; save a matrix of rows and columns")
    with np.errstate(over="ignore"):  # what overflows becomes infinite, and is refused as such
        values = np.ascontiguousarray(array, dtype=np.float64)
    columns = _numbered(values.shape[1])
    return _Table(values, columns, lambda i: f"row {i} (counted from 0)")


def _read_csv(path: Path) -> _Table:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: not UTF-8 text (byte {error.start}); save it with the encoding UTF-8"
        ) from error
    lines = [_Line(i, t) for i, t in enumerate(text.split("\n"), 1) if t.strip(" ")]
    if not lines:
        raise DataError(f"{path}: the file is blank; give at least {MIN_ROWS} rows of numbers")
    try:
        return _parse(path, lines)
    except csv.Error as error:
        raise DataError(f"{path}: not comma-separated values: {error}") from error


def _parse(path: Path, lines: list[_Line]) -> _Table:
    delimiter = _delimiter(lines)
    first = _fields(lines[0], delimiter)
    columns = _numbered(len(first))
    body = lines
    # An empty field does not make a header: it is a missing value in a table without one.
    if any(field.strip() and not _is_number(field) for field in first):
        columns = tuple(field.strip() or name for field, name in zip(first, columns, strict=True))
        body = lines[1:]
    if not body:
        raise DataError(f"{path}: no rows below the header; give at least {MIN_ROWS}")
    try:
        values = np.loadtxt(
            [line.text for line in body],
            delimiter=None if delimiter == " " else delimiter,  # None: any run of blanks
            comments=None,
            quotechar='"',
            ndmin=2,
        )
    except ValueError as error:
        raise _fault(path, lines[0], body, columns, delimiter) from error
    if values.shape != (len(body), len(columns)):
        raise _fault(path, lines[0], body, columns, delimiter)
    return _Table(values, columns, lambda i: f"line {body[i].number}")


def _fault(
    path: Path, first: _Line, body: list[_Line], columns: tuple[str, ...], delimiter: str
) -> DataError:
    """Return the error for the first line that numpy's fast reader, which names none, refused."""
    for line in body:
        fields = _fields(line, delimiter)
        if len(fields) != len(columns):
            return DataError(
                f"{path}: line {line.number} splits at {delimiter!r} into {len(fields)}, line "
                f"{first.number} into {len(columns)}; give every row the same columns"
            )
        for column, field in zip(columns, fields, strict=True):
            if not field.strip():
                return DataError(
                    f"{path}: column {column!r} has no value in line {line.number}; "
                    "drop such rows or fill them in"
                )
            if not _is_number(field):
                return DataError(
                    f"{path}: column {column!r} is not numeric, line {line.number} holds "
                    f"{field[:40]!r}; drop the column or write numbers, with a decimal point"
                )
    return DataError(f"{path}: cannot be parsed; write plain numbers split at one delimiter")


def _delimiter(lines: list[_Line]) -> str:
    # The second line, since a header may contain any mark, and a row of numbers only the delimiter
    # and perhaps decimal commas, hence the order. This is exact where csv.Sniffer guesses.
    sample = lines[:2][-1].text.strip(" ")
    return next((mark for mark in ";\t|, " if mark in sample), ",")


def _fields(line: _Line, delimiter: str) -> list[str]:
    return next(csv.reader([line.text.strip(" ")], delimiter=delimiter, skipinitialspace=True))


def _is_number(field: str) -> bool:
    # Python's float also takes 1_000 and digits of other scripts, which numpy's reader refuses.
    if "_" in field or not field.isascii():
        return False
    try:
        float(field)
    except ValueError:
        return False
    return True


def _numbered(features: int) -> tuple[str, ...]:
    return tuple(f"x{i}" for i in range(features))


def _refuse_not_finite(path: Path, table: _Table) -> None:
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


_READERS = {".csv": _read_csv, ".npy": _read_npy}
