"""``cflows fit``, ``score`` and ``sample``: a model of the user's own table, in its units."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import refused, run

import cflows
from baselines.harness import data
from baselines.harness.estimator import apply
from baselines.models import builtin
from cflows.core.atomic_write import write_whole
from cflows.core.registry import packed
from cflows.training import pipeline

COLUMNS = ["height, cm", "weight"]


def people(n: int, seed: int = 0) -> np.ndarray:
    """Two columns in units of their own, correlated, and one of them skewed."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(n, 2))
    height = 170 + 9 * z[:, 0]
    return np.column_stack([height, 70 * np.exp(0.15 * (0.7 * z[:, 0] + 0.7 * z[:, 1]))])


def write_csv(path: Path, rows: np.ndarray, columns: list[str]) -> Path:
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows.tolist())
    return path


def read_csv(path: Path) -> tuple[list[str], np.ndarray]:
    with open(path, newline="") as file:
        header, *lines = csv.reader(file)
    return header, np.array(lines, dtype=float)


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Path:
    return write_csv(tmp_path_factory.mktemp("data") / "people.csv", people(1500), COLUMNS)


@pytest.fixture(scope="module")
def model(table, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("model") / "people.flow"
    assert run("fit --model maf --depth 2 --steps 200 --data", table, "--out", out) == 0
    return out


def test_a_saved_model_knows_the_columns(model, table):
    flow = cflows.load(model)
    assert isinstance(flow, cflows.TableFlow)
    assert flow.columns == tuple(COLUMNS)
    assert next(flow.parameters()).dtype == torch.float32


def test_samples_are_in_the_units_of_the_table(model, tmp_path):
    assert run("sample", model, "-n", 4000, "--out", tmp_path / "new.csv", "--seed", 3) == 0
    header, drawn = read_csv(tmp_path / "new.csv")
    rows = people(1500)
    assert header == COLUMNS
    assert drawn.shape == (4000, 2)
    np.testing.assert_allclose(drawn.mean(0), rows.mean(0), atol=0.2 * rows.std(0).max())
    np.testing.assert_allclose(drawn.std(0), rows.std(0), rtol=0.15)
    np.testing.assert_allclose(
        np.quantile(drawn, [0.05, 0.95], 0), np.quantile(rows, [0.05, 0.95], 0), rtol=0.05
    )
    assert np.corrcoef(drawn.T)[0, 1] == pytest.approx(np.corrcoef(rows.T)[0, 1], abs=0.1)


def test_densities_integrate_to_one_in_the_units_of_the_table(model, tmp_path):
    """By the trapezoidal rule on a grid of heights and weights, through files alone."""
    axes = np.linspace(110, 230, 241), np.linspace(20, 190, 341)
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 2)
    write_csv(tmp_path / "grid.csv", grid, COLUMNS)
    assert run("score", model, "--data", tmp_path / "grid.csv", "--out", tmp_path / "p.csv") == 0
    header, log_prob = read_csv(tmp_path / "p.csv")
    assert header == ["log_prob"]
    density = np.exp(log_prob).reshape(241, 341)
    rule = [torch.tensor(axis) for axis in axes]
    mass = torch.trapezoid(torch.trapezoid(torch.tensor(density), rule[1]), rule[0])
    assert float(mass) == pytest.approx(1.0, abs=2e-3)
    mean = np.exp(log_prob[:, 0]) @ grid * (axes[0][1] - axes[0][0]) * (axes[1][1] - axes[1][0])
    np.testing.assert_allclose(mean, people(1500).mean(0), rtol=0.02)


def test_scores_are_the_flows_own(model, table, tmp_path):
    assert run("score", model, "--data", table, "--out", tmp_path / "p.npy") == 0
    log_prob = np.load(tmp_path / "p.npy")
    assert log_prob.shape == (1500,)
    expected = cflows.log_likelihood(cflows.load(model), torch.tensor(people(1500)).float())
    np.testing.assert_allclose(log_prob, expected.numpy(), rtol=1e-5, atol=1e-5)


def test_columns_are_found_by_name(model, tmp_path):
    rows = people(30, seed=5)
    write_csv(tmp_path / "a.csv", rows, COLUMNS)
    write_csv(tmp_path / "b.csv", rows[:, ::-1], COLUMNS[::-1])
    np.save(tmp_path / "c.npy", rows)
    np.savetxt(tmp_path / "d.csv", rows, fmt="%.17g", delimiter=",")
    found = []
    for name in ("a.csv", "b.csv", "c.npy", "d.csv"):
        assert run("score", model, "--data", tmp_path / name, "--out", tmp_path / "p.npy") == 0
        found.append(np.load(tmp_path / "p.npy"))
    assert all(np.array_equal(found[0], other) for other in found)


def test_a_model_without_names_goes_by_order_and_one_row_is_enough(tmp_path):
    np.save(tmp_path / "rows.npy", people(300))
    out = tmp_path / "model"
    fit = "fit --model nice --steps 5 --preprocess standardise --data"
    assert run(fit, tmp_path / "rows.npy", "--out", out) == 0
    write_csv(tmp_path / "named.csv", people(1), COLUMNS)
    write_csv(tmp_path / "shuffled.csv", people(1)[:, ::-1], ["x1", "x0"])
    found = []
    for name in ("named.csv", "shuffled.csv"):
        assert run("score", out, "--data", tmp_path / name, "--out", tmp_path / "p.npy") == 0
        found.append(np.load(tmp_path / "p.npy"))
    assert found[0] == found[1]
    assert run("sample", out, "-n", 2, "--out", tmp_path / "s.csv") == 0
    assert read_csv(tmp_path / "s.csv")[0] == ["x0", "x1"]


def test_sampled_files_are_read_again(model, tmp_path):
    """The whole way round: a sampled .csv is a table to fit, score and sample."""
    drawn, again = tmp_path / "drawn.csv", tmp_path / "again"
    assert run("sample", model, "-n", 100, "--out", drawn) == 0
    assert data.load(drawn).columns == tuple(COLUMNS)
    assert run("fit", "--model", "realnvp", "--data", drawn, "--out", again, "--steps", 3) == 0
    assert cflows.load(again).columns == tuple(COLUMNS)


def test_a_seed_repeats_the_samples(model, tmp_path):
    found = []
    state = torch.get_rng_state()
    for seed in (0, 0, 1):
        assert run("sample", model, "-n", 9, "--out", tmp_path / "s.npy", "--seed", seed) == 0
        found.append(np.load(tmp_path / "s.npy"))
    assert np.array_equal(found[0], found[1])
    assert not np.array_equal(found[0], found[2])
    assert found[0].dtype == np.float64
    assert torch.equal(torch.get_rng_state(), state)


def test_many_samples_are_drawn_in_parts(model, tmp_path, monkeypatch):
    monkeypatch.setattr(apply, "DRAWN_AT_ONCE", 4)
    assert run("sample", model, "-n", 10, "--out", tmp_path / "s.npy") == 0
    rows = np.load(tmp_path / "s.npy")
    assert len(np.unique(rows, axis=0)) == 10


def test_fit_prints_what_the_model_is_worth(table, tmp_path, capsys):
    fit = "fit --model ffjord --depth 1 --steps 3 --preprocess whiten --data"
    assert run(fit, table, "--out", tmp_path / "m") == 0
    text = capsys.readouterr().out
    flow = cflows.load(tmp_path / "m")
    test = torch.from_numpy(data.load(table).test).float()
    log_prob = cflows.log_likelihood(flow, test).double()
    error = 2 * log_prob.std() / len(test) ** 0.5
    assert f"test       {log_prob.mean():10.3f} ± {error:.3f}   150 rows" in text
    assert "training" in text
    assert "validation" in text
    assert "solver gap" in text
    assert "FFJORD, 1 block, whiten: 3 steps" in text


@pytest.mark.parametrize(
    ("preprocess", "parts"),
    [("standardise", "Affine"), ("whiten", "Whitening"), ("none", "")],
)
def test_the_map_that_was_asked_for(preprocess, parts, table, tmp_path):
    fit = f"fit --model maf --steps 2 --preprocess {preprocess} --data"
    assert run(fit, table, "--out", tmp_path / "m") == 0
    found = {type(part).__name__ for part in cflows.load(tmp_path / "m").modules()}
    assert found & {"Affine", "Whitening"} == ({parts} if parts else set())


def test_auto_keeps_the_map_of_the_better_validation(table, tmp_path, capsys):
    """Additive couplings of one layer cannot undo a correlation: whitening wins."""
    fit = "fit --model nice --depth 1 --steps 60 --data"
    assert run(fit, table, "--out", tmp_path / "m") == 0
    text = capsys.readouterr().out
    assert "(standardise)" in text
    assert "(whiten)" in text
    assert "NICE, 1 layer, whiten" in text


def test_seeds_repeat_and_quick_and_seconds_end_the_training(table, tmp_path, capsys):
    for name in ("a", "b"):
        fit = "fit --model nice --steps 20 --seed 4 --data"
        assert run(fit, table, "--out", tmp_path / name) == 0
    a, b = (cflows.load(tmp_path / name).state_dict() for name in ("a", "b"))
    assert all(torch.equal(a[key], b[key]) for key in a)
    capsys.readouterr()
    command = "fit --model nice --preprocess none --data", table, "--out", tmp_path / "c"
    assert run(*command, "--seconds", 0.3) == 0
    said = capsys.readouterr().out
    assert "takes 0.3 s at most" in said
    assert "ended by seconds" in said
    assert run(*command, "--quick", "--depth", 1) == 0
    assert f": {builtin.MODELS['nice'].quick_steps} steps" in capsys.readouterr().out


def test_dependent_columns_are_floored_with_one_line(tmp_path, capsys):
    rows = people(200)
    write_csv(tmp_path / "t.csv", np.column_stack([rows, 2 * rows[:, 0]]), ["a", "b", "c"])
    command = ["fit", "--model", "nice", "--data", tmp_path / "t.csv", "--out", tmp_path / "m"]
    assert run(*command, "--steps", 2, "--preprocess", "whiten") == 0
    # Whether two steps gain anything depends on the processor.
    said = [line for line in capsys.readouterr().err.splitlines() if "gained nothing" not in line]
    assert [line[:26] for line in said] == ["cflows: 1 of 3 directions "]
    assert run("sample", tmp_path / "m", "-n", 50, "--out", tmp_path / "s.npy") == 0
    drawn = np.load(tmp_path / "s.npy")
    np.testing.assert_allclose(drawn[:, 2], 2 * drawn[:, 0], atol=0.2)


def test_an_interrupted_fit_goes_on_to_the_same_model(table, tmp_path, monkeypatch, capsys):
    """The same command again: the choice of a map is kept, the training goes on, the bits agree."""
    command = ["fit", "--model", "nice", "--depth", 1, "--data", table, "--steps", 40]
    assert run(*command, "--out", tmp_path / "whole") == 0
    kept = [*command, "--out", tmp_path / "part", "--checkpoint", tmp_path / "c.pt"]
    step, taken = torch.optim.AdamW.step, []

    def interrupted(self, *args):
        taken.append(step(self, *args))
        if len(taken) == 105:  # behind 40 and 40 of the choice
            raise KeyboardInterrupt

    monkeypatch.setattr(torch.optim.AdamW, "step", interrupted)
    assert run(*kept) == 130
    assert not (tmp_path / "part").exists()
    assert "nothing is lost" in capsys.readouterr().err
    assert run(*kept) == 0
    assert 15 <= len(taken) - 105 < 20  # the steps that were missing
    whole, part = (cflows.load(tmp_path / n).state_dict() for n in ("whole", "part"))
    assert all(torch.equal(whole[key], part[key]) for key in whole)


def test_an_interrupted_choice_of_a_map_goes_on(table, tmp_path, monkeypatch, capsys):
    command = ["fit", "--model", "nice", "--depth", 1, "--data", table, "--steps", 1400]
    kept = [*command, "--out", tmp_path / "m", "--checkpoint", tmp_path / "c.pt"]
    step, taken, stops = torch.optim.AdamW.step, [], [65, 65 + 15 + 60]

    def interrupted(self, *args):
        taken.append(step(self, *args))
        if len(taken) in stops:
            raise KeyboardInterrupt

    monkeypatch.setattr(torch.optim.AdamW, "step", interrupted)
    for left in (["c.pt.map.whiten"], ["c.pt.map.standardise", "c.pt.map.whiten"]):
        assert run(*kept) == 130
        assert sorted(p.name for p in tmp_path.glob("c.pt*") if p.suffix != ".previous") == left
        assert "nothing is lost" in capsys.readouterr().err
    refused(capsys, *kept, "--seed", 1, words=("c.pt.map.whiten", "another run"))
    assert run(*kept) == 0
    assert len(taken) - 140 <= 20 + 1400
    left = ["c.pt", "c.pt.map", "c.pt.previous"]
    assert sorted(p.name for p in tmp_path.glob("c.pt*")) == left
    (tmp_path / "c.pt").unlink()
    (tmp_path / "c.pt.previous").unlink()
    refused(capsys, *kept, "--seed", 1, words=("c.pt.map", "another run"))
    (tmp_path / "c.pt.map").write_text("{}")
    refused(capsys, *kept, words=("c.pt.map is no choice of a map: delete it",))


@pytest.mark.parametrize("preprocess", ["none", "auto"])
def test_a_checkpoint_of_other_columns_is_refused(preprocess, tmp_path, capsys):
    rows, table = people(300), tmp_path / "t.csv"
    command = ["fit", "--model", "nice", "--depth", 1, "--data", table, "--steps", 5]
    command += ["--preprocess", preprocess, "--checkpoint", tmp_path / "c.pt"]
    command += ["--out", tmp_path / "m"]
    write_csv(table, rows, COLUMNS)
    assert run(*command) == 0
    capsys.readouterr()
    for columns in (COLUMNS[::-1], ["a", *COLUMNS[1:]]):
        write_csv(table, rows, columns)
        refused(capsys, *command, words=("c.pt", "another run"))
    write_csv(table, rows, COLUMNS)
    assert run(*command) == 0


def test_a_foreign_checkpoint_is_refused(table, tmp_path, capsys):
    (tmp_path / "c.pt").write_bytes(table.read_bytes())
    command = "fit --model nice --preprocess none --data", table, "--out", tmp_path / "m"
    refused(capsys, *command, "--checkpoint", tmp_path / "c.pt", words="c.pt")
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "mfa"], ("'mfa'", "maf")),
        (["--depth", "0"], ("--depth must be positive",)),
        (["--depth", "-1"], ("--depth",)),
        (["--steps", "0"], ("--steps must be positive",)),
        (["--seconds", "nan"], ("--seconds must be a finite",)),
        (["--seconds", "-1"], ("--seconds must be positive",)),
        (["--seed", "-1"], ("--seed", "2**63 - 1")),
        (["--preprocess", "zca"], ("--preprocess", "zca", "whiten")),
        (["--data", "pinwheal"], ("'pinwheal'", "pinwheel")),
        (["--data", "nowhere.csv"], ("nowhere.csv", "not found")),
        (["--out", "no/such/folder/m"], ("no such folder",)),
        (["--out", "."], ("is a directory",)),
        (["--checkpoint", "no/folder/c.pt"], ("no such folder",)),
        (["--checkpoint", "m"], ("m: cannot be the checkpoint too",)),
    ],
)
def test_bad_options_of_fit(arguments, words, table, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    good = ["--model", "nice", "--data", table, "--out", "m", "--steps", "2"]
    refused(capsys, "fit", *good, *arguments, words=words)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("a,b\n" + "1,2\n3,nan\n" * 20, ("column 'b'", "nan")),
        ("a,b\n" + "1,2\n3,2\n" * 20, ("column 'b'", "constant")),
        ("a,a\n" + "1,2\n3,4\n2,2\n" * 20, ("two columns", "'a'")),
        ("a,b\n" + "1,1700000001\n3,1700000002\n2,1700000003\n" * 20, ("'b'", "subtract")),
        ("a\n" + "1\n2\n3\n" * 20, ("realnvp", "1 columns")),
    ],
)
def test_bad_tables_of_fit(content, words, tmp_path, capsys):
    (tmp_path / "t.csv").write_text(content)
    command = "fit --model realnvp --steps 2 --out", tmp_path / "m"
    refused(capsys, *command, "--data", tmp_path / "t.csv", words=words)
    assert [path.name for path in tmp_path.iterdir()] == ["t.csv"]


def test_a_failed_training_is_one_line_and_status_1(table, tmp_path, monkeypatch, capsys):
    def broken(*args, **settings):
        raise cflows.TrainingError("the loss left\nthe numbers")

    monkeypatch.setattr(pipeline, "fit", broken)
    command = "fit --model nice --preprocess none --data", table, "--out", tmp_path / "m"
    refused(capsys, *command, words="the loss left the numbers", status=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        ([], "nothing was written; with --checkpoint"),
        (["--checkpoint", "c"], "nothing was trained yet, the same command begins anew"),
        (["--checkpoint", "made"], "nothing is lost"),
    ],
)
def test_an_interrupted_fit_says_what_is_left(extra, says, table, tmp_path, monkeypatch, capsys):
    def interrupted(*args, **settings):
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pipeline, "fit", interrupted)
    Path("made").touch()
    assert run("fit --model nice --preprocess none --out m --data", table, *extra) == 130
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("missing.csv", None, ("missing.csv", "not found")),
        ("nan.csv", '"height, cm",weight\n1,2\n3,nan\n', ("column 'weight'", "line 3")),
        ("lacks.csv", '"height, cm",age\n1,2\n', ("lacks the column 'weight'", "'age'")),
        ("extra.csv", '"height, cm",age,kind\n1,2,x\n', ("further columns 'age'", "lacks")),
        ("unnamed.csv", "1,2,3\n4,5,6\n", ("3 columns", "the model 2", "weight")),
        ("twice.csv", "weight,weight\n1,2\n", ("two columns", "'weight'")),
        ("huge.csv", "1e39,2\n4,5\n", ("beyond 3e+38", "float32")),
        ("header.csv", '"height, cm",weight\n', ("no rows",)),
        ("rows.parquet", "x", ("not a complete .parquet file",)),
    ],
)
def test_bad_files_of_score(name, content, words, model, tmp_path, capsys):
    if content is not None:
        (tmp_path / name).write_text(content)
    before = sorted(tmp_path.iterdir())
    command = "score", model, "--out", tmp_path / "p.csv"
    refused(capsys, *command, "--data", tmp_path / name, words=words)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("command", [["score", "--data"], ["sample", "-n", "3"]])
@pytest.mark.parametrize("kind", ["missing", "damaged", "table", "module", "context"])
def test_bad_models(command, kind, table, tmp_path, capsys):
    path, words = tmp_path / "m", (str(tmp_path / "m"),)
    if kind == "damaged":
        path.write_bytes(b"PK\x03\x04 and no more")
    elif kind == "table":
        path.write_bytes(table.read_bytes())
    elif kind == "module":
        write_whole(path, packed(cflows.Affine([0.0], [1.0])))
        words = ("Affine", "not a flow")
    elif kind == "context":
        cflows.FFJORD(2, context_features=1).save(path)
        words = ("context",)
    before = sorted(tmp_path.iterdir())
    tail = [table] if command[0] == "score" else []
    whole = command[0], path, *command[1:], *tail, "--out", tmp_path / "o.csv"
    refused(capsys, *whole, words=words)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-n", "0"], ("-n must be positive",)),
        (["-n", "many"], ("-n", "many")),
        (["--out", "s.xlsx"], ("'.xlsx'", ".csv or .npy")),
        (["--out", "s"], ("''", ".csv or .npy")),
        (["--out", "none/s.csv"], ("no such folder",)),
        (["--seed", "-2"], ("--seed",)),
    ],
)
def test_bad_options_of_sample(arguments, words, model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    refused(capsys, "sample", model, "-n", "3", "--out", "s.csv", *arguments, words=words)
    assert list(tmp_path.iterdir()) == []


def test_what_is_read_is_never_overwritten(table, model, capsys):
    before = table.read_bytes(), model.read_bytes()
    words = ("would overwrite what is read",)
    fit = ["fit", "--model", "nice", "--data", table, "--out"]
    refused(capsys, *fit, table, words=words)
    refused(capsys, "score", model, "--data", table, "--out", table, words=words)
    refused(capsys, "sample", model, "-n", "3", "--out", model, words=words)
    assert (table.read_bytes(), model.read_bytes()) == before


def test_samples_that_are_not_finite_are_not_written(tmp_path, capsys):
    flow = cflows.Flow(cflows.Chain(cflows.Affine([0.0], [3e38]), cflows.Affine([0.0], [10.0])))
    flow.save(tmp_path / "m")
    command = "sample -n 9", tmp_path / "m", "--out", tmp_path / "s.csv"
    refused(capsys, *command, words="of 9 samples are not finite")
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_a_write_that_fails_leaves_the_earlier_file(model, table, tmp_path, monkeypatch, capsys):
    out = tmp_path / "p.csv"
    out.write_text("earlier")

    def full(file, *args, **settings):
        file.write(b"half a line")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savetxt", full)
    refused(capsys, "score", model, "--data", table, "--out", out, words=("No space left",))
    assert out.read_text() == "earlier"
    assert list(tmp_path.iterdir()) == [out]


def test_a_flow_saved_from_python_is_scored_by_order(tmp_path):
    cflows.Flow(cflows.Affine([1.0, 2.0], [1.0, 3.0])).double().save(tmp_path / "m")
    write_csv(tmp_path / "t.csv", np.array([[1.0, 2.0]]), ["a", "b"])
    command = "score", tmp_path / "m", "--data", tmp_path / "t.csv"
    assert run(*command, "--out", tmp_path / "p.npy") == 0
    expected = -np.log(2 * np.pi) - np.log(3)
    np.testing.assert_allclose(np.load(tmp_path / "p.npy"), [expected], rtol=1e-12)


def test_as_a_process(model, tmp_path):
    """The installed way in: ``python -m baselines.harness``, standard streams and status."""

    def process(model: Path) -> subprocess.CompletedProcess[str]:
        line = f"sample {model} -n 3 --out {tmp_path / 's.csv'}"
        command = [sys.executable, "-m", "baselines.harness", *line.split()]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    good, bad = process(model), process(tmp_path / "none")
    assert (good.returncode, good.stderr) == (0, "")
    assert "3 samples" in good.stdout
    assert bad.returncode == 2
    assert bad.stderr == f"cflows: {tmp_path / 'none'}: no such file\n"


def test_seconds_bound_the_choice_too(table, tmp_path, monkeypatch, capsys):
    given = {}

    def recorded(*args, **settings):
        given["main"] = settings["seconds"]
        return cflows.fit(*args, **settings)

    def chosen(*args, **settings):
        given["choice"] = settings["seconds"]
        return choose(*args, **settings)._replace(seconds=0.5)

    choose = cflows.choose
    monkeypatch.setattr(pipeline, "fit", recorded)
    monkeypatch.setattr(pipeline, "choose", chosen)
    fit = "fit --model nice --depth 1 --seconds 2 --data"
    assert run(fit, table, "--out", tmp_path / "m") == 0
    assert given == {"choice": 0.2, "main": 1.5}


def small_table(path: Path, n: int = 120) -> Path:
    return write_csv(path, people(n), COLUMNS)


def test_few_rows_train_slower_and_shorter(tmp_path, monkeypatch, capsys):
    given = {}

    def recorded(*args, **settings):
        given.update(settings)
        return cflows.fit(*args, **{**settings, "steps": 2})

    monkeypatch.setattr(pipeline, "fit", recorded)
    command = ["fit", "--model", "planar", "--depth", 2, "--preprocess", "whiten"]
    command += ["--out", tmp_path / "m"]
    for n, steps, part in ((1250, 400, 0.2), (125, 200, 0.02), (6250, 2000, 1.0)):
        assert run(*command, "--data", small_table(tmp_path / "t.csv", n)) == 0
        assert given["steps"] == steps
        assert given["learning_rate"] == pytest.approx(5e-3 * part**0.5, rel=0.01)
    assert run(*command, "--data", tmp_path / "t.csv", "--steps", 30) == 0
    assert given["steps"] == 30


def test_a_training_that_gains_nothing_says_so(tmp_path, monkeypatch, capsys):
    def spoilt(flow, train, validation, **settings):
        history = cflows.fit(flow, train, validation, **settings)
        history.best_step, history.best_validation = 0, history.records[0].validation
        return history

    monkeypatch.setattr(pipeline, "fit", spoilt)
    fit = "fit --model nice --preprocess whiten --steps 20 --data"
    assert run(fit, small_table(tmp_path / "t.csv"), "--out", tmp_path / "m") == 0
    said = capsys.readouterr()
    assert "the state of step 0 is kept" in said.out
    assert "the training gained nothing over a Gaussian: fewer layers" in said.err


def test_draws_far_from_the_table_are_counted(tmp_path, capsys):
    rows = people(120)
    table = small_table(tmp_path / "t.csv")
    fit = "fit --model nice --depth 1 --steps 5 --data"
    assert run(fit, table, "--out", tmp_path / "m") == 0
    said = capsys.readouterr()
    assert "10,000 draws: " in said.out
    assert "0 by more than it is wide" in said.out
    assert said.err == ""
    flow = cflows.load(tmp_path / "m")
    highest = torch.tensor(rows[:96].max(0))
    torch.testing.assert_close(flow.extent[1].double(), highest, rtol=0.2, atol=0.0)
    narrow = flow.extent.clone()
    narrow[:2] = flow.extent[:2].mean(0) + torch.tensor([[-1.0], [1.0]]) * flow.extent[2]
    again = cflows.TableFlow(flow.bijector, flow.base, COLUMNS, extent=narrow)
    again.save(tmp_path / "narrow")
    old = cflows.TableFlow(flow.bijector, flow.base, COLUMNS)
    old.save(tmp_path / "old")
    for name, says in (("m", False), ("narrow", True), ("old", False)):
        assert run("sample", tmp_path / name, "-n", 5000, "--out", tmp_path / "s.npy") == 0
        error = capsys.readouterr().err
        assert ("of 5,000 draws lie far outside of the training rows" in error) is says
        assert error.count("\n") == says
    drawn = torch.tensor(np.load(tmp_path / "s.npy"))
    far = (drawn < 2 * narrow[0] - narrow[1]) | (drawn > 2 * narrow[1] - narrow[0])
    assert again.outside(drawn).far == int(far.any(1).sum()) > 0


def test_the_furthest_of_the_far_draws_is_named(tmp_path, capsys):
    """Another column is left by more standard deviations, and by less than it is wide."""
    extent = [[-2.0, -0.5], [2.0, 0.5], [0.01, 0.3]]
    flow = cflows.TableFlow(cflows.Affine([0.0, 0.0], [1.0, 1.0]), None, COLUMNS, extent=extent)
    flow.save(tmp_path / "m")
    assert run("sample", tmp_path / "m", "-n", 1000, "--out", tmp_path / "s.npy") == 0
    beyond = np.abs(np.load(tmp_path / "s.npy")) - extent[1]
    assert beyond[:, 0].max() / 0.01 > beyond[:, 1].max() / 0.3
    assert (beyond > [4.0, 1.0]).any(0).tolist() == [False, True]
    furthest = f"the furthest {beyond[:, 1].max() / 0.3:.3g} standard deviations, in 'weight'"
    assert furthest in capsys.readouterr().err
