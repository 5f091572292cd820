"""Text files of numbers, one row a line, split at a delimiter that is found."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .dataset import DataError
from .rows import MIN_ROWS, Table, numbered

__all__ = ["read_csv"]


class _Line(NamedTuple):
    number: int
    text: str


def read_csv(path: Path) -> Table:
    """Read a .csv file whole.

    Raises:
        DataError: not text in UTF-8, blank, rows of unequal length, a field that is no number.
        OSError: it cannot be read.

    """
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


def _parse(path: Path, lines: list[_Line]) -> Table:
    delimiter = _delimiter(lines)
    if delimiter != " " and all(_is_ended(line.text, delimiter) for line in lines):
        lines = [_Line(i, text.rstrip(" ")[:-1]) for i, text in lines]
    first = _fields(lines[0], delimiter)
    columns = numbered(len(first))
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
    return Table(values, columns, lambda i: f"line {body[i].number}")


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


def _is_ended(text: str, delimiter: str) -> bool:
    """Whether a delimiter ends the last field too, as some programs write it."""
    return text.rstrip(" ").endswith(delimiter) and bool(text.strip(f" {delimiter}"))


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
