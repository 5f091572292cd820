"""One process at a time: a lock that the system takes back when its holder dies, however it dies.

A lock is the operating system's own on an open file (filelock), not the existence of a file: what
``kill -9`` leaves behind is unlocked.
"""

from __future__ import annotations

import errno
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

__all__ = ["claimed", "is_free"]

PAUSE = 0.2  # seconds between two looks at a lock that another process holds
NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)


@contextmanager
def claimed(path: Path, *, wait: bool = False) -> Iterator[bool]:
    """Hold a file's lock within a block, in this process alone; yields whether it is held.

    On a file system that knows no locks a warning says so, and the block runs as if it held one.

    Args:
        path: the lock's file, in a folder that is there.
        wait: until another process gives it back, in place of yielding False.

    """
    lock = FileLock(path, fallback_to_soft=False)  # a soft lock would outlive its holder
    held = True
    try:
        lock.acquire(timeout=-1 if wait else 0, poll_interval=PAUSE)
    except Timeout:
        held = False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        warnings.warn(
            f"{path}: this file system has no locks ({error.strerror or error}): run one command "
            "at a time on this folder",
            RuntimeWarning,
            stacklevel=3,
        )
    try:
        yield held
    finally:
        lock.release()  # nothing, where it was not acquired


def is_free(path: Path) -> bool:
    """Whether no other process holds the lock at this moment."""
    with claimed(path) as held:
        return held
