from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from baselines.harness.executors import process_pool
from baselines.harness.executors.process_pool import Killed, side_by_side


def square(x: int) -> int:
    if x == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    if x == 5:
        os._exit(7)
    return x * x


def test_each_item_ends_once_and_a_death_costs_one():
    found = dict(side_by_side(square, range(8), jobs=2))
    assert found == {
        **{x: x * x for x in range(8)}, 3: Killed(-signal.SIGKILL), 5: Killed(7)
    }  # fmt: skip


class Unreadable:
    """An item that ends the process which unpickles it, as a script without a guard does."""

    def __reduce__(self):
        return os._exit, (5,)


def test_a_process_that_dies_before_it_asks_for_work_is_told_apart(monkeypatch):
    monkeypatch.setattr(process_pool, "_serve", Unreadable())
    assert [found for _, found in side_by_side(square, [1, 2], jobs=2)] == [
        Killed(5, started=False)
    ] * 2


def test_more_jobs_than_items_and_no_items():
    assert dict(side_by_side(square, [2], jobs=5)) == {2: 4}
    assert dict(side_by_side(square, [], jobs=2)) == {}


def test_leaving_early_ends_the_processes():
    started = time.monotonic()
    iterator = side_by_side(square, [1, 2], jobs=1)
    next(iterator)
    iterator.close()
    assert time.monotonic() - started < 30


def linger(place: str) -> None:
    with open(place, "w") as file:
        file.write(str(os.getpid()))
    time.sleep(600)


def test_workers_die_with_the_first_process(tmp_path):
    place = tmp_path / "pid"
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import test_pool as t; "
        "from baselines.harness.executors.process_pool import side_by_side; "
        "list(side_by_side(t.linger, [sys.argv[2]], jobs=2))"
    )
    first = subprocess.Popen([sys.executable, "-c", code, os.path.dirname(__file__), str(place)])
    while not (place.exists() and place.read_text()):
        assert first.poll() is None
        time.sleep(0.02)
    worker = int(place.read_text())
    first.kill()
    first.wait()
    for _ in range(500):
        try:
            os.kill(worker, 0)
            state = Path(f"/proc/{worker}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except (ProcessLookupError, FileNotFoundError):
            return
        if state == "Z":
            return  # dead; whoever inherited it has not looked yet
        time.sleep(0.02)
    raise AssertionError("the worker lives on")
