"""What is said while a comparison runs, and what an interruption leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from baselines.harness.data import Dataset
from baselines.harness.experiment import forecast, progress
from baselines.harness.experiment.cell import Cell
from baselines.harness.experiment.forecast import Forecast
from baselines.harness.experiment.progress import Progress
from cflows.core.saving import read

ROOT = str(Path(__file__).parents[2])
OK = {"status": "ok", "test_log_prob": -1.25, "test_log_prob_2se": 0.5, "train_seconds": 3.0}


def cell(seed: int) -> Cell:
    return Cell("moons", "moons", "ab", "maf", 5, seed, 10, None, 1e-3)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_line_a_cell_with_the_time_that_is_left(capsys):
    clock, cells = Clock(), [cell(seed) for seed in range(4)]
    forecast = Forecast(cells[:3], [20.0, 10.0, 30.0], jobs=1, tail=5.0, clock=clock)
    assert forecast.left() == 65
    with Progress(4, forecast) as shown:
        shown.ended(cells[3], OK, before=True)
        clock.now = 20.0
        shown.ended(cells[0], OK)  # as predicted
        clock.now = 50.0
        shown.ended(cells[1], {"status": "failed", "error": "no memory"})  # thrice as long
        shown.ended(cells[2], OK)
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0].startswith("[1/4] moons maf 5 layers seed 3")
    assert "-1.250 ± 0.500  (3 s), about 65 s left" in lines[0]
    assert lines[1].endswith("about 45 s left")
    # The median of 1, 1 and 3 is 1; of this model 50 s and a cell as predicted for 30 s and a cell
    # of 15: 65 / 45 of 30 s, and 5.
    assert lines[2].endswith("failed: no memory, about 48 s left")
    assert "left" not in lines[3]
    assert err == ""


def test_cells_run_side_by_side_and_overdue_ones_have_something_left():
    clock, cells = Clock(), [cell(seed) for seed in range(3)]
    forecast = Forecast(cells, [30.0, 10.0, 15.0], jobs=2, clock=clock)
    assert forecast.left() == 30
    clock.now = 10.0
    forecast.ended(cells[1])
    assert forecast.left() == 20
    clock.now = 40.0
    assert forecast.left() == 3


def test_what_another_command_has_done_is_waited_for_no_longer():
    cells = [cell(seed) for seed in range(3)]
    forecast = Forecast(cells, [10.0, 10.0, 10.0], jobs=1, clock=Clock())
    forecast.ended(cells[2])
    assert forecast.left() == 20


def test_from_the_first_quarter_on_the_forecast_of_a_recorded_run_is_near_the_truth():
    """``cflows compare`` on two cores: what was predicted of each cell, and when it ended."""
    record = json.loads((Path(__file__).parent / "recorded_comparison.json").read_text())
    models, seconds = zip(*record["cells"], strict=True)
    cells = [replace(cell(number), model=model) for number, model in enumerate(models)]
    clock = Clock()
    forecast = Forecast(cells, seconds, record["jobs"], record["tail"], clock)
    assert forecast.left() == pytest.approx(record["end"], rel=0.3)
    looked_at = 0
    for number, clock.now in record["ended"]:
        forecast.ended(cells[number])
        if clock.now > record["end"] / 4:
            assert forecast.left() == pytest.approx(record["end"] - clock.now, rel=0.3)
            looked_at += 1
    assert looked_at > 15


def test_only_a_choice_that_is_made_is_predicted(monkeypatch):
    """A step and the scoring of all rows take a second each, a row so 1 / 250 of one."""
    monkeypatch.setattr(forecast, "timeit", lambda *_, **__: 1.0)
    parts = (np.random.default_rng(0).normal(size=(n, 3)) for n in (9, 250, 250))
    rows = Dataset("rows", *parts, columns=tuple("abc"), source="", licence="", kind="toy")
    whitened, chosen = (
        forecast.predicted(replace(cell(0), preprocess=name), rows)[0]
        for name in ("whiten", "auto")
    )
    assert chosen - whitened == pytest.approx(0.1 * 10)
    quick, timing = forecast.predicted(replace(cell(0), preprocess="whiten", quick=True), rows)
    assert timing < forecast.predicted(cell(0), rows)[1]
    assert quick < whitened


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.2, "1 s"), (89, "89 s"), (600, "10 min"), (7200, "2.0 h")]
)
def test_durations(seconds, said):
    assert progress._duration(seconds) == said


def test_a_bar_is_for_terminals(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with Progress(1, Forecast([cell(0)], [1.0], jobs=1)) as shown:
        shown.ended(cell(0), OK)
    out, err = capsys.readouterr()
    assert "[1/1] moons maf" in out
    assert "1/1" in err


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_ctrl_c_leaves_checkpoints_and_says_how_to_go_on(jobs, tmp_path):
    """The workers too: one in the middle of a training writes where it is."""
    table, out = tmp_path / "rows.npy", tmp_path / "out"
    np.save(table, np.random.default_rng(0).normal(size=(400, 3)))
    command = ["likelihood", "--data", str(table), "--models", "nice", "--depths", "1",
               "--seeds", "0", "1", "--steps", "40000", "--preprocess", "whiten",
               "--jobs", jobs, "--out", str(out)]  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-m", "baselines.harness", *command], stderr=subprocess.PIPE, text=True,
        stdout=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": ROOT, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    try:
        while len(list(out.glob("cells/*/checkpoint.pt"))) < int(jobs):
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "the same command goes on where it stopped" in said
    assert f"cflows likelihood --data {table}" in said
    assert not list(out.glob("cells/*/result.json"))
    # Training writes one every 2000 steps: what lies between is the signal's work.
    steps = [read(path)["counters"]["step"] for path in out.glob("cells/*/checkpoint.pt")]
    assert len(steps) == int(jobs)
    assert all(step % 2000 for step in steps)
