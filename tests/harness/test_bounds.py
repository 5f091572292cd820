from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from baselines.harness.cli import main
from baselines.harness.data.bounds import parse
from cflows import load

FEW = ["--steps", "5", "--depth", "1", "--preprocess", "standardise", "--device", "cpu"]


@pytest.fixture
def table(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    rows = np.column_stack([rng.exponential(1, 200), rng.random(200), rng.normal(size=200)])
    np.savetxt("t.csv", rows, delimiter=",", header="wait,share,free", comments="", fmt="%.9g")
    np.save("t.npy", rows)
    return rows


def refused(capsys, *command: str) -> str:
    with pytest.raises(SystemExit) as caught:
        main(list(command))
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("wait=0:", ("wait", (0.0, None))),
        ("a=b=:-2e3", ("a=b", (None, -2000.0))),
        ("x y=0:1", ("x y", (0.0, 1.0))),
    ],
)
def test_bounds_are_read(text, found):
    assert parse(text) == found


@pytest.mark.parametrize(
    "text", ["wait", "wait=", "wait=:", "=0:1", "a=0", "a=x:1", "a=nan:", "a=0:inf", "a=1:1"]
)
def test_other_texts_are_refused(text, capsys, table):
    assert "--bounds" in refused(capsys, "fit", "--model", "maf", "--data", "t.csv", "--out",
                                 "m.flow", "--bounds", text)  # fmt: skip


@pytest.mark.parametrize("preprocess", ["standardise", "whiten", "none", "auto"])
@pytest.mark.parametrize("file", ["t.csv", "t.npy"])
def test_samples_of_the_command_are_inside(preprocess, file, table):
    names = ("wait", "share") if file == "t.csv" else ("x0", "x1")
    main(["fit", "--model", "maf", "--data", file, "--out", "m.flow", *FEW[:4], "--device", "cpu",
          "--preprocess", preprocess, "--bounds", f"{names[0]}=0:", f"{names[1]}=0:1"])  # fmt: skip
    main(["sample", "m.flow", "-n", "5000", "--out", "s.npy"])
    drawn = np.load("s.npy")
    assert (drawn[:, :2] > 0).all()
    assert (drawn[:, 1] < 1).all()
    assert (drawn[:, 2] < 0).any()
    main(["score", "m.flow", "--data", file, "--out", "lp.npy"])
    assert np.isfinite(np.load("lp.npy")).all()
    assert load("m.flow").bijector.codomain.event_dim == 1


def test_rows_outside_and_unknown_columns(capsys, table):
    fit = ["fit", "--model", "maf", "--data", "t.csv", "--out", "m.flow", *FEW, "--bounds"]
    assert "column 'free' has" in (said := refused(capsys, *fit, "free=0:"))
    assert "on or outside of its bounds" in said
    assert "did you mean wait?" in refused(capsys, *fit, "wai=0:")
    compare = ["compare", "--data", "t.csv", "--out", "r", "--bounds"]
    assert "column 'free' has" in refused(capsys, *compare, "free=0:")
    assert "did you mean share?" in refused(capsys, *compare, "shar=0:1")


def test_a_comparison_behind_bounds(table, capsys):
    np.savetxt("two.csv", table[:, :2], delimiter=",", header="wait,share", comments="")
    command = ["compare", "--data", "two.csv", "--models", "maf", "--depths", "1", "--steps", "5",
               "--quick", "--jobs", "1", "--device", "cpu", "--out", "r"]  # fmt: skip
    main([*command, "--bounds", "wait=0:", "share=0:1"])
    with open("r/results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["status"] for row in rows} == {"ok"}
    manifest = json.loads(Path("r/manifest.json").read_text())
    assert manifest["bounds"] == {"wait": [0, None], "share": [0, 1]}
    bounded = {path.name for path in Path("r/cells").glob("*maf*")}
    main(command)
    assert len({path.name for path in Path("r/cells").glob("*maf*")} - bounded) == 1
