"""Text tables: their delimiter and header are found here, their numbers are read by pandas."""

from __future__ import annotations

import csv
import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, NamedTuple, TextIO

import numpy as np

from baselines.harness.data.columnar import MISSING, columns_of, is_number, pandas_for
from baselines.harness.data.dataset import DataError
from baselines.harness.data.inputs import Input, unpacked
from baselines.harness.data.rows import MIN_ROWS, RawTable, numbered

__all__ = ["read_text"]

MARKS = ";\t|, "  # a row of numbers holds only the delimiter and perhaps decimal commas
COMMENTS = ("#", "%")
LOOKED_AT = 12  # records, behind the comments
NAMELESS = ("", "Unnamed: 0")  # the second is what pandas makes of the first


class _Line(NamedTuple):
    number: int
    text: str
    end: int


@dataclass(frozen=True)
class _Layout:
    """How the rows of a text file stand in it.

    Attributes:
        source: the file.
        delimiter: between fields; a blank stands for any run of them.
        skipped: lines in front of the first row.
        head: the line that says how many columns there are.
        width: how many.
        names: of the columns, or () where they have none.
        short: whether the header lacks the name of the first column, as R writes it.

    """

    source: Input
    delimiter: str
    skipped: int
    head: int
    width: int
    names: tuple[str, ...] = ()
    short: bool = False

    def rows(self) -> Iterator[tuple[int, list[str]]]:
        """The line and the fields of each row, as they are: slow, and only for messages.

        Raises:
            DataError: the csv module cannot split it.

        """
        with _opened(self.source, self.skipped) as text:
            lines = (_single(line) for line in text) if self.delimiter == " " else text
            reader = csv.reader(lines, delimiter=self.delimiter, skipinitialspace=True)
            while True:
                number = self.skipped + reader.line_num + 1
                try:
                    fields = next(reader, None)
                except csv.Error as error:
                    raise DataError(f"{self.source}: line {number} is not comma-separated values: "
                                    f"{error}") from error  # fmt: skip
                if fields is None:
                    return
                if len(fields) > 1 or "".join(fields).strip():
                    yield number, fields

    def place(self, row: int) -> str:
        """Where a row stands in the file."""
        return f"line {next(islice(self.rows(), row, None))[0]}"

    def refuse_ragged(self) -> None:
        """Raise for the first row that has another number of fields than the head."""
        for number, fields in self.rows():
            blank = not "".join(fields).strip()
            if len(fields) != self.width and not blank:
                raise self.ragged(number, fields)

    def ragged(self, number: int, fields: list[str]) -> DataError:
        """The error for a row of another number of fields."""
        if fields[0].startswith(COMMENTS):
            return DataError(
                f"{self.source}: line {number} is a comment, {fields[0][:40]!r}; delete it: "
                "comments may stand at the top alone"
            )
        width = self.width - self.short
        return DataError(
            f"{self.source}: line {number} splits at {self.delimiter!r} into {len(fields)}, line "
            f"{self.head} into {width}; give every row the same columns"
        )


def read_text(source: Input) -> RawTable:
    """Read a text table whole, packed by gzip or not.

    Its first row is a header if it has a field that is neither a number nor missing, except where
    the second row has text in the same places, and numbers where the first one has. Lines at the
    top that begin with # or % are comments, of which the last may be the header. A first column
    without a name that counts the rows, or labels them, is left out.

    Raises:
        DataError: not text in UTF-8, blank, rows of unequal length; pandas is missing.
        OSError: it cannot be read.

    """
    pandas = pandas_for(source)
    try:
        layout = _layout(source)
        table = _parsed(pandas, layout)
    except UnicodeDecodeError:
        raise _not_utf8(source) from None
    except csv.Error as error:
        raise DataError(f"{source}: not comma-separated values: {error}") from error
    return _without_labels(_without_an_end(table, layout), layout)


def _parsed(pandas: Any, layout: _Layout) -> RawTable:
    """Read all as float64, fast; where that fails, each column as what it is."""
    # What pandas cannot read in this way is read again as text, to find the first bad field.
    frame = _frame(pandas, layout, dtype=np.float64)
    if frame is not None:
        values = np.ascontiguousarray(frame.to_numpy())
        return RawTable(values, _names(layout), layout.place)
    frame = _frame(pandas, layout, low_memory=False)
    if frame is None:
        layout.refuse_ragged()
        raise DataError(f"{layout.source}: cannot be parsed; write plain numbers split at one "
                        "delimiter")  # fmt: skip
    series = [frame.iloc[:, i] for i in range(layout.width)]
    texts = [pandas.api.types.is_string_dtype(column.dtype) for column in series]
    places = np.arange(len(frame))
    if all(texts):  # where a row may be blank but for its delimiters
        places = _filled(frame)
        series = [column.iloc[places] for column in series]
    if texts[-1] and (series[-1] == "").any():
        layout.refuse_ragged()
    return columns_of(
        _names(layout),
        series,
        len(places),
        lambda i: layout.place(int(places[i])),
    )


def _filled(frame: Any) -> Any:
    """The places of the rows down to the last that holds anything, or of all where none does."""
    empty = np.ones(len(frame), bool)
    for i in range(frame.shape[1]):
        empty &= (frame.iloc[:, i].astype(object) == "").to_numpy()
    return np.arange(len(frame) if empty.all() else 1 + np.flatnonzero(~empty)[-1])


def _frame(pandas: Any, layout: _Layout, **settings: Any) -> Any:
    """What pandas reads, or None where the fields are not what the settings say, or too many."""
    if tuple(map(int, pandas.__version__.split(".")[:2])) < (3, 1):
        settings["float_precision"] = "round_trip"  # the default since is as exact
    with _opened(layout.source, layout.skipped) as text, warnings.catch_warnings():
        warnings.simplefilter("error", pandas.errors.ParserWarning)
        try:
            return pandas.read_csv(
                text,
                sep=r"\s+" if layout.delimiter == " " else layout.delimiter,
                header=None,
                names=range(layout.width),
                index_col=False,
                na_filter=False,
                skipinitialspace=True,
                **settings,
            )
        except UnicodeDecodeError:
            raise
        except (ValueError, pandas.errors.ParserWarning):  # ParserError is a ValueError
            return None


def _names(layout: _Layout) -> tuple[str, ...]:
    stand_in = numbered(layout.width)
    return tuple(name or x for name, x in zip(layout.names or stand_in, stand_in, strict=True))


def _without_an_end(table: RawTable, layout: _Layout) -> RawTable:
    """Leave out what stands behind a delimiter that ends each row: nothing."""
    last = layout.width - 1
    if last < 1 or last not in table.faults or not _is_blank(layout, table):
        return table
    if layout.short:  # the rows are ended so, the header is not
        return replace(table.take(range(last)), columns=layout.names[1:])
    return table if layout.names and layout.names[-1] else table.take(range(last))


def _is_blank(layout: _Layout, table: RawTable) -> bool:
    if not table.faults[layout.width - 1].what.startswith("has no value"):
        return False
    return all(not fields[-1].strip() for _, fields in layout.rows())


def _without_labels(table: RawTable, layout: _Layout) -> RawTable:
    """Leave out a first column without a name that counts the rows or labels them."""
    nameless = layout.short or (layout.names and layout.names[0] in NAMELESS)
    if not nameless or len(table.columns) < 2 or len(table.columns) < layout.width:
        return table
    what = "labels"
    if 0 not in table.faults:
        first = table.values[:, 0]
        whole = bool((first == np.floor(first)).all() and (first >= 0).all())
        what = "counts" if whole and len(np.unique(first)) == len(first) else ""
    elif table.faults[0].what.startswith("has no value"):
        what = ""
    if not what and layout.short:
        raise layout.ragged(*next(layout.rows()))
    if not what:
        return table
    kept = table.take(range(1, len(table.columns)))
    note = (f"{layout.source}: the first column has no name and {what} the rows: it is left out; "
            "to keep it, give it a name")  # fmt: skip
    return replace(kept, notes=(note,))


# The layout ---------------------------------------------------------------------------------------


def _layout(source: Input) -> _Layout:
    comments: list[_Line] = []
    records: list[_Line] = []
    mark = ""
    with _opened(source, 0) as text:
        lines = _lines(text)
        for line in lines:
            stripped = line.text.strip()
            if not records and not mark and re.fullmatch(r'"?sep=(.)"?', stripped, re.IGNORECASE):
                mark = stripped.strip('"')[4]
            elif not records and stripped.startswith(COMMENTS):
                comments.append(line)
            else:
                records.append(line)
                if len(records) == LOOKED_AT:
                    break
    records = [r for r in records if r.text.strip()] or records
    if not records and not comments:
        raise DataError(f"{source}: the file is blank; give at least {MIN_ROWS} rows of numbers")
    if not records:  # a header that looks like a comment, and no more
        raise DataError(f"{source}: no rows below the header; give at least {MIN_ROWS}")
    mark = mark or _delimiter(records)
    fields = [_fields(record, mark) for record in records]
    rows = _header_rows(fields)
    if rows == 1 and not _is_header(fields):
        names = _commented(comments, fields[0], mark)
        skipped = records[0].number - 1
        return _Layout(source, mark, skipped, records[0].number, len(fields[0]), names)
    if rows == len(fields):
        raise DataError(f"{source}: no rows below the header; give at least {MIN_ROWS}")
    names = tuple(
        " ".join(" ".join(part).split()) for part in zip(*fields[: max(1, rows - 1)], strict=True)
    )
    if rows > 1:  # the first column's are the names of the levels
        names = ("", *names[1:])
    names = (names[0].lstrip("#% "), *names[1:])
    head, first = records[0], fields[rows]
    short = len(first) == len(names) + 1
    if short:
        names = ("", *names)
    layout = _Layout(source, mark, records[rows - 1].end, head.number, len(names), names, short)
    if len(first) != layout.width:
        raise layout.ragged(records[rows].number, first)
    return layout


def _delimiter(records: list[_Line]) -> str:
    """The mark that splits the first two records alike, else the first in the second of them.

    A header may contain any mark, hence the second. This is exact where csv.Sniffer guesses.
    """
    first, second = records[0], records[:2][-1]
    sample = re.sub(r'"[^"]*"', "", second.text).strip(" \r\n")
    found = [mark for mark in MARKS if mark in sample]
    alike = (m for m in found if len(_fields(first, m)) == len(_fields(second, m)))
    return next(alike, found[0] if found else ",")


def _is_header(fields: list[list[str]]) -> bool:
    first, *rest = (field.strip() for field in fields[0])
    if rest and first in NAMELESS and rest == [str(i) for i in range(len(rest))]:
        return True  # pandas' own names, behind its index
    kinds = [[is_number(field.strip()) for field in record] for record in fields[:2]]
    if not any(
        not number and field.strip().lower() not in MISSING
        for field, number in zip(fields[0], kinds[0], strict=True)
    ):
        return False
    # Text in the same places below, and numbers where there are numbers: a row like the others.
    return len(kinds) < 2 or not any(kinds[0]) or kinds[0] != kinds[1]


def _header_rows(fields: list[list[str]]) -> int:
    """How many records a header takes: several where names repeat and a blank record ends it.

    So pandas writes columns of several levels.
    """
    names = fields[0][1:]
    if len(set(names)) == len(names) or not "".join(names).strip():
        return 1
    for k, record in enumerate(fields):
        if len(record) != len(fields[0]) or is_number(record[0].strip()):
            break
        if k > 1 and not "".join(record).strip():
            return k + 1
    return 1


def _commented(comments: list[_Line], first: list[str], mark: str) -> tuple[str, ...]:
    """The names in the last comment, where it has as many as the first row has fields."""
    if not comments:
        return ()
    text = comments[-1].text.strip().lstrip("#% ")
    names = [name.strip() for name in _fields(comments[-1]._replace(text=text), mark)]
    # Other words than names would be names for good.
    return tuple(names) if len(names) == len(first) and not any(map(is_number, names)) else ()


# Lines --------------------------------------------------------------------------------------------


@contextmanager
def _opened(source: Input, skipped: int) -> Iterator[TextIO]:
    """The text, behind so many lines."""
    with unpacked(source) as file:
        text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
        try:
            for _ in range(skipped):
                text.readline()
            yield text
        finally:
            if not text.closed:
                text.detach()


def _lines(text: TextIO) -> Iterator[_Line]:
    """Lines that are not empty; one whose quotes are open goes on to where they are closed."""
    number = 0
    for line in text:
        number += 1
        start = number
        if not line.strip(" \r\n"):
            continue
        if re.search(r'(?:^|[;\t|, ])"', line) and not line.lstrip().startswith(COMMENTS):
            while line.count('"') % 2 and number - start < LOOKED_AT:
                further = text.readline()
                if not further:
                    break
                line, number = line + further, number + 1
        yield _Line(start, line, number)


def _fields(line: _Line, delimiter: str) -> list[str]:
    text = _single(line.text) if delimiter == " " else line.text.strip(" \r\n")
    lines = text.splitlines(keepends=True)
    return next(csv.reader(lines, delimiter=delimiter, skipinitialspace=True), [""])


def _single(line: str) -> str:
    """The line with single blanks alone."""
    return re.sub(r"[ \t]+", " ", line.strip()) + "\n"


def _not_utf8(source: Input) -> DataError:
    with unpacked(source) as file:
        try:
            file.read().decode("utf-8")
        except UnicodeDecodeError as error:
            where = error.start
    return DataError(f"{source}: not UTF-8 text (byte {where}); save it with the encoding UTF-8")
