"""Work side by side in processes, one of which may die without taking the others along."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from threading import Thread
from typing import Generic, TypeVar

__all__ = ["Killed", "side_by_side"]

GRACE = 10.0  # seconds between asking a process to end and killing it

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Killed:
    """What stands for a result where the process died.

    Attributes:
        exit_code: of the process, negative for a signal.
        started: whether it had come as far as to ask for work.

    """

    exit_code: int | None
    started: bool = True


def side_by_side(
    work: Callable[[Item], Result], items: Sequence[Item], jobs: int
) -> Generator[tuple[Item, Result | Killed], None, None]:
    """Yield each item with its result as it ends, at most ``jobs`` at a time.

    Args:
        work: a function that can be imported by name; it must not raise.
        items: what it is called with, in this order; picklable.
        jobs: how many processes. Each is started afresh (spawn) and serves item after item.

    A process that dies (out of memory, a signal) costs the item it held and is replaced. Leaving
    the iteration early ends the processes.

    """
    waiting = list(reversed(items))
    workers: list[_Worker[Item]] = []
    try:
        while waiting or workers:
            while waiting and len(workers) < jobs:
                workers.append(_Worker(work, waiting.pop()))
            for connection in wait([worker.connection for worker in workers]):
                worker = next(w for w in workers if w.connection is connection)
                try:
                    result: Result | Killed = worker.connection.recv()
                except (EOFError, ConnectionResetError):
                    worker.process.join()
                    result = Killed(worker.process.exitcode, worker.started)
                if not worker.started and not isinstance(result, Killed):
                    worker.started = True
                    continue
                item = worker.item
                if isinstance(result, Killed) or not waiting:
                    workers.remove(worker)
                    worker.end()
                else:
                    worker.give(waiting.pop())
                yield item, result
    finally:
        # A training that is asked to end writes a checkpoint first; one that does not is killed.
        for worker in workers:
            worker.process.terminate()
        last = time.monotonic() + GRACE
        for worker in workers:
            worker.process.join(max(0.0, last - time.monotonic()))
            worker.process.kill()
            worker.end()


class _Worker(Generic[Item]):
    """A process, this side of its pipe, and the item it works on."""

    def __init__(self, work: Callable[[Item], object], item: Item) -> None:
        context = get_context("spawn")
        self.started = False
        self.connection, other = context.Pipe()
        self.process: BaseProcess = context.Process(target=_serve, args=(work, other), daemon=True)
        self.process.start()
        other.close()  # so that the pipe ends with the process
        self.give(item)

    def give(self, item: Item) -> None:
        self.item = item
        # If it died, the next wait sees the end of the pipe.
        with suppress(BrokenPipeError, ConnectionResetError):
            self.connection.send(item)

    def end(self) -> None:
        self.connection.close()
        self.process.join()


def _serve(work: Callable[[Item], object], connection: Connection) -> None:
    # Ctrl-C goes to all processes of a terminal: only the first one answers it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=_end_with_parent, daemon=True).start()
    connection.send(None)  # a sign of life: from here on a death is the work's, not the script's
    while True:
        try:
            item = connection.recv()
        except EOFError:
            return
        connection.send(work(item))


def _end_with_parent() -> None:
    """Die with the first process: an orphan would go on with a cell that the next run takes up."""
    parent = parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
