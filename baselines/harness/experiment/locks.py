"""One process at a time: a lock that the system takes back when its holder dies, however it dies.

A lock is the operating system's own on an open file (flock), not the existence of a file: what
``kill -9`` leaves behind is unlocked.
"""

from __future__ import annotations

import errno
import os
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["claimed", "is_free"]

PAUSE = 0.2  # seconds between two looks at a lock that another process holds
BUSY = (errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK)


@contextmanager
def claimed(path: Path, *, wait: bool = False) -> Iterator[bool]:
    """Hold a file's lock within a block, in this process alone; yields whether it is held.

    The file is made, and stays when the lock is gone: who removed it could part two processes.
    On a file system that knows no locks a warning says so, and the block runs as if it held one.

    Args:
        path: the lock's file, in a folder that is there.
        wait: until another process gives it back, in place of yielding False.

    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        while not (held := _lock(descriptor, path)) and wait:
            time.sleep(PAUSE)
        yield held
    finally:
        os.close(descriptor)  # and with it the lock


def is_free(path: Path) -> bool:
    """Whether no other process holds the lock at this moment."""
    with claimed(path) as held:
        return held


def _lock(descriptor: int, path: Path) -> bool:
    """Try to take the lock of an open file, without waiting."""
    try:
        _take(descriptor)
    except OSError as error:
        if error.errno in BUSY:
            return False
        warnings.warn(
            f"{path}: this file system has no locks ({error.strerror or error}): run one command "
            "at a time on this folder",
            RuntimeWarning,
            stacklevel=4,
        )
    return True


if sys.platform == "win32":
    import msvcrt

    def _take(descriptor: int) -> None:
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def _take(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
