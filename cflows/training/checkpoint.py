"""Checkpoints that survive what interrupts them: a kill, a full disk, a damaged file."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from cflows.core.atomic_write import (
    companion,
    is_file,
    refuse_unwritable,
    removed_on_failure,
    sibling,
    target,
    write_beside,
)
from cflows.core.flow_file import read, to_bytes
from cflows.core.registry import LoadError
from cflows.training.identity import differences

__all__ = ["exists", "interruptible", "read_newest", "refuse_unusable", "write_newest"]

FORMAT = 3

PathLike = str | os.PathLike[str]


def exists(path: PathLike) -> bool:
    """Whether there is a checkpoint to go on from, this one or the one before it."""
    return Path(path).exists() or _previous(path).exists()


def refuse_unusable(path: PathLike) -> None:
    """Find out before the training that no checkpoint could be written, or kept as PATH.previous.

    Raises:
        OSError: why.

    """
    for place in (path, _previous(path)):
        _file(place)
        refuse_unwritable(place)


def write_newest(path: PathLike, content: dict[str, Any]) -> None:
    """Write a checkpoint beside its place, keep the one before as PATH.previous, and rename.

    At every moment one complete checkpoint has its name. Where the disk is full, or writing fails
    in another way, both earlier ones stay as they are and a warning says so: a run that goes on
    loses less than one that ends, and the next checkpoint may have room.
    """
    data = to_bytes({"checkpoint": FORMAT, **content})

    def write(beside: Path) -> None:
        with open(beside, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        _keep(path)

    try:
        write_beside(path, write)
    except OSError as error:
        warnings.warn(
            f"no checkpoint was written to {path} ({error.strerror or error}); training goes on, "
            "and the earlier checkpoint is kept: make room for the next one",
            RuntimeWarning,
            stacklevel=2,
        )


def read_newest(path: PathLike, run: str, settings: Mapping[str, str]) -> dict[str, Any]:
    """Read the checkpoint of a run; where it is damaged, the one before it, with a warning.

    Args:
        path: the checkpoint.
        run: what the run's identity is, as it was given in the content under ``"run"``.
        settings: those of its parts, by name; in the content ``"settings"`` has None for what is
            no setting.

    Raises:
        LoadError: it is damaged and there is none before it, or it belongs to another run.

    """
    previous = _previous(path)
    try:
        content = read(path)
    except (LoadError, FileNotFoundError) as error:
        if not previous.exists():
            raise
        content = read(previous)
        warnings.warn(f"{error}: going on from {previous}", RuntimeWarning, stacklevel=2)
    if "configuration" in content:
        raise LoadError(f"{path} is a saved flow, not a checkpoint: name another path")
    if content.get("checkpoint") != FORMAT:
        raise LoadError(
            f"{path} is no checkpoint of this version: name another path, or delete it to start "
            "anew"
        )
    differ = next(differences(content["settings"], settings), None)
    if content["run"] != run:
        differ = "rows, model, settings or the number of processes differ"
    if differ is not None:
        raise LoadError(
            f"{path} is the checkpoint of another run ({differ}): name another path, or delete it "
            "to start anew"
        )
    return content


@contextmanager
def interruptible(active: bool) -> Iterator[list[int]]:
    """Within a block, let SIGINT and SIGTERM wait; they arrive when it ends.

    Yields a list that is empty until one of them came: whoever finds it filled finishes what must
    not be torn and leaves the block. Then the handlers from before are back and the signal is sent
    again, so that the process ends as it would have. A second signal does not wait.

    Args:
        active: whether to do so at all; outside of the main thread nothing is done.

    """
    received: list[int] = []
    if not active or threading.current_thread() is not threading.main_thread():
        yield received
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    # What is ignored stays ignored; what was installed from outside of Python cannot be put back.
    caught = {n: old for n, old in before.items() if old not in (signal.SIG_IGN, None)}

    def restore() -> None:
        for number, old in caught.items():
            signal.signal(number, old)

    def remember(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if len(received) > 1:
            restore()
            signal.raise_signal(number)

    for number in caught:
        signal.signal(number, remember)
    try:
        yield received
    finally:
        restore()
        if received:
            signal.raise_signal(received[0])


def _previous(path: PathLike) -> Path:
    return companion(path, ".previous")


def _keep(path: PathLike) -> None:
    """Give the newest checkpoint its second name, without taking away the first."""
    place, previous = _file(path), _file(_previous(path))
    if not place.exists():
        return
    link = sibling(previous)
    with removed_on_failure(link):
        try:
            os.link(place, link)
        except OSError:  # a file system without links, or another one
            shutil.copyfile(place, link)
        os.replace(link, previous)


def _file(path: PathLike) -> Path:
    """The file behind a path's links.

    Raises:
        OSError: it is none, but what keeps nothing.

    """
    place = target(path)
    if isinstance(place, int) or not is_file(place):
        raise OSError(f"{path}: is a device or a pipe, which keeps no checkpoint; name a file")
    return place
