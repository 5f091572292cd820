"""Tables that pandas holds or reads by itself: a ``DataFrame``, .parquet and .feather."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from baselines.harness.data.dataset import DataError, Matrix
from baselines.harness.data.inputs import Input
from baselines.harness.data.rows import Fault, RawTable, numbered

__all__ = [
    "MISSING",
    "columns_of",
    "from_frame",
    "is_frame",
    "is_number",
    "pandas_for",
    "read_feather",
    "read_parquet",
]

MISSING = ("", "na", "n/a", "#n/a", "<na>", "nat", "null", "none", "?", "-", ".")
SHOWN = 40  # characters of a field


def pandas_for(source: object, module: str = "pandas") -> Any:
    """Import pandas, or pyarrow, to read a source.

    Raises:
        DataError: it is not installed.

    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise DataError(
            f"{source}: reading it needs {module}, which is not installed: "
            "pip install 'cflows[data]'"
        ) from error


def is_frame(given: object) -> bool:
    """Whether this is a ``pandas.DataFrame``; pandas is not imported for it.

    Example:
        >>> is_frame("people.csv")
        False

    """
    kinds = type(given).__mro__
    return any(k.__name__ == "DataFrame" and k.__module__.startswith("pandas") for k in kinds)


def from_frame(frame: Any) -> RawTable:
    """Return the columns of a frame, without its index, as numbers."""
    names = tuple(" ".join(map(str, n)) if isinstance(n, tuple) else str(n) for n in frame.columns)
    if names == tuple(map(str, range(len(names)))):  # pandas' own, where none were given
        names = numbered(len(names))
    return columns_of(
        names,
        [frame.iloc[:, i] for i in range(frame.shape[1])],
        len(frame),
        lambda i: f"row {i} (counted from 0)",
    )


def read_parquet(source: Input) -> RawTable:
    """Read a .parquet file whole.

    Raises:
        DataError: damaged, or pandas or pyarrow is missing.
        OSError: it cannot be read.

    """
    return _read(source, "read_parquet", ".parquet")


def read_feather(source: Input) -> RawTable:
    """Read a .feather file whole; raises as ``read_parquet`` does."""
    return _read(source, "read_feather", ".feather")


def _read(source: Input, reader: str, suffix: str) -> RawTable:
    pandas = pandas_for(source)
    pandas_for(source, "pyarrow")
    try:
        with source.open() as file:
            frame = getattr(pandas, reader)(file)
    except MemoryError:
        raise
    except Exception as error:  # pyarrow's own errors are of many classes, OSError among them
        raise DataError(
            f"{source}: not a complete {suffix} file; write it with DataFrame.to_{suffix[1:]}"
        ) from error
    return from_frame(frame)


def columns_of(
    names: tuple[str, ...],
    series: Sequence[Any],
    n: int,
    place: Callable[[int], str],
) -> RawTable:
    """Put pandas' columns together: numbers, booleans as 0 and 1, numbers written as text.

    A column that has something else, or nothing, in a row is NaN throughout, and a fault.
    """
    values = np.empty((n, len(names)))
    faults: dict[int, Fault] = {}
    booleans = []
    for i, column in enumerate(series):
        kind = getattr(column.dtype, "kind", "O")
        if kind in "iufb" and not (empty := column.isna().to_numpy()).any():
            values[:, i] = column.to_numpy(dtype=np.float64)
            is_boolean = kind == "b"
        elif kind in "iuf" and isinstance(column.dtype, np.dtype):
            is_boolean = False
            faults[i] = _blank(empty, column.to_numpy(object), place)
            values[:, i] = np.nan
        else:
            found, is_boolean = _numbers(column, place)
            if isinstance(found, Fault):
                faults[i], values[:, i] = found, np.nan
            else:
                values[:, i] = found
        if is_boolean:
            booleans.append(i)
    return RawTable(values, names, place, faults=faults, booleans=tuple(booleans))


def _numbers(column: Any, place: Callable[[int], str]) -> tuple[Matrix | Fault, bool]:
    """The numbers of a column of objects, or why it has none; whether they stand for booleans."""
    cells = column.astype(object).to_numpy()
    texts = [str(cell).strip() for cell in cells]
    empty = column.isna().to_numpy() | np.array([t.lower() in MISSING for t in texts], bool)
    held = [text.lower() for text, missing in zip(texts, empty, strict=True) if not missing]
    is_boolean = bool(held) and all(text in ("true", "false") for text in held)
    if not is_boolean:
        for i in np.flatnonzero(~empty):
            if not is_number(texts[i]):
                shown = (texts[i].splitlines() or [""])[0][:SHOWN]
                return _no_number(f"{place(int(i))} holds {shown!r}"), False
    if empty.any():
        return _blank(empty, cells, place), is_boolean
    if is_boolean:
        return np.array([text == "true" for text in held], np.float64), True
    return np.array(texts, np.float64), False


def _no_number(what: str) -> Fault:
    return Fault(f"is not numeric, {what}", "write numbers, with a decimal point")


def _blank(empty: npt.NDArray[np.bool_], cells: Any, place: Callable[[int], str]) -> Fault:
    first = int(empty.argmax())
    text = cells[first] if isinstance(cells[first], str) else ""
    more = int(empty.sum()) - 1
    what = f"has no value in {place(first)}" + (f" ({text.strip()!r})" if text.strip() else "")
    if more:
        what += f" and in {more} more of {len(empty)}"
    return Fault(what, "drop such rows or fill them in")


def is_number(field: str) -> bool:
    """Whether a field is a number, as Python writes one."""
    # Python's float also takes 1_000 and digits of other scripts, which no other reader does.
    if "_" in field or not field.isascii():
        return False
    try:
        float(field)
    except ValueError:
        return False
    return True
