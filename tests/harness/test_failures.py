"""Cells that fail, each in its own way: rows with reasons, beside the others, in a whole report."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from baselines.harness import cli, data
from baselines.harness.experiment import cells
from baselines.harness.experiment.cell import Cell
from baselines.harness.metrics import likelihood
from cflows.training import pipeline

BAD = """\
from baselines import NICE
from cflows import FFJORD, Adaptive

def diverges(features, depth):
    return NICE(features, layers=2, hidden=(8,))

diverges.learning_rate = 1e25

def stiff(features, depth):
    solver = Adaptive("dopri5", 1e-6, 1e-6, max_nfe=10)
    return FFJORD(features, hidden=(8,), training_solver=solver, evaluation_solver=solver)

def unready(features, depth):
    raise ValueError("wants a GPU")
"""


def test_what_fails_is_a_row_and_the_report_stands(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("bad.py").write_text(BAD)
    np.save("rows.npy", np.random.default_rng(0).normal(size=(200, 3)))
    names = ["diverges", "stiff", "unready"]
    assert cli.main(["compare", "--data", "rows.npy", "--models", "nice",
                     *(f"bad.py:{name}" for name in names), "--depths", "2", "--steps", "20",
                     "--preprocess", "whiten", "--jobs", "1", "--out", "out"]) == 1  # fmt: skip
    with open("out/results.csv", newline="") as file:
        rows = {row["model"].removeprefix("bad.py:"): row for row in csv.DictReader(file)}
    done = {name for name, row in rows.items() if row["status"] == "ok"}
    assert done == {"gaussian", "gaussianised", "nice"}
    assert rows["diverges"]["error"].startswith("TrainingError: the ")
    assert "left the numbers" in rows["diverges"]["error"]
    assert rows["stiff"]["error"].startswith("SolverError: ")
    assert "ValueError: wants a GPU" in rows["unready"]["error"]
    for page in ("report.md", "report.html"):
        text = Path("out", page).read_text()
        assert all(word in text for word in ("left the numbers", "SolverError", "wants a GPU"))
    assert "failed: SolverError" in capsys.readouterr().out


@pytest.fixture
def cell(tmp_path) -> Cell:
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(200, 3)))
    source = str(tmp_path / "x.npy")
    return Cell("x.npy", source, data.load(source).checksum, "nice", 2, 0, 4, None, 1e-3,
                preprocess="whiten")  # fmt: skip


@pytest.mark.parametrize("error", [MemoryError("no memory\nleft"),
                                   torch.cuda.OutOfMemoryError("CUDA out of memory")])  # fmt: skip
def test_a_cell_that_runs_out_of_memory(error, cell, tmp_path, monkeypatch):
    def greedy(*arguments, **settings):
        raise error

    monkeypatch.setattr(pipeline, "fit", greedy)
    result = cells.run(cell, tmp_path / "out")
    assert result["status"] == "failed"
    assert "memory" in result["error"]
    assert "\n" not in result["error"]
    monkeypatch.undo()
    assert cells.run(cell, tmp_path / "out")["status"] == "ok"


def test_a_likelihood_that_is_no_number_is_no_result(cell, tmp_path, monkeypatch):
    real = likelihood.evaluate

    def lost(*given):
        scores, log_prob = real(*given)
        log_prob[3] = -torch.inf
        return scores, log_prob

    monkeypatch.setattr(likelihood, "evaluate", lost)
    result = cells.run(cell, tmp_path / "out")
    assert result["status"] == "failed"
    assert "log p of 1 of 20 test rows is not a finite number" in result["error"]
