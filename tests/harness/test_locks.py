"""Locks between processes, and two commands on one directory at once."""

from __future__ import annotations

import csv
import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from baselines.harness import data
from baselines.harness.experiment import cells
from baselines.harness.experiment.cell import Cell
from baselines.harness.experiment.locks import claimed, is_free

ROOT = str(Path(__file__).parents[2])
HOLD = "\n".join([
    "import sys, time",
    "from pathlib import Path",
    "from baselines.harness.experiment.locks import claimed",
    "with claimed(Path(sys.argv[1])) as held:",
    "    print(held, flush=True)",
    "    time.sleep(600)",
])  # fmt: skip


def holder(path: Path) -> subprocess.Popen[str]:
    """A process that holds the lock."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "True\n"
    return process


def test_a_lock_is_one_processes_and_dies_with_it(tmp_path):
    path = tmp_path / "lock"
    with holder(path) as process:
        assert not is_free(path)
        with claimed(path) as held:
            assert not held
        process.send_signal(signal.SIGKILL)
        with claimed(path, wait=True) as held:
            assert held
            assert not is_free(path)  # it is the open file's, in this process too
    assert is_free(path)


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK])
def test_where_there_are_no_locks_a_warning_says_so(tmp_path, monkeypatch, number):
    def unsupported(descriptor, operation):
        raise OSError(number, "not supported")

    monkeypatch.setattr("fcntl.flock", unsupported)
    with pytest.warns(RuntimeWarning, match="no locks"), claimed(tmp_path / "lock") as held:
        assert held


def test_another_failure_is_no_lock(tmp_path):
    with pytest.raises(IsADirectoryError), claimed(tmp_path):
        pass


@pytest.fixture
def cell(tmp_path) -> Cell:
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(200, 3)))
    source = str(tmp_path / "x.npy")
    return Cell("x.npy", source, data.load(source).checksum, "gaussian", None, 0, 0, None, 0.0)


def test_a_cell_that_is_held_is_left_alone(cell, tmp_path):
    def never(cell, out):
        raise AssertionError("the cell is another process's")

    folder = cell.folder(tmp_path)
    folder.mkdir(parents=True)
    with holder(folder / "lock") as process:
        assert cells.attempt(cell, never, tmp_path, since=0.0) == cells.HELD
        assert not cells.is_free(cell, tmp_path)
        process.kill()
    (folder / ".result.json.1.ab").write_text("{")
    assert cells.attempt(cell, cells.run, tmp_path, since=0.0)["status"] == "ok"
    assert not list(folder.glob(".*"))
    assert cells.attempt(cell, never, tmp_path, since=0.0)["status"] == "ok"


def test_a_failure_of_another_process_is_taken_and_an_old_one_is_not(cell, tmp_path):
    result = cells.fail(cell, tmp_path, "no memory")
    written = (cell.folder(tmp_path) / "result.json").stat().st_mtime
    assert cells.attempt(cell, cells.run, tmp_path, since=written - 1) == result
    assert cells.attempt(cell, cells.run, tmp_path, since=written)["status"] == "ok"


COUNT = "\n".join([
    "import sys",
    "from baselines.harness import cli",
    "from baselines.harness.experiment import cells",
    "real = cells.run",
    "def run(cell, out):",
    "    with open(sys.argv[1], 'a') as file:",
    "        file.write(cell.key + '\\n')",
    "    return real(cell, out)",
    "cells.run = run",
    "raise SystemExit(cli.main(sys.argv[2:]))",
])  # fmt: skip


def test_two_commands_on_one_directory(tmp_path):
    """Both end with the whole table; each cell was computed once."""
    table, out, begun = tmp_path / "rows.npy", tmp_path / "out", tmp_path / "begun"
    np.save(table, np.random.default_rng(0).normal(size=(400, 3)))
    command = [sys.executable, "-c", COUNT, str(begun), "compare", "--data", str(table),
               "--models", "maf", "nice", "--depths", "2", "--seeds", "0", "1", "--steps", "60",
               "--preprocess", "whiten", "--jobs", "1", "--out", str(out)]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": ROOT, "OMP_NUM_THREADS": "1"}
    both = [subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment) for _ in "ab"]
    assert [process.wait() for process in both] == [0, 0]
    keys = begun.read_text().split()
    assert sorted(keys) == sorted(path.name for path in (out / "cells").iterdir() if path.is_dir())
    with open(out / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6
    assert {row["status"] for row in rows} == {"ok"}
    assert all(row["density_ms_per_1000"] for row in rows)
