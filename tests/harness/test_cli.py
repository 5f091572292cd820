"""The ``cflows`` command, on small real input."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import numpy as np
import pytest
from command_line import refused, run

import cflows
from baselines.harness.executors.process_pool import Killed
from baselines.harness.experiment import cells
from baselines.harness.experiment import run as runner
from baselines.harness.experiment.cell import Cell
from baselines.models import builtin, registry
from baselines.models.model import Model

COMPARE = "compare --models maf ffjord --steps 12 --jobs 1 --data"


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
    assert run(COMPARE, table, "--out", out) == 0
    return out


def test_compare_on_a_users_file(finished):
    rows = results(finished)
    assert [(r["model"], r["depth"]) for r in rows] == [
        ("gaussian", ""),
        ("gaussianised", ""),
        ("maf", "2"),
        ("maf", "5"),
        ("ffjord", "1"),
        ("ffjord", "2"),
    ]
    assert {r["dataset"] for r in rows} == {"mine.csv"}
    for row in rows:
        assert row["status"] == "ok"
        assert float(row["test_log_prob_2se"]) > 0
        assert float(row["density_ms_per_1000"]) > 0
        assert bool(row["solver_gap"]) == (row["model"] == "ffjord")
        assert float(row["peak_memory_mb"]) >= 0
        # A tuned solver has numbers of its own for each direction.
        assert float(row["round_trip_error"]) < (0.2 if row["solver_gap"] else 1e-2)
    assert [int(r["nfe_density"]) for r in rows[:4]] == [0, 0, 2, 5]
    assert [int(r["nfe_sample"]) for r in rows[:4]] == [0, 0, 2, 5]
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
    assert run(COMPARE, table, "--out", finished) == 0
    assert stamps(finished) == before
    assert run("report", finished) == 0
    assert "Gaussian" in capsys.readouterr().out
    assert stamps(finished) == before


@pytest.mark.parametrize(
    ("comparison", "timed", "depths"),
    [("likelihood", False, {"5"}), ("sampling", True, {"5"}), ("depth", True, {"2", "5"})],
)
def test_each_comparison_alone(comparison, timed, depths, table, tmp_path):
    out = tmp_path / "out"
    line = f"{comparison} --models maf --steps 5 --seeds 0 --jobs 2 --data"
    assert run(line, table, "--out", out) == 0
    rows = [row for row in results(out) if row["model"] == "maf"]
    assert {row["depth"] for row in rows} == depths
    assert {bool(row["sample_ms_per_1000"]) for row in rows} == {timed}


def test_depths_seeds_and_budget(table, tmp_path):
    out = tmp_path / "out"
    line = "likelihood --models nice --depths 2 3 --seeds 0 1 --budget 1 --data"
    assert run(line, table, "--out", out) == 0
    rows = [row for row in results(out) if row["model"] == "nice"]
    assert [(row["depth"], row["seed"]) for row in rows] == [("3", "0"), ("3", "1")]
    # The likelihoods may agree: on a slow machine the best state of a second can be the start.
    histories = [p.read_text().splitlines() for p in out.glob("cells/*nice*/history.jsonl")]
    assert len({json.loads(lines[-1])["loss"] for lines in histories}) == 2
    assert all(1 <= float(row["train_seconds"]) < 10 for row in rows)


def test_a_failing_cell_is_a_row_and_stops_nothing(table, tmp_path, monkeypatch, capsys):
    def broken(features, depth):
        raise MemoryError("no memory\nleft")

    model = builtin.MODELS["maf"]
    monkeypatch.setitem(
        builtin.MODELS, "maf", Model(**{**vars(model), "core": broken, "depths": (2,)})
    )
    out = tmp_path / "out"
    line = "compare --models maf nice --steps 5 --jobs 1 --data"
    assert run(line, table, "--out", out) == 1
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
    refused(capsys, "compare --data", path, "--out", tmp_path / "out", words=words)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--models", "mfa"], ("'mfa'", "maf")),
        (["--data", "pinwheal"], ("'pinwheal'", "pinwheel")),
        (["--steps", "0"], ("--steps must be positive",)),
        (["--steps", "many"], ("--steps", "many")),
        (["--budget", "-1"], ("--budget must be positive",)),
        (["--budget", "nan"], ("--budget must be", "finite", "nan")),
        (["--budget", "inf"], ("--budget must be", "finite", "inf")),
        (["--depths", "0"], ("depths",)),
        (["--seeds", "-1"], ("--seeds",)),
        (["--seeds", "0", str(2**63)], ("--seeds", "2**63 - 1")),
        (["--frobnicate"], ("--frobnicate",)),
    ],
)
def test_a_bad_option_is_one_line_and_status_2(arguments, words, tmp_path, capsys):
    refused(capsys, "compare", *arguments, "--out", tmp_path / "out", words=words)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("line", ["", "compair", "report /nonexistent/place"])
def test_other_bad_commands(line, capsys):
    refused(capsys, line)


def test_out_that_is_a_file(table, tmp_path, capsys):
    (tmp_path / "out").write_text("")
    refused(capsys, "compare --data", table, "--out", tmp_path / "out", words="out")


def test_the_version(capsys):
    with pytest.raises(SystemExit) as caught:
        run("--version")
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"cflows {cflows.__version__}\n"


def test_data_list(capsys):
    assert run("data list") == 0
    text = capsys.readouterr().out
    assert "pinwheel" in text
    assert "patches4" in text


def test_a_killed_run_goes_on_where_it_stood(table, tmp_path):
    """kill -9 in the middle of a cell: the same command ends with what a whole run has."""
    line = "likelihood --models maf realnvp --steps 400 --seeds 0 --jobs 1 --data"
    command = [sys.executable, "-m", "baselines.harness", *line.split(), str(table)]
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
    early = [0, 1, 2, 3, 5, 7, 10]  # few rows are validated early, too
    assert [json.loads(line)["step"] for line in history] == [*early, *range(20, 401, 20)]
    assert found[0].stat().st_mtime_ns > before
    timing = {"train_seconds", "peak_memory_mb"}
    expected, got = (
        [{k: v for k, v in row.items() if k not in timing} for row in results(place)]
        for place in (whole, out)
    )
    assert got == expected


def plan_of(data: list[str], out: Path, models: Sequence[str] = ("maf",)) -> runner.Plan:
    """Two processes that train for five steps."""
    return runner.Plan(
        comparison="likelihood",
        data=data,
        models=models,
        seeds=[0],
        depths=[2],
        steps=5,
        budget=None,
        quick=False,
        device="cpu",
        jobs=2,
        out=out,
        command="test",
    )


def test_a_killed_worker_is_a_row(table, tmp_path, monkeypatch):
    plan = plan_of([str(table)], tmp_path / "out", models=["maf", "nice"])
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


@pytest.mark.parametrize(
    ("death", "says", "not_said"),
    [
        (Killed(-9), "was killed (exit code -9; out of memory?)", "__main__"),
        (Killed(-9, started=False), "out of memory?", "__main__"),
        (Killed(-11), "ended with exit code -11", "memory"),
        (Killed(3), "ended with exit code 3", "memory"),
        (
            Killed(1, started=False),
            'before it began: a script must call this below `if __name__ == "__main__":`',
            "memory",
        ),
    ],
)
def test_the_end_of_a_worker_is_told_as_it_was(
    death, says, not_said, table, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(
        runner, "side_by_side", lambda work, items, jobs: ((i, death) for i in items)
    )
    plan = plan_of([str(table)], tmp_path / "out")
    assert runner.execute(plan) == 1
    for row in results(plan.out):
        assert row["status"] == "failed"
        assert says in row["error"]
        assert not_said not in row["error"]


def test_a_model_that_cannot_be_timed_is_a_row_and_stops_nothing(
    table, tmp_path, monkeypatch, capsys
):
    measure = runner.timing.measure

    def broken(flow, *given):
        if sum(p.numel() for p in flow.parameters()):
            raise RuntimeError("no\nsolution")
        return measure(flow, *given)

    monkeypatch.setattr(runner.timing, "measure", broken)
    out = tmp_path / "out"
    command = "sampling --models nice --steps 5 --seeds 0 --jobs 1 --data", table, "--out", out
    assert run(*command) == 1
    gaussian, gaussianised, nice = results(out)
    assert [gaussian["status"], gaussianised["status"], nice["status"]] == ["ok", "ok", "failed"]
    assert nice["error"] == "timing: RuntimeError: no solution"
    assert float(gaussian["sample_ms_per_1000"]) > 0
    assert "failed: timing: " in capsys.readouterr().out
    monkeypatch.undo()
    assert run(*command) == 0
    assert {row["status"] for row in results(out)} == {"ok"}


def test_rows_that_float32_cannot_hold_are_refused(tmp_path, capsys):
    rows = np.random.default_rng(0).normal(size=(100, 2)) * (1.0, 300.0) + (0.0, 1.7e9)
    path = tmp_path / "clock.csv"
    np.savetxt(path, rows, delimiter=",", header="a,time", comments="")
    command = "compare --data", path, "--out", tmp_path / "out"
    refused(capsys, *command, words=("clock.csv", "'time'", "subtract a constant"))
    np.savetxt(path, rows[:, :1] * [1, 2], delimiter=",", header="a,b", comments="")
    refused(capsys, *command, words=("clock.csv", "drop one"))
    assert not (tmp_path / "out").exists()


def test_files_of_one_name_are_called_the_same_in_either_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for i, folder in enumerate(("a", "b", "c")):
        (tmp_path / folder).mkdir()
        name = "other.npy" if folder == "c" else "rows.npy"
        np.save(tmp_path / folder / name, np.random.default_rng(i).normal(size=(50, 2)))
    given = ["a/rows.npy", "b/rows.npy", "c/other.npy", "./c/other.npy"]

    def keys(data):
        plan = plan_of(data, tmp_path / "out")
        sets = runner._load(data)
        return set(sets), {cell.key for cell in runner.plan_cells(plan, sets)}

    assert keys(given) == keys(given[::-1])
    assert keys(given)[0] == {"a/rows.npy", "b/rows.npy", "other.npy"}
    assert keys(given[:1])[0] == {"rows.npy"}


def test_a_terminal_without_the_signs_gets_question_marks(finished, monkeypatch):
    narrow = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", narrow)
    assert run("report", finished) == 0
    narrow.flush()
    assert b" ? 2 s.e." in narrow.buffer.getvalue()


def test_the_manifest_names_versions_and_solvers_without_an_install(
    table, tmp_path, monkeypatch, capsys
):
    def not_installed(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(runner, "version", not_installed)
    monkeypatch.setattr(cells, "run", lambda cell, out: cells.fail(cell, out, "not run"))
    out = tmp_path / "out"
    assert run("likelihood --models ffjord maf --jobs 1 --data", table, "--out", out) == 1
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["versions"]["cflows"] == cflows.__version__
    assert manifest["versions"]["numpy"] == np.__version__
    assert manifest["versions"]["torchdiffeq"] == "unknown"
    assert manifest["solver"] == {"ffjord": registry.solvers("ffjord")}
