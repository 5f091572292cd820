"""``cflows fit --weights``: a column that counts the rows and is not modelled."""

from __future__ import annotations

import io
import sys
import types

import numpy as np
import pytest

import cflows
from baselines.harness import cli
from baselines.harness.data import DataError, files
from baselines.harness.estimator.table_rows import open_rows


def run(*arguments):
    return cli.main([str(argument) for argument in arguments])


def table(path, weights):
    rows = np.random.default_rng(0).normal(size=(400, 2)) + np.repeat([[-3.0], [3.0]], 200, 0)
    np.savetxt(path, np.column_stack([rows, weights]), delimiter=",", header="a,b,w", comments="")
    return path


@pytest.mark.parametrize("preprocess", ["auto", "standardise"])
def test_rows_count_by_a_column_that_is_not_modelled(preprocess, tmp_path, capsys):
    given = table(tmp_path / "t.csv", np.repeat([0.0, 1.0], 200))
    assert run("fit", "--model", "maf", "--depth", 1, "--data", given, "--out", tmp_path / "m",
               "--weights", "w", "--steps", 60, "--preprocess", preprocess) == 0  # fmt: skip
    flow = cflows.load(tmp_path / "m")
    assert flow.columns == ("a", "b")
    assert flow.sample(500).mean(0).sub(3).abs().max() < 0.7
    assert "log-likelihood of a row" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("weights", "options", "message"),
    [
        (np.where(np.arange(400) == 7, -1, 1), ("w",), "'w' is -1 in row 8, a header not counted"),
        (np.arange(400) == 0, ("w",), "row has a positive weight in the column 'w'"),
        (np.arange(400) % 3, ("v",), "has no column 'v' for --weights"),
        (np.arange(400) % 3, ("w", "--context", "w"), "named by --context and --weights"),
        (np.arange(400) % 3, ("w", "--context", "a", "b"), "every column is named by"),
    ],
)
def test_weights_that_cannot_be_used_are_named_in_one_line(
    weights, options, message, tmp_path, capsys
):
    given = table(tmp_path / "t.csv", weights)
    with pytest.raises(SystemExit) as caught:
        run("fit", "--model", "maf", "--data", given, "--out", tmp_path / "m", "--weights",
            *options)  # fmt: skip
    assert caught.value.code == 2
    told = capsys.readouterr().err
    assert message in told
    assert told.count("\n") == 1
    assert not (tmp_path / "m").exists()


def test_a_negative_weight_of_a_pipe_is_named_by_its_row(tmp_path, monkeypatch):
    weights = np.ones(400)
    weights[[299, 17, 350]] = -1, -2, -3
    content = table(tmp_path / "t.csv", weights).read_bytes()
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=io.BytesIO(content)))
    with pytest.raises(DataError, match="'w' is -2 in row 18, a header not counted"):
        open_rows("-", weights="w")


def test_weights_of_a_streamed_file_stay_with_their_rows(tmp_path, monkeypatch):
    rows = np.random.default_rng(0).normal(size=(400, 3))
    rows[:, 2] = np.abs(rows[:, 0])
    np.save(tmp_path / "t.npy", rows)
    monkeypatch.setattr(files, "STREAMED_BYTES", 1000)
    monkeypatch.setattr("baselines.harness.estimator.table_rows.AT_ONCE", 70)
    found = open_rows(str(tmp_path / "t.npy"), weights="x2")
    for name, step in (("train", 1), ("validation", 3)):
        x, _ = found.few(name, lambda _, step=step: step)
        weights = found.weights_of(name, lambda _, step=step: step)
        assert x.shape == (len(weights), 2)
        np.testing.assert_array_equal(weights, x[:, 0].abs())
    rows[17, 2] = -2
    np.save(tmp_path / "t.npy", rows)
    with pytest.raises(DataError, match="'x2' is -2 in row 18"):
        open_rows(str(tmp_path / "t.npy"), weights="x2")
