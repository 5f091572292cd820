"""Tables that pandas holds or reads by itself: a ``DataFrame``, .parquet and .feather."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Literal, TypeGuard

import numpy as np

from baselines.harness.data.dataset import DataError, Matrix
from baselines.harness.data.rows import Choose, Fault, RawTable, numbered, tidy
from baselines.harness.data.sources import Input
from cflows.core.arguments import Array

if TYPE_CHECKING:
    from pandas import DataFrame, Series

__all__ = ["columns_of", "from_frame", "is_frame", "is_number", "pandas_for", "read_columnar"]

MISSING = ("", "na", "n/a", "#n/a", "<na>", "nat", "null", "none", "?", "-", ".")
SHOWN = 40  # characters of a field


def pandas_for(source: object, module: str = "pandas") -> ModuleType:
    """Import pandas, or pyarrow, to read a source; DataError where it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise DataError(
            f"{source}: reading it needs {module}, which is not installed: "
            "pip install 'cflows[data]'"
        ) from error


def is_frame(source: object) -> TypeGuard[DataFrame]:
    """Whether this is a ``pandas.DataFrame``; pandas is not imported for it.

    Example:
        >>> is_frame("people.csv")
        False

    """
    kinds = type(source).__mro__
    return any(k.__name__ == "DataFrame" and k.__module__.startswith("pandas") for k in kinds)


def from_frame(frame: DataFrame, choose: Choose) -> RawTable:
    """Return columns of a frame, its index not among them, as numbers."""
    stand_in = numbered(frame.shape[1])
    names = tidy([" ".join(map(str, n)) if isinstance(n, tuple) else n for n in frame.columns])
    if names == tuple(map(str, range(len(names)))):  # pandas' own, where none were given
        names = stand_in
    names = tuple(name or x for name, x in zip(names, stand_in, strict=True))
    return columns_of(
        {i: names[i] for i in choose(names)}, frame, lambda i: f"row {i} (counted from 0)"
    )


def read_columnar(
    source: Input, choose: Choose, *, kind: Literal["parquet", "feather"]
) -> RawTable:
    """Read a file that pyarrow wrote; DataError where it is damaged, or a package is missing."""
    pandas = pandas_for(source)
    pandas_for(source, "pyarrow")
    try:
        with source.open() as file:
            frame = getattr(pandas, f"read_{kind}")(file)
    except MemoryError:
        raise
    except Exception as error:  # pyarrow's own errors are of many classes, OSError among them
        raise DataError(
            f"{source}: not a complete .{kind} file; write it with DataFrame.to_{kind}"
        ) from error
    return from_frame(frame, choose)


def columns_of(names: dict[int, str], frame: DataFrame, where: Callable[[int], str]) -> RawTable:
    """Put some columns of a frame together, by index: numbers, booleans as 0 and 1, also as text.

    A column that has something else, or nothing, in a row is NaN throughout, and a fault.
    """
    values = np.full((len(frame), len(names)), np.nan)
    faults: dict[int, Fault] = {}
    booleans = []
    for i, index in enumerate(names):
        numbers, is_boolean = _numbers(frame.iloc[:, index], where)
        if isinstance(numbers, Fault):
            faults[i] = numbers
        else:
            values[:, i] = numbers
        if is_boolean:
            booleans.append(names[index])
    return RawTable(values, tuple(names.values()), where, faults=faults, booleans=tuple(booleans))


def _numbers(column: Series, where: Callable[[int], str]) -> tuple[Matrix | Fault, bool]:
    """The numbers of a column, or why it has none; whether they stand for booleans."""
    kind = getattr(column.dtype, "kind", "O")
    empty = column.isna().to_numpy()
    if kind in "iufb" and not empty.any():
        return column.to_numpy(dtype=np.float64), kind == "b"
    cells = column.astype(object).to_numpy()
    if kind in "iuf" and isinstance(column.dtype, np.dtype):
        return _blank(empty, cells, where), False
    texts = [str(cell).strip() for cell in cells]
    empty = empty | np.array([text.lower() in MISSING for text in texts], bool)
    held = np.flatnonzero(~empty).tolist()
    is_boolean = bool(held) and all(texts[i].lower() in ("true", "false") for i in held)
    for i in () if is_boolean else held:
        if not is_number(texts[i]):
            shown = (texts[i].splitlines() or [""])[0][:SHOWN]
            what = f"is not numeric, {where(i)} holds {shown!r}"
            return Fault(i, what, "write numbers, with a decimal point"), False
    if empty.any():
        return _blank(empty, cells, where), is_boolean
    if is_boolean:
        return np.array([text.lower() == "true" for text in texts], np.float64), True
    return np.array(texts, np.float64), False


def _blank(empty: Array, cells: Sequence[object], where: Callable[[int], str]) -> Fault:
    first, more = int(empty.argmax()), int(empty.sum()) - 1
    text = str(cells[first]).strip() if isinstance(cells[first], str) else ""
    what = f"has no value in {where(first)}" + (f" ({text!r})" if text else "")
    if more:
        what += f" and in {more} more of {len(empty)}"
    return Fault(first, what, "drop such rows or fill them in")


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
