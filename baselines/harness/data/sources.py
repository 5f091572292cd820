"""Where a table's bytes come from, and what they are, whatever the file is called."""

from __future__ import annotations

import gzip
import io
import os
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

from baselines.harness.data.dataset import DataError

__all__ = ["Input", "is_once", "kind_of", "label", "unpacked"]

STANDARD = ("-", "/dev/stdin", "/dev/fd/0", "/proc/self/fd/0")
START = 300  # bytes that are looked at
MAGIC = (
    (b"\x1f\x8b", "gzip"),
    (b"PAR1", "parquet"),
    (b"ARROW1", "feather"),
    (b"FEA1", "feather"),
    (b"\x93NUMPY", "an .npy array"),
    (b"PK\x03\x04", "a zip archive, such as an .xlsx workbook or an .npz"),
    (b"\xd0\xcf\x11\xe0", "an old .xls workbook or a document"),
    (b"\x89HDF", "an HDF5 file"),
    (b"BZh", "a bzip2 archive"),
    (b"\xfd7zXZ", "an xz archive"),
    (b"\x28\xb5\x2f\xfd", "a zstandard archive"),
    (b"SQLite format 3", "an SQLite database"),
    (b"\x80\x04\x95", "a pickle"),
    (b"\x80\x05\x95", "a pickle"),
    (b"%PDF", "a PDF document"),
    (b"version https://git-lfs", "a pointer of Git LFS, not the file itself"),
)


def is_once(path: object) -> bool:
    """Return whether this can be read once and no more: standard input, or a pipe.

    Example:
        >>> is_once("-"), is_once("rows.csv")
        (True, False)

    """
    text = str(path)
    return text in STANDARD or (
        os.path.exists(text) and not (os.path.isfile(text) or os.path.isdir(text))
    )


def label(path: object) -> str:
    """What messages call a path."""
    return "standard input" if str(path) in STANDARD else str(path)


class Input:
    """A file, or what a pipe or standard input (``-``) gives, which is read once and kept.

    Args:
        path: of what there is.

    Attributes:
        content: what can be read once and no more; else None, and the name says what it is.

    Raises:
        DataError: standard input is closed.
        OSError: a pipe cannot be read.

    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.content: bytes | None = None
        if str(path) in STANDARD:
            if sys.stdin is None:
                raise DataError("standard input is closed; name a file")
            self.content = sys.stdin.buffer.read()
        elif not path.is_file():
            self.content = path.read_bytes()

    def open(self) -> IO[bytes]:
        """Open it at its start."""
        return self.path.open("rb") if self.content is None else io.BytesIO(self.content)

    def start(self) -> bytes:
        """Its first bytes."""
        with self.open() as file:
            return file.read(START)

    def __str__(self) -> str:
        return label(self.path)


def kind_of(start: bytes) -> str:
    r"""What the first bytes say: ``gzip``, ``parquet``, ``feather``, ``""`` for text, or in words.

    Example:
        >>> kind_of(b"PAR1\x15\x04"), kind_of(b"%PDF-1.7"), kind_of(b"PAR1,PAR2")
        ('parquet', 'a PDF document', '')

    """
    if start.lstrip()[:14].lower().startswith((b"<!doctype html", b"<html")):
        return "a web page, not the file that it shows"
    if start[257:262] == b"ustar":
        return "a tar archive"
    kind = next((kind for magic, kind in MAGIC if start.startswith(magic)), "")
    # Letters may begin a header too; text has no bytes below the tab.
    binary = any(byte < 9 for byte in start) or not start[:4].isalnum()
    return kind if binary else ""


@contextmanager
def unpacked(source: Input) -> Iterator[IO[bytes]]:
    """Open an input at its start, unpacked where it is gzip's; DataError where that is damaged."""
    with source.open() as file:
        if kind_of(file.read(START)) != "gzip":
            file.seek(0)
            yield file
            return
        file.seek(0)
        try:
            with gzip.open(file) as inner:
                yield cast(IO[bytes], inner)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DataError(f"{source}: a damaged gzip archive ({error}); pack it again") from error
