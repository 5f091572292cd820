"""``cflows fit --weights``: a column that counts the rows and is not modelled."""

from __future__ import annotations

import numpy as np
import pytest

import cflows
from baselines.harness import cli


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
        (np.where(np.arange(400) == 7, -1, 1), ("w",), "'w' is -1 in row 8 below the header"),
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
