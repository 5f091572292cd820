"""Text tables: their delimiter and header are found here, their numbers are read by pandas."""

from __future__ import annotations

import csv
import io
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple, TextIO

import numpy as np

from baselines.harness.data.dataset import DataError
from baselines.harness.data.frames import MISSING, columns_of, is_number, pandas_for
from baselines.harness.data.rows import MIN_ROWS, Choose, RawTable, numbered, tidy
from baselines.harness.data.sources import Input, unpacked

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["read_text"]

MARKS = ";\t|, "  # a row of numbers holds only the delimiter and perhaps decimal commas
COMMENTS = ("#", "%")
REMARK = re.compile(r"[#%]+\s")  # "#6" may be a row's name
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
        names: of the columns, "" where one has none.
        short: whether the header lacks the name of the first column, as R writes it.
        ended: whether the first rows have nothing behind their last delimiter.

    """

    source: Input
    delimiter: str
    skipped: int
    head: int
    width: int
    names: tuple[str, ...]
    short: bool = False
    ended: bool = False

    def rows(self) -> Iterator[tuple[int, list[str]]]:
        """The line and the fields of each row, as they are: slow."""
        with _opened(self.source, self.skipped) as text:
            lines = (_single(line) for line in text) if self.delimiter == " " else text
            reader = csv.reader(lines, delimiter=self.delimiter, skipinitialspace=True)
            while True:
                number = self.skipped + reader.line_num + 1
                try:
                    fields = next(reader, None)
                except csv.Error as error:
                    raise DataError(
                        f"{self.source}: line {number} is not comma-separated values: {error}"
                    ) from error
                if fields is None:
                    return
                if len(fields) > 1 or "".join(fields).strip():
                    yield number, fields

    def row(self, i: int) -> tuple[int, list[str]]:
        """One of these."""
        return next(islice(self.rows(), i, None))

    def where(self, i: int) -> str:
        """Where a row stands in the file."""
        return f"line {self.row(i)[0]}"

    def refuse_ragged(self) -> None:
        """Raise for the first row that has another number of fields than the head."""
        for number, fields in self.rows():
            if len(fields) != self.width and "".join(fields).strip():
                raise self.ragged(number, fields)

    def ragged(self, number: int, fields: list[str]) -> DataError:
        """The error for a row of another number of fields."""
        if fields[0].startswith(COMMENTS):
            return DataError(
                f"{self.source}: line {number} is a comment, {fields[0][:40]!r}; delete it: "
                "comments may stand at the top alone"
            )
        return DataError(
            f"{self.source}: line {number} splits at {self.delimiter!r} into {len(fields)}, line "
            f"{self.head} into {self.width - self.short}; give every row the same columns"
        )

    def frame(self, types: Mapping[int, type], only: list[int] | None = None) -> DataFrame | None:
        """What pandas reads, of some columns; None where rows are too long, or of other types."""
        pandas = pandas_for(self.source)
        settings = {}
        if tuple(map(int, pandas.__version__.split(".")[:2])) < (3, 1):
            settings["float_precision"] = "round_trip"  # the default since is as exact
        with _opened(self.source, self.skipped) as text, warnings.catch_warnings():
            warnings.simplefilter("error", pandas.errors.ParserWarning)
            try:
                return pandas.read_csv(
                    text,
                    sep=r"\s+" if self.delimiter == " " else self.delimiter,
                    header=None,
                    names=range(self.width),
                    usecols=only,
                    index_col=False,
                    dtype=types,
                    na_filter=False,
                    skipinitialspace=True,
                    low_memory=False,
                    **settings,
                )
            except UnicodeDecodeError:
                raise
            except (ValueError, pandas.errors.ParserWarning):  # ParserError is a ValueError
                return None


def read_text(source: Input, choose: Choose) -> RawTable:
    """Read a text table whole, packed by gzip or not.

    Its first row is a header if it has a field that is neither a number nor missing, except where
    the second row has text in the same places, and numbers where the first one has. Lines at the
    top that begin with # or % are comments, of which the last may be the header. A first column
    without a name that counts the rows, or labels them, is left out.

    Raises:
        DataError: not text in UTF-8, blank, rows of unequal length; pandas is missing.
        OSError: it cannot be read.

    """
    try:
        layout = _layout(source)
        names, note = _without_labels(layout, _without_an_end(layout))
        indices = list(names)
        chosen = [indices[i] for i in choose(list(names.values()))]
        return replace(_parsed(layout, {i: names[i] for i in chosen}), notes=note)
    except UnicodeDecodeError:
        raise _not_utf8(source) from None
    except csv.Error as error:
        raise DataError(f"{source}: not comma-separated values: {error}") from error


def _parsed(layout: _Layout, names: dict[int, str]) -> RawTable:
    """Read columns as float64, fast; where that fails, each as what it is, to name the fault."""
    others = dict.fromkeys(set(range(layout.width)) - set(names), str)
    frame = layout.frame({**others, **dict.fromkeys(names, np.float64)})
    exact = frame is not None
    if frame is None and (frame := layout.frame(others)) is None:
        layout.refuse_ragged()
        raise DataError(
            f"{layout.source}: cannot be parsed; write plain numbers split at one delimiter"
        )
    texts = [i for i, dtype in enumerate(frame.dtypes) if dtype.kind == "O"]
    if len(texts) == layout.width:  # rows at the end may be blank but for their delimiters
        filled = np.flatnonzero((frame.astype(object) != "").any(axis=1))
        frame = frame.iloc[: 1 + filled[-1]] if len(filled) else frame
    if layout.width - 1 in texts and not layout.ended and (frame[layout.width - 1] == "").any():
        layout.refuse_ragged()
    if exact:
        values = np.ascontiguousarray(frame[[*names]].to_numpy(np.float64))
        return RawTable(values, tuple(names.values()), layout.where)
    table = columns_of(names, frame, layout.where)
    if table.faults and 0 in names:
        number, fields = layout.row(min(fault.row for fault in table.faults.values()))
        if REMARK.match(fields[0]):
            raise layout.ragged(number, fields)
    return table


def _without_an_end(layout: _Layout) -> dict[int, str]:
    """The columns' names by index, without what stands behind a delimiter that ends each row."""
    last, names = layout.width - 1, layout.names
    ended = layout.ended and last and (layout.short or not names[-1])
    if ended and all(not fields[-1].strip() for _, fields in layout.rows()):
        # A header that is not ended so is short no more.
        names = names[1:] if layout.short else names[:-1]
    stand_in = numbered(len(names))
    return {i: name or stand_in[i] for i, name in enumerate(names)}


def _without_labels(
    layout: _Layout, names: dict[int, str]
) -> tuple[dict[int, str], tuple[str, ...]]:
    """The same without a first column that has no name and counts the rows or labels them."""
    nameless = layout.short or (layout.names[0] in NAMELESS and any(layout.names))
    if not nameless or len(names) < max(2, layout.width):
        return names, ()
    frame = layout.frame({}, only=[0])
    if frame is None:  # the whole says what is wrong
        return names, ()
    texts = frame[0].astype(str).str.strip()
    held = frame[0][texts != ""]
    numbers = pandas_for(layout.source).to_numeric(held, errors="coerce").to_numpy(np.float64)
    named = ~texts[held.index].str.lower().isin(("nan", *MISSING)).to_numpy()
    if (np.isnan(numbers) & named).any():
        what = "labels"
    elif len(set(numbers)) == len(numbers) > 0 and (numbers == np.abs(np.floor(numbers))).all():
        what = "counts"
    elif layout.short:
        raise layout.ragged(*layout.row(0))
    else:
        return names, ()
    note = (
        f"{layout.source}: the first column has no name and {what} the rows: it is left out; to "
        "keep it, give it a name"
    )
    return {i: name for i, name in names.items() if i}, (note,)


# The layout ---------------------------------------------------------------------------------------


def _layout(source: Input) -> _Layout:
    comments: list[_Line] = []
    records: list[_Line] = []
    mark = ""
    with _opened(source, 0) as text:
        for line in _lines(text):
            told = re.fullmatch(r'"?sep=(.)"?', line.text.strip(" \r\n"), re.IGNORECASE)
            if told and not records and not mark:
                mark = told[1]
            elif not records and line.text.strip().startswith(COMMENTS):
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
    plain = [r for r in records if not REMARK.match(r.text)] or records
    mark = mark or _delimiter(plain)
    fields = [_fields(record, mark) for record in records]
    rows = _header_rows(fields)
    ended = all(not record[-1].strip() for record in fields[rows:])
    if rows == 1 and not _is_header(fields):
        ended = ended and not fields[0][-1].strip()
        width = len(fields[0])
        names = _commented(comments, width, mark) or ("",) * width
        skipped = records[0].number - 1
        return _Layout(source, mark, skipped, records[0].number, width, names, ended=ended)
    if rows == len(fields):
        raise DataError(f"{source}: no rows below the header; give at least {MIN_ROWS}")
    names = tidy([" ".join(parts) for parts in zip(*fields[: max(1, rows - 1)], strict=True)])
    if rows > 1:  # the first column's are the names of the levels
        names = ("", *names[1:])
    below = list(zip(records[rows:], fields[rows:], strict=True))
    line, first = next((pair for pair in below if pair[0] in plain), below[0])
    short = len(first) == len(names) + 1
    if short and re.fullmatch(r"[+-]?\d+,\d+", line.text.strip()) and len(names) == 1:
        raise DataError(
            f"{source}: line {line.number} holds {line.text.strip()!r} under one name; write "
            "numbers with a decimal point, or name both columns"
        )
    names = ("", *names) if short else names
    head, skipped = records[0].number, records[rows - 1].end
    layout = _Layout(source, mark, skipped, head, len(names), names, short, ended)
    if len(first) != layout.width:
        raise layout.ragged(line.number, first)
    return layout


def _delimiter(records: list[_Line]) -> str:
    """The mark that splits the first two records alike, else the first in the second of them.

    A header may contain any mark, hence the second. This is exact where csv.Sniffer guesses.
    """
    first, second = records[0], records[:2][-1]
    sample = re.sub(r'"[^"]*"', "", second.text).strip(" \r\n")
    marks = [mark for mark in MARKS if mark in sample]
    alike = (m for m in marks if len(_fields(first, m)) == len(_fields(second, m)))
    return next(alike, marks[0] if marks else ",")


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


def _commented(comments: list[_Line], width: int, mark: str) -> tuple[str, ...]:
    """The names in the last comment, where it has as many as the first row has fields."""
    if not comments:
        return ()
    text = comments[-1].text.strip().lstrip("#% ")
    names = tidy(_fields(comments[-1]._replace(text=text), mark))
    # Other words than names would be names for good.
    return names if len(names) == width and not any(map(is_number, names)) else ()


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
            position = error.start
    return DataError(f"{source}: not UTF-8 text (byte {position}); save it with the encoding UTF-8")
