"""A conditional model from the command line: fit, score and sample in the table's units."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import torch

import cflows
from baselines.harness import cli
from cflows.core.flow import log_likelihood

CONTEXT = ["age", "year"]


def people(n, seed=0):
    """Height and weight depend on an age and a year in units of their own."""
    rng = np.random.default_rng(seed)
    age, year = rng.uniform(20, 60, n), rng.uniform(1900, 2000, n)
    height = 100 + age + 3 * rng.normal(size=n)
    return np.column_stack([age, height, 60 + rng.normal(size=n), year])


def write_csv(path, rows, columns):
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([columns, *rows.tolist()])
    return path


def run(*arguments):
    return cli.main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("context")
    table = write_csv(folder / "t.csv", people(2000), ["age", "height", "weight", "year"])
    assert run("fit", "--model", "maf", "--depth", 2, "--data", table, "--out", folder / "m",
               "--context", *CONTEXT, "--steps", 300,
               "--preprocess", "standardise") == 0  # fmt: skip
    return folder / "m"


def test_names_and_units_of_the_context_are_kept(model):
    flow = cflows.load(model)
    assert flow.columns == ("height", "weight")
    assert flow.context_columns == tuple(CONTEXT)
    np.testing.assert_allclose(flow.context_loc, [40, 1950], rtol=0.02)
    np.testing.assert_allclose(flow.context_scale, np.array([40, 100]) / 12**0.5, rtol=0.05)


def test_samples_follow_the_context_and_are_scored_as_they_are(model, tmp_path):
    given = write_csv(tmp_path / "c.csv", np.array([[1950.0, 25.0], [1950.0, 55.0]]), CONTEXT[::-1])
    assert run("sample", model, "-n", 500, "--context", given, "--out", tmp_path / "s.csv") == 0
    drawn = np.loadtxt(tmp_path / "s.csv", delimiter=",", skiprows=1)
    assert (tmp_path / "s.csv").read_text().startswith("height,weight,age,year\n")
    assert drawn[:, 2].tolist() == [25.0] * 500 + [55.0] * 500
    assert drawn[:500, 0].mean() == pytest.approx(125, abs=2)
    assert drawn[500:, 0].mean() == pytest.approx(155, abs=2)
    assert run("score", model, "--data", tmp_path / "s.csv", "--out", tmp_path / "p.npy") == 0
    x = torch.tensor(drawn).float()
    expected = log_likelihood(cflows.load(model), x[:, :2], x[:, 2:])
    np.testing.assert_allclose(np.load(tmp_path / "p.npy"), expected, rtol=1e-5, atol=1e-5)


def test_a_context_in_a_file_of_its_own(model, tmp_path):
    rows = people(20, seed=1)
    whole = write_csv(tmp_path / "t.csv", rows, ["age", "height", "weight", "year"])
    own = write_csv(tmp_path / "x.csv", rows[:, 1:3], ["height", "weight"])
    beside = write_csv(tmp_path / "c.csv", rows[:, [0, 3]], CONTEXT)
    assert run("score", model, "--data", whole, "--out", tmp_path / "a.npy") == 0
    assert run("score", model, "--data", own, "--context", beside, "--out", tmp_path / "b.npy") == 0
    assert np.array_equal(np.load(tmp_path / "a.npy"), np.load(tmp_path / "b.npy"))


def refused(capsys, *arguments, words):
    with pytest.raises(SystemExit) as caught:
        run(*arguments)
    error = capsys.readouterr().err
    assert caught.value.code == 2
    assert error.startswith("cflows: ")
    assert error.count("\n") == 1
    for word in words:
        assert word in error


def test_contexts_refused(model, tmp_path, capsys):
    table = write_csv(tmp_path / "t.csv", people(50), ["age", "height", "weight", "year"])
    own = write_csv(tmp_path / "x.csv", people(5)[:, 1:3], ["height", "weight"])
    three = write_csv(tmp_path / "c.csv", people(3)[:, [0, 3]], CONTEXT)
    fit = ["fit", "--model", "nice", "--steps", 2, "--out", tmp_path / "m", "--data", table]
    refused(
        capsys,
        *fit,
        "--context",
        "aeg",
        words=("no column 'aeg'", "did you mean age?", "age, height"),
    )
    refused(capsys, *fit, "--context", "age", "height", "weight", "year", words=("leave one",))
    out = ["--out", tmp_path / "o.csv"]
    refused(capsys, "score", model, "--data", own, *out, words=("'age'", "--context"))
    refused(capsys, "score", model, "--data", own, "--context", three, *out,
            words=("has 3 rows for the 5",))  # fmt: skip
    one = write_csv(tmp_path / "one.csv", people(3)[:, [0]], ["age"])
    wide = tmp_path / "wide.csv"
    wide.write_text("1,2,3\n")
    for command in (["score", model, "--data", own], ["sample", model, "-n", 3]):
        for file, words in (
            (one, ("lacks the column 'year'; the columns of the model's context are age, year",)),
            (own, ("lacks the columns 'age', 'year' and has the further columns 'height',",)),
            (wide, ("has 3 columns, the model's context 2 (age, year); give these",)),
        ):
            refused(capsys, *command, "--context", file, *out, words=words)
    refused(capsys, "sample", model, "-n", 3, *out, words=("age, year", "--context FILE"))
    cflows.Flow(cflows.Affine([0.0], [1.0])).save(tmp_path / "plain")
    refused(capsys, "sample", tmp_path / "plain", "-n", 3, "--context", three, *out,
            words=("takes no context",))  # fmt: skip
    assert not (tmp_path / "o.csv").exists()


def test_names_and_scales_that_a_table_flow_refuses():
    bijector = cflows.FFJORD(2, context_features=1).bijector
    with pytest.raises(ValueError, match="2 column names for 1 context features"):
        cflows.TableFlow(bijector, context_columns=["a", "b"])
    with pytest.raises(ValueError, match="two columns are called 'a'"):
        cflows.TableFlow(bijector, columns=["a", "b"], context_columns=["a"])
    with pytest.raises(ValueError, match=r"must have shape \(1,\), the scale positive"):
        cflows.TableFlow(bijector, context_scale=[0.0])
