"""The ``cflows`` command, on small real input."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from baselines.harness import cells, cli, models, runner
from baselines.harness.cells import Cell

DISCRETE = ["maf", "realnvp"]


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Path:
    """A file of five named columns, correlated and skewed."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(600, 5)) @ rng.normal(size=(5, 5))
    x[:, 0] = np.exp(0.5 * x[:, 0])
    path = tmp_path_factory.mktemp("file") / "mine.csv"
    np.savetxt(path, x, delimiter=",", header="a,b,c,d,e", comments="", fmt="%.6f")
    return path


def stamps(out: Path) -> dict[str, int]:
    return {str(p): p.stat().st_mtime_ns for p in sorted((out / "cells").rglob("*"))}


def results(out: Path) -> list[dict[str, str]]:
    with open(out / "results.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def finished(table, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("run") / "out"
    arguments = ["compare", "--data", str(table), "--models", "maf", "ffjord", "--steps", "12"]
    assert cli.main([*arguments, "--jobs", "1", "--out", str(out)]) == 0
    return out


def test_compare_on_a_users_file(finished):
    rows = results(finished)
    assert [(r["model"], r["depth"]) for r in rows] == [
        ("gaussian", ""), ("maf", "2"), ("maf", "5"), ("ffjord", "1"), ("ffjord", "2"),
    ]  # fmt: skip
    assert {r["dataset"] for r in rows} == {"mine.csv"}
    for row in rows:
        assert row["status"] == "ok"
        assert float(row["test_log_prob_2se"]) > 0
        assert float(row["density_ms_per_1000"]) > 0
        assert bool(row["solver_gap"]) == (row["model"] == "ffjord")
        assert float(row["peak_memory_mb"]) >= 0
        assert float(row["round_trip_error"]) < 1e-2
    assert [int(r["nfe_density"]) for r in rows[:3]] == [0, 2, 5]
    assert [int(r["nfe_sample"]) for r in rows[:3]] == [0, 10, 25]
    for name in ("report.md", "report.html", "likelihood.png", "cost.svg", "manifest.json"):
        assert (finished / name).stat().st_size > 0
    manifest = json.loads((finished / "manifest.json").read_text())
    assert manifest["threads"] == 1
    assert manifest["data"]["mine.csv"]["columns"] == list("abcde")


def test_scores_are_in_the_files_own_units(finished, table):
    """The Gaussian's row against a density computed from the file itself."""
    from scipy.stats import multivariate_normal

    from baselines.harness import data

    rows = data.load(table)
    gaussian = multivariate_normal(rows.train.mean(0), np.cov(rows.train.T, bias=True))
    expected = gaussian.logpdf(rows.test).mean()
    assert float(results(finished)[0]["test_log_prob"]) == pytest.approx(expected, abs=1e-4)


def test_finished_work_is_not_done_again(finished, table, capsys):
    before = stamps(finished)
    command = ["compare", "--data", str(table), "--models", "maf", "ffjord", "--steps", "12"]
    assert cli.main([*command, "--jobs", "1", "--out", str(finished)]) == 0
    assert stamps(finished) == before
    assert cli.main(["report", str(finished)]) == 0
    assert "Gaussian" in capsys.readouterr().out
    assert stamps(finished) == before


@pytest.mark.parametrize(
    ("comparison", "timed", "depths"),
    [("likelihood", False, {"5"}), ("sampling", True, {"5"}), ("depth", True, {"2", "5"})],
)
def test_each_comparison_alone(comparison, timed, depths, table, tmp_path):
    out = tmp_path / "out"
    assert cli.main([comparison, "--data", str(table), "--models", "maf", "--steps", "5",
                     "--out", str(out), "--jobs", "2"]) == 0  # fmt: skip
    rows = [row for row in results(out) if row["model"] == "maf"]
    assert {row["depth"] for row in rows} == depths
    assert {bool(row["sample_ms_per_1000"]) for row in rows} == {timed}


def test_depths_seeds_and_budget(table, tmp_path):
    out = tmp_path / "out"
    assert cli.main(["likelihood", "--data", str(table), "--models", "nice", "--depths", "2", "3",
                     "--seeds", "0", "1", "--budget", "0.2", "--out", str(out)]) == 0  # fmt: skip
    rows = [row for row in results(out) if row["model"] == "nice"]
    assert [(row["depth"], row["seed"]) for row in rows] == [("3", "0"), ("3", "1")]
    assert rows[0]["test_log_prob"] != rows[1]["test_log_prob"]
    assert all(0.2 <= float(row["train_seconds"]) < 10 for row in rows)


def test_a_failing_cell_is_a_row_and_stops_nothing(table, tmp_path, monkeypatch, capsys):
    def broken(features, depth):
        raise MemoryError("no memory\nleft")

    model = models.MODELS["maf"]
    monkeypatch.setitem(
        models.MODELS, "maf", models.Model(**{**vars(model), "core": broken, "depths": (2,)})
    )
    out = tmp_path / "out"
    assert cli.main(["compare", "--data", str(table), "--models", "maf", "nice", "--steps", "5",
                     "--jobs", "1", "--out", str(out)]) == 1  # fmt: skip
    rows = {row["model"]: row for row in results(out)}
    assert rows["maf"]["status"] == "failed"
    assert rows["maf"]["error"] == "MemoryError: no memory left"
    assert rows["nice"]["status"] == "ok"
    assert "failed" in capsys.readouterr().out


def bad_files(folder: Path) -> dict[str, tuple[str, str]]:
    rows = np.random.default_rng(0).normal(size=(40, 3))
    lines = [",".join(f"{v:.3f}" for v in row) for row in rows]
    contents = {
        "text.csv": ["a,b,c", *lines[:5], "1.0,red,2.0", *lines[5:]],
        "nan.csv": ["a,b,c", *lines[:5], "1.0,nan,2.0", *lines[5:]],
        "constant.csv": ["a,b,c", *(line.rsplit(",", 1)[0] + ",7.0" for line in lines)],
        "empty.csv": ["a,b,c"],
    }
    for name, content in contents.items():
        (folder / name).write_text("\n".join(content) + "\n")
    return {
        "text.csv": ("text.csv", "red"),
        "nan.csv": ("nan.csv", "b"),
        "constant.csv": ("constant.csv", "c"),
        "empty.csv": ("empty.csv", "row"),
        "missing.csv": ("missing.csv", "not"),
    }


@pytest.mark.parametrize("name", ["text", "nan", "constant", "empty", "missing"])
def test_a_bad_file_is_one_line_and_status_2(name, tmp_path, capsys):
    path = tmp_path / f"{name}.csv"
    words = bad_files(tmp_path)[path.name]
    refused(["compare", "--data", str(path), "--out", str(tmp_path / "out")], words, capsys)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--models", "mfa"], ("'mfa'", "maf")),
        (["--data", "pinwheal"], ("'pinwheal'", "pinwheel")),
        (["--steps", "0"], ("--steps must be positive",)),
        (["--steps", "many"], ("--steps", "many")),
        (["--budget", "-1"], ("--budget must be positive",)),
        (["--depths", "0"], ("depths",)),
        (["--seeds", "-1"], ("--seeds",)),
        (["--frobnicate"], ("--frobnicate",)),
    ],
)
def test_a_bad_option_is_one_line_and_status_2(arguments, words, tmp_path, capsys):
    refused(["compare", *arguments, "--out", str(tmp_path / "out")], words, capsys)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("arguments", [[], ["compair"], ["report", "/nonexistent/place"]])
def test_other_bad_commands(arguments, capsys):
    refused(arguments, (), capsys)


def refused(arguments, words, capsys) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    error = capsys.readouterr().err
    assert caught.value.code == 2
    assert error.startswith("cflows: ")
    assert error.count("\n") == 1
    for word in words:
        assert word in error


def test_out_that_is_a_file(table, tmp_path, capsys):
    (tmp_path / "out").write_text("")
    refused(["compare", "--data", str(table), "--out", str(tmp_path / "out")], ("out",), capsys)


def test_data_list(capsys):
    assert cli.main(["data", "list"]) == 0
    text = capsys.readouterr().out
    assert "pinwheel" in text
    assert "patches4" in text


def test_a_killed_run_goes_on_where_it_stood(table, tmp_path):
    """kill -9 in the middle of a cell: the same command ends with what a whole run has."""
    command = [sys.executable, "-m", "baselines.harness", "likelihood", "--data", str(table),
               "--models", *DISCRETE, "--steps", "400", "--jobs", "1"]  # fmt: skip
    whole, out = tmp_path / "whole", tmp_path / "killed"
    subprocess.run([*command, "--out", str(whole)], check=True, capture_output=True)
    process = subprocess.Popen(
        [*command, "--out", str(out)], stdout=subprocess.DEVNULL, start_new_session=True
    )
    while not (found := list(out.glob("cells/*/checkpoint.pt"))):
        assert process.poll() is None, "ended before it wrote a checkpoint"
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    cell = found[0].parent
    assert not (cell / "result.json").exists(), "the kill came too late to show anything"
    before = found[0].stat().st_mtime_ns
    subprocess.run([*command, "--out", str(out)], check=True, capture_output=True)
    history = (cell / "history.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in history] == list(range(20, 401, 20))
    assert found[0].stat().st_mtime_ns > before
    timing = {"train_seconds", "peak_memory_mb"}
    expected, got = (
        [{k: v for k, v in row.items() if k not in timing} for row in results(place)]
        for place in (whole, out)
    )
    assert got == expected


def test_a_killed_worker_is_a_row(table, tmp_path, monkeypatch):
    plan = runner.Plan("likelihood", [str(table)], ["maf", "nice"], [0], [2], 5, None, False,
                       "cpu", 2, tmp_path / "out", "test")  # fmt: skip
    monkeypatch.setenv("CFLOWS_TEST_KILL", "maf")
    monkeypatch.setattr(cells, "run", _run_or_die)
    assert runner.execute(plan) == 1
    rows = {row["model"]: row for row in results(plan.out)}
    assert rows["maf"]["status"] == "failed"
    assert "killed" in rows["maf"]["error"]
    assert rows["nice"]["status"] == "ok"


_real_run = cells.run


def _run_or_die(cell: Cell, out: Path):
    if cell.model == os.environ.get("CFLOWS_TEST_KILL"):
        os.kill(os.getpid(), signal.SIGKILL)
    return _real_run(cell, out)


def test_keys_are_readable_and_tell_cells_apart():
    first = Cell("my data.csv", "/a/my data.csv", "ab", "maf", 2, 0, 100, None, 1e-3)
    assert first.key.startswith("my-data-csv-maf-2-seed0-")
    assert Cell(**{**vars(first), "source": "/b/my data.csv"}).key == first.key
    for name, value in (("checksum", "ac"), ("depth", 3), ("seed", 1), ("steps", 101),
                        ("seconds", 1.0), ("learning_rate", 1.0)):  # fmt: skip
        assert Cell(**{**vars(first), name: value}).key != first.key
