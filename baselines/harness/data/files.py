"""The user's own table: a text, .parquet, .feather, .npy or .npz file, or a ``DataFrame``."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from baselines.harness.data import quantised
from baselines.harness.data.arrays import mapped_npy, read_npy, read_npz
from baselines.harness.data.choice import places, refuse_unusable
from baselines.harness.data.columnar import from_frame, is_frame, read_feather, read_parquet
from baselines.harness.data.dataset import DataError, Dataset, Matrix
from baselines.harness.data.inputs import STANDARD, Input, kind_of, unpacked
from baselines.harness.data.quantised import Width
from baselines.harness.data.rows import MIN_ROWS, SPLITS, RawTable, Split, numbered
from baselines.harness.data.streams import Streamed
from baselines.harness.data.text import read_text

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = [
    "MIN_ROWS",
    "STREAMED_BYTES",
    "Source",
    "is_once",
    "is_supported",
    "read",
    "stream",
    "table",
]

Source: TypeAlias = "str | Path | DataFrame"

STREAMED_BYTES = 2**28
WHOLE = 2.0**53  # from which on float64 does not hold every whole number
TEXT = (".csv", ".tsv", ".txt", ".dat", ".data")
LICENCE = "not stated: the user's own file"


def read(
    path: Source,
    *,
    seed: int = 0,
    dequantise: Width | None = None,
    spared: Sequence[str] = (),
    columns: Sequence[str] | None = None,
    drop: Sequence[str] = (),
) -> Dataset:
    """Read a table and split its rows 80 / 10 / 10, if it is not split already.

    A text file, .csv, .tsv, .txt, .dat or .data, and each of them with .gz behind, is UTF-8, with
    or without a byte order mark; its delimiter, a comma, semicolon, bar, tab or blanks, is found
    from its first two rows, and so is whether the first is a header, see ``text.read_text``;
    without one, and for arrays, columns are called x0, x1, ... Empty lines are skipped. Of a
    .parquet or .feather file and a ``DataFrame`` all columns but the index are read. False and true
    are 0 and 1. A pipe, and standard input under the name ``-``, may hold any of these.
    An .npy file holds a matrix of real numbers, or a vector, which is one column. An .npz file
    holds one of these, or three: train, validation and test, which are taken as they are.
    All are read whole here: what is larger than memory must be an .npy file of a matrix, and goes
    to ``stream``.

    Of each ten rows in succession one validates and one tests, see ``rows.Split``. Training rows
    keep the file's order; the others are shuffled, so that the first of them stand for all.

    Args:
        path: the file, whose name, suffix included, becomes the name of the data set, so that
            moons.csv and the toy moons stay apart; or a ``pandas.DataFrame``.
        seed: fixes the split and the noise.
        dequantise: ``"auto"`` adds U[0, 1) times its own step to each column whose values repeat on
            a grid; a number is the width of the noise of each column whose values repeat. None
            leaves the rows as they are. What is left to be warned of is in the data set's notes.
        spared: columns that are looked at as little as they get noise, such as a context; they may
            be constant, and are kept beside ``columns``.
        columns: the names of the columns to keep, in the file's order; None for all.
        drop: the names of columns to leave out.

    Raises:
        DataError: no such file, not a file, another suffix, unreadable; fewer than 20 rows, rows of
            unequal length, a field that is not a finite number, a column constant in training, no
            such column; pandas is not installed.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.save(f"{folder}/rows.npy", np.random.default_rng(0).normal(size=(50, 3)))
        ...     data = read(f"{folder}/rows.npy")
        >>> data.train.shape, data.validation.shape, data.test.shape, data.columns
        ((40, 3), (5, 3), (5, 3), ('x0', 'x1', 'x2'))

    """
    found = _open(path)
    name = "DataFrame" if is_frame(path) else Path(str(path)).name
    path = _shown(path)
    table = found.take(places(path, found.columns, columns, drop, spared))
    _refuse_few(path, table)
    refuse_unusable(path, table)
    n = len(table.values)
    looked_at = table.values[:: -(-n // quantised.EXAMINED)]
    notes, noise = _remedied(path, table.columns, looked_at, spared, dequantise)
    values = table.values
    if noise is not None:
        values = values + noise * quantised.uniform(np.arange(n), len(noise), seed)
    train, validation, test = _split(values, table.sizes, seed)
    _refuse_constant(path, train, table.columns, spared)
    return Dataset(
        name,
        train,
        validation,
        test,
        columns=table.columns,
        source=path,
        licence=LICENCE,
        kind="file",
        notes=(*table.notes, *_converted(path, table), *notes),
    )


def stream(
    path: str | Path,
    *,
    seed: int = 0,
    dequantise: Width | None = None,
    spared: Sequence[str] = (),
    columns: Sequence[str] | None = None,
    drop: Sequence[str] = (),
) -> Streamed | None:
    """Map a large .npy file into memory; None for what ``read`` should read.

    The split and the noise are those of ``read``; the file is read once, in chunks, to be checked.

    Raises:
        DataError: a value that is not finite, a constant column, or no such column.

    """
    path = Path(path)
    if path.suffix.lower() != ".npy" or not path.is_file():
        return None
    if path.stat().st_size <= STREAMED_BYTES or (array := mapped_npy(path)) is None:
        return None
    kept = places(path, numbered(array.shape[1]), columns, drop, spared)
    found = Streamed(path, array, Split(len(array), seed), seed, kept, spared)
    looked_at = found.every(quantised.EXAMINED)
    found.notes, noise = _remedied(str(path), found.columns, looked_at, spared, dequantise)
    if noise is not None:
        found.add_noise(noise)
    return found


def table(
    path: Source, choose: Callable[[Sequence[str]], Sequence[int]] | None = None
) -> tuple[Matrix, tuple[str, ...]]:
    r"""Read every row of a file in its order, with the column names: (N, D), D names.

    The formats are those of ``read``; one row is enough, and a column may be constant.

    Args:
        path: the file, or a ``DataFrame``.
        choose: from the names of the columns to the places of those that are wanted; the others may
            hold anything. None for all.

    Raises:
        DataError: as ``read``, for what is not a table of finite numbers.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "one.csv"
        ...     _ = path.write_text("name,height,weight\nAnn,1.7,70\n")
        ...     table(path, lambda names: [names.index("weight"), names.index("height")])
        (array([[70. ,  1.7]]), ('weight', 'height'))

    """
    found = _open(path)
    path = _shown(path)
    if not len(found.values):
        raise DataError(f"{path}: holds no rows; give at least one")
    if choose is not None:
        found = found.take(choose(found.columns))
    refuse_unusable(path, found)
    return found.values, found.columns


def is_supported(path: str | Path) -> bool:
    """Return whether the suffix, in either case, is one that ``read`` knows.

    Example:
        >>> is_supported("rows.CSV.gz"), is_supported("rows.parquet"), is_supported("rows.png")
        (True, True, False)

    """
    path = Path(path)
    if path.suffix.lower() == ".gz":
        return Path(path.stem).suffix.lower() in TEXT
    return path.suffix.lower() in (*TEXT, *_READERS)


def is_once(path: object) -> bool:
    """Return whether this can be read once and no more: standard input, or a pipe.

    Example:
        >>> is_once("-"), is_once("rows.csv")
        (True, False)

    """
    if is_frame(path):
        return False
    place = Path(str(path))
    return place == STANDARD or (os.path.exists(place) and not (place.is_file() or place.is_dir()))


def _shown(path: Source) -> str:
    """What messages call a source."""
    if is_frame(path):
        return "the DataFrame"
    return "standard input" if Path(str(path)) == STANDARD else str(path)


def _open(given: Source) -> RawTable:
    if is_frame(given):
        return from_frame(given)
    path = Path(str(given))
    try:
        if not is_once(path):
            _refuse_path(path)
        source = Input(path)
        start = source.start()
        if not start:
            raise DataError(
                f"{source}: the file is empty; give at least {MIN_ROWS} rows of numbers"
            )
        return _reader(source, start)(source)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    except MemoryError as error:
        raise DataError(
            f"{path}: does not fit in memory; save it as an .npy matrix of float32, which cflows "
            "fit reads from the disk"
        ) from error


def _refuse_path(path: Path) -> None:
    if path.is_dir():
        raise DataError(f"{path}: is a directory; name one file, such as .csv, .parquet or .npy")
    if not path.exists():
        raise DataError(f"{path}: file not found; check the path, relative to {Path.cwd()}")
    if not is_supported(path):
        suffix = f"suffix {path.suffix!r}" if path.suffix else "no suffix"
        raise DataError(
            f"{path}: cannot read a file with {suffix}; save it as .csv, .npy or .npz, "
            "or .tsv, .txt, .parquet, .feather"
        )


def _reader(source: Input, start: bytes) -> Callable[[Input], RawTable]:
    """What reads the content: by its first bytes, which may say more than the name.

    Raises:
        DataError: it is something else than the name says, and no table that can be read.

    """
    suffix, kind = source.path.suffix.lower(), kind_of(start)
    if source.is_file and suffix in (".npy", ".npz"):
        return _READERS[suffix]
    if kind == "gzip":
        with unpacked(source) as inner:
            if inside := kind_of(inner.read(len(start))):
                raise DataError(f"{source}: a gzip archive of {inside}; unpack it")
        return read_text
    if f".{kind}" in _READERS:
        return _READERS[f".{kind}"]
    if not source.is_file and start.startswith((b"\x93NUMPY", b"PK\x03\x04")):
        return read_npy if start.startswith(b"\x93NUMPY") else read_npz
    if kind:
        raise DataError(f"{source}: holds {kind}, whatever its name says; save it as .csv, or give "
                        "it the name of what it is")  # fmt: skip
    return _READERS.get(suffix, read_text)


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
    path: str,
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
    return quantised.notes(path, columns, looked_at, found, dequantise), noise


def _converted(path: str, table: RawTable) -> tuple[str, ...]:
    if not table.booleans:
        return ()
    names = ", ".join(repr(table.columns[place]) for place in table.booleans)
    return (f"{path}: false and true are read as 0 and 1: {names}",)


def _refuse_few(path: str, table: RawTable) -> None:
    n = len(table.values)
    if table.sizes is None and n < MIN_ROWS:
        raise DataError(
            f"{path}: too few rows ({n}) to split into training, validation and test; "
            f"give at least {MIN_ROWS}"
        )
    for name, size in zip(SPLITS, table.sizes or (), strict=False):
        if size < 2:
            raise DataError(f"{path}: {name!r} has too few rows ({size}); give at least 2")


def _refuse_constant(
    path: str, train: Matrix, columns: tuple[str, ...], spared: Sequence[str]
) -> None:
    still = [
        name
        for name, values in zip(columns, train.T, strict=True)
        if name not in spared and (values == values[0]).all()
    ]
    if not still:
        return
    value = train[0, columns.index(still[0])]
    where = f"in all {len(train)} rows of the training split"
    option = f"drop the column (--drop {' '.join(map(shlex.quote, still))})"
    if abs(value) >= WHOLE:
        raise DataError(
            f"{path}: column {still[0]!r} is {value:g} {where} as float64 holds it: values so "
            f"large must differ by more than {np.spacing(abs(value)):g}; {option} or subtract a "
            "constant where it was written"
        )
    others = f"; so are {', '.join(map(repr, still[1:]))}" if still[1:] else ""
    raise DataError(f"{path}: column {still[0]!r} is constant, {value:g} {where}, and has no "
                    f"density{others}; {option}")  # fmt: skip


_READERS: dict[str, Callable[[Input], RawTable]] = {
    ".npy": read_npy,
    ".npz": read_npz,
    ".parquet": read_parquet,
    ".feather": read_feather,
}
