"""Files that are whole or as they were before, written so that what stands at a path stays it.

A file is written beside its place and renamed. Where the path is a symbolic link, its target is
replaced, and the link stays. A device, a pipe and an open descriptor, such as ``/dev/stdout``, are
no files to be replaced: what is complete is written into them.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import stat
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

__all__ = [
    "WriteOnly",
    "blaming",
    "companion",
    "is_file",
    "refuse_unwritable",
    "removed_on_failure",
    "sibling",
    "target",
    "write_beside",
    "write_whole",
]

PathLike = str | os.PathLike[str]

LONGEST = 255  # bytes of a name
LINKS = 40  # followed one after the other, as many as Linux follows
STDOUT = 1
STREAMS = {"/dev/stdin": 0, "/dev/stdout": STDOUT, "/dev/stderr": 2}


def write_beside(path: PathLike, write: Callable[[Path], object]) -> None:
    """Call ``write`` on a new file in the same folder and rename it into place when complete.

    A file that is replaced leaves its mode to the new one, and its owner where that is allowed. For
    a device, a pipe or an open descriptor the new file lies in the temporary folder.

    Raises:
        OSError: it cannot be written; the earlier file, where there was one, is as it was.

    """
    place = target(path)
    if isinstance(place, int) or _is_stream(place):
        with tempfile.TemporaryDirectory() as folder:
            whole = Path(folder) / "whole"
            write(whole)
            with blaming(path, place):
                _pour(whole, place)
    else:
        beside = sibling(place)
        with blaming(path, beside), removed_on_failure(beside):
            _take_after(place, beside)
            write(beside)
            with open(beside, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(beside, place)


def write_whole(path: PathLike, content: str | bytes | memoryview) -> None:
    """Write bytes, or text as UTF-8, as ``write_beside`` does."""
    data = content.encode() if isinstance(content, str) else content
    write_beside(path, lambda beside: beside.write_bytes(data))


def refuse_unwritable(path: PathLike, size: int = 0) -> None:
    """Find out before the work that its result, of ``size`` bytes, could not be written.

    A file is made beside the place and removed again, unless bytes would be written in place.

    Raises:
        OSError: why it could not.

    """
    place = target(path)
    if isinstance(place, int):
        with blaming(path):
            os.fstat(place)
    elif not _is_stream(place):
        beside = sibling(place)
        with blaming(path, beside), ExitStack() as stack:
            stack.callback(beside.unlink, missing_ok=True)
            beside.write_bytes(bytes(size))


def is_file(path: PathLike) -> bool:
    """Whether a file would be made or replaced, and nothing written in place; or raise OSError."""
    place = target(path)
    return not isinstance(place, int) and not _is_stream(place)


def target(path: PathLike) -> Path | int:
    """Follow links to where bytes for a path go: a path that is no link, or a descriptor's number.

    Raises:
        OSError: nothing can be written there; the message says why.

    """
    place = Path(path)
    for _ in range(LINKS):
        place = Path(os.path.realpath(place.parent)) / place.name
        if (number := _descriptor(place)) is not None:
            return number
        try:
            mode = os.lstat(place).st_mode
        except (FileNotFoundError, NotADirectoryError):
            mode = None
        except OSError as error:
            raise _blamed(error, path) from None
        if mode is None or not stat.S_ISLNK(mode):
            _refuse(path, place, mode)
            return place
        place = place.parent / os.readlink(place)
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), os.fspath(path))


def sibling(place: Path) -> Path:
    """A new name in the same folder: hidden, and never too long for the system."""
    return place.with_name(f".{place.name[:30]}.{os.getpid()}.{secrets.token_hex(4)}")


def companion(path: PathLike, suffix: str) -> Path:
    """The file that is called after another one, and lies beside it, or its target for a link.

    A name that would be too long for the system gives its end for a checksum of the whole.
    """
    place = Path(os.path.realpath(path)) if os.path.islink(path) else Path(path)
    name = place.name
    if len(os.fsencode(name + suffix)) > LONGEST:
        suffix = f"~{zlib.crc32(os.fsencode(name)):08x}{suffix}"
        room = LONGEST - len(os.fsencode(suffix))
        name = os.fsencode(name)[:room].decode(errors="ignore")
    return place.with_name(name + suffix)


class WriteOnly:
    """A file that numpy can only write to: what it writes past Python loses the system's reason."""

    def __init__(self, file: BinaryIO) -> None:
        self.write = file.write


@contextmanager
def removed_on_failure(path: Path) -> Iterator[None]:
    """Remove a file that is being written where the block does not come to its end."""
    try:
        yield
    except BaseException:
        path.unlink(missing_ok=True)
        raise


@contextmanager
def blaming(path: PathLike, *own: Path | int) -> Iterator[None]:
    """Let an error name the path that was asked for, where it names none or one of ``own``."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename not in (None, *own, *map(str, own)):
            raise
        raise _blamed(error, path) from error


def _descriptor(place: Path) -> int | None:
    if str(place.parent) in ("/dev/fd", os.path.realpath("/proc/self/fd")) and place.name.isdigit():
        return int(place.name)
    return STREAMS.get(str(place))


def _refuse(path: PathLike, place: Path, mode: int | None) -> None:
    """Refuse a place that no file can have, and no bytes be written to."""
    if not place.parent.is_dir():
        raise FileNotFoundError(f"{path}: there is no such folder to write to")
    if mode is not None and stat.S_ISDIR(mode):
        raise IsADirectoryError(f"{path}: is a directory; name a file")
    if mode is not None and stat.S_ISBLK(mode):
        raise OSError(f"{path}: is a block device; name a file")
    if mode is not None and not os.access(place, os.W_OK):
        raise PermissionError(f"{path}: this file may not be written to")
    if (mode is None or stat.S_ISREG(mode)) and not os.access(place.parent, os.W_OK):
        raise PermissionError(f"{path}: this folder may not be written to")


def _is_stream(place: Path) -> bool:
    """Whether bytes are written into what stands at a place, which is neither link nor folder."""
    return place.exists() and not place.is_file()


def _pour(whole: Path, place: Path | int) -> None:
    if isinstance(place, int):
        for stream in filter(None, (sys.stdout, sys.stderr)):
            stream.flush()  # what was printed before comes before
    # Never O_CREAT: a pipe that is gone by now does not become a file.
    descriptor = os.dup(place) if isinstance(place, int) else os.open(place, os.O_WRONLY)
    with open(whole, "rb") as file, open(descriptor, "wb") as stream:
        shutil.copyfileobj(file, stream)


def _take_after(place: Path, beside: Path) -> None:
    """Make a new, empty file with the mode of the one that it is to replace, and its owner."""
    try:
        earlier = os.stat(place)
    except FileNotFoundError:
        return  # its mode is what the system gives new files
    os.close(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    # Only root may give files away, and some file systems know neither owners nor modes.
    for owner, group in ((earlier.st_uid, -1), (-1, earlier.st_gid)):
        with suppress(OSError, AttributeError):
            os.chown(beside, owner, group)
    with suppress(OSError):
        os.chmod(beside, stat.S_IMODE(earlier.st_mode))


def _blamed(error: OSError, path: PathLike) -> OSError:
    return OSError(error.errno, error.strerror, os.fspath(path))
