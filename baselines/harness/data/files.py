"""The user's own table: a text, .parquet, .feather, .npy or .npz file, or a ``DataFrame``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

from baselines.harness.data import quantised
from baselines.harness.data.arrays import mapped_npy, read_npy, read_npz
from baselines.harness.data.choice import indices, refuse_constant, refuse_unusable
from baselines.harness.data.dataset import DataError, Dataset, Matrix
from baselines.harness.data.frames import from_frame, is_frame, read_columnar
from baselines.harness.data.quantised import Width
from baselines.harness.data.rows import MIN_ROWS, SPLITS, Choose, RawTable, Split, numbered
from baselines.harness.data.sources import Input, is_once, kind_of, label, unpacked
from baselines.harness.data.streams import Streamed
from baselines.harness.data.text import read_text

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["STREAMED_BYTES", "Source", "is_supported", "read", "stream", "table"]

Source: TypeAlias = "str | Path | DataFrame"

STREAMED_BYTES = 2**28
TEXT = (".csv", ".tsv", ".txt", ".dat", ".data")


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

    A text file, .csv, .tsv, .txt, .dat or .data, each also with .gz behind, is UTF-8; its
    delimiter, a comma, semicolon, bar, tab or blanks, and its header are found from its first rows,
    see ``text.read_text``; without a header, and for arrays, columns are called x0, x1, ... Of a
    .parquet or .feather file and a ``DataFrame`` all columns but the index are read. False and true
    are 0 and 1. An .npy file holds a matrix of real numbers, or a vector, which is one column; an
    .npz file one of these, or three, train, validation and test, which are taken as they are. A
    pipe, and standard input under the name ``-``, may hold any of these. All are read whole here:
    what is larger than memory must be an .npy file of a matrix, and goes to ``stream``.

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
    name = "DataFrame" if is_frame(path) else Path(str(path)).name
    source = _label(path)
    raw = _open(path, lambda names: indices(source, names, columns, drop, spared))
    n = len(raw.values)
    if raw.sizes is None and n < MIN_ROWS:
        raise DataError(
            f"{source}: too few rows ({n}) to split into training, validation and test; "
            f"give at least {MIN_ROWS}"
        )
    for split, size in zip(SPLITS, raw.sizes or (), strict=False):
        if size < 2:
            raise DataError(f"{source}: {split!r} has too few rows ({size}); give at least 2")
    refuse_unusable(source, raw)
    looked_at = raw.values[:: -(-n // quantised.EXAMINED)]
    notes, noise = _remedied(source, raw.columns, looked_at, spared, dequantise)
    values = raw.values
    if noise is not None:
        values = values + noise * quantised.uniform(np.arange(n), len(noise), seed)
    parts = _order(n, raw.sizes, seed)
    train, validation, test = (values[part] for part in parts)
    still = {
        column: train[0, i]
        for i, column in enumerate(raw.columns)
        if column not in spared and (train[:, i] == train[0, i]).all()
    }
    refuse_constant(source, still, len(train))
    if raw.booleans:
        columns_read = ", ".join(map(repr, raw.booleans))
        notes = (f"{source}: false and true are read as 0 and 1: {columns_read}", *notes)
    return Dataset(
        name,
        train,
        validation,
        test,
        columns=raw.columns,
        source=source,
        licence="not stated: the user's own file",
        kind="file",
        notes=(*raw.notes, *notes),
        order=np.concatenate(parts),
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
    kept = indices(path, numbered(array.shape[1]), columns, drop, spared)
    rows = Streamed(path, array, Split(len(array), seed), seed, kept, spared)
    looked_at = rows.every(quantised.EXAMINED)
    rows.notes, noise = _remedied(str(path), rows.columns, looked_at, spared, dequantise)
    if noise is not None:
        rows.add_noise(noise)
    return rows


def table(
    path: Source, choose: Choose = lambda names: range(len(names))
) -> tuple[Matrix, tuple[str, ...]]:
    r"""Read every row of a file in its order, with the column names: (N, D), D names.

    The formats are those of ``read``; one row is enough, and a column may be constant.

    Args:
        path: the file, or a ``DataFrame``.
        choose: from the names of the columns to the indices of those that are wanted; the others
            may hold anything. By default all are.

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
    source = _label(path)
    raw = _open(path, choose)
    if not len(raw.values):
        raise DataError(f"{source}: holds no rows; give at least one")
    refuse_unusable(source, raw)
    return raw.values, raw.columns


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


def _label(path: Source) -> str:
    return "the DataFrame" if is_frame(path) else label(path)


def _open(source: Source, choose: Choose) -> RawTable:
    if is_frame(source):
        return from_frame(source, choose)
    path = Path(str(source))
    try:
        if not is_once(path):
            _refuse_path(path)
        content = Input(path)
        start = content.start()
        if not start:
            raise DataError(
                f"{content}: the file is empty; give at least {MIN_ROWS} rows of numbers"
            )
        return _reader(content, start)(content, choose)
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


def _reader(source: Input, start: bytes) -> Callable[[Input, Choose], RawTable]:
    """What reads the content: by its first bytes, which may say more than the name."""
    suffix, kind = source.path.suffix.lower(), kind_of(start)
    if source.content is None and suffix in (".npy", ".npz"):
        return _READERS[suffix]
    if kind == "gzip":
        with unpacked(source) as inner:
            if inside := kind_of(inner.read(len(start))):
                raise DataError(f"{source}: a gzip archive of {inside}; unpack it")
        return read_text
    if f".{kind}" in _READERS:
        return _READERS[f".{kind}"]
    if source.content is not None and start.startswith((b"\x93NUMPY", b"PK\x03\x04")):
        return read_npy if start.startswith(b"\x93NUMPY") else read_npz
    if kind:
        raise DataError(
            f"{source}: holds {kind}, whatever its name says; save it as .csv, or give it the name "
            "of what it is"
        )
    return _READERS.get(suffix, read_text)


def _order(n: int, sizes: tuple[int, int, int] | None, seed: int) -> list[npt.NDArray[np.int64]]:
    """The numbers of the rows to train, validate and test."""
    if sizes is not None:
        return np.split(np.arange(n), np.cumsum(sizes[:2]))
    split = Split(n, seed)
    rng = np.random.default_rng([seed, 1])  # not the stream that the split was drawn from
    return [split.rows("train"), *(rng.permutation(split.rows(name)) for name in SPLITS[1:])]


def _remedied(
    source: str,
    columns: Sequence[str],
    looked_at: Matrix,
    spared: Sequence[str],
    dequantise: Width | None,
) -> tuple[tuple[str, ...], quantised.Vector | None]:
    """What is to be warned of, and the width of each column's noise or None."""
    repeats = [
        quantised.Repeats() if name in spared else column
        for name, column in zip(columns, quantised.repeats_of(looked_at), strict=True)
    ]
    noise = None if dequantise is None else quantised.widths(repeats, dequantise)
    noise = noise if noise is not None and noise.any() else None
    return quantised.notes(source, columns, looked_at, repeats, dequantise), noise


_READERS: dict[str, Callable[[Input, Choose], RawTable]] = {
    ".npy": read_npy,
    ".npz": read_npz,
    ".parquet": partial(read_columnar, kind="parquet"),
    ".feather": partial(read_columnar, kind="feather"),
}
