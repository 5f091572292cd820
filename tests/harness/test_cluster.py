"""Cells as jobs, by submitit's local and debug executors."""

from __future__ import annotations

import builtins
import csv
from pathlib import Path

import numpy as np
import pytest

from baselines.harness import cli
from baselines.harness.executors import slurm
from baselines.harness.executors.slurm import ClusterError, Lost, submitted
from baselines.harness.experiment import plan as plans

TIMING = {"train_seconds", "peak_memory_mb"}


def results(out: Path) -> list[dict[str, str]]:
    with open(out / "results.csv", newline="") as file:
        return [
            {name: value for name, value in row.items() if name not in TIMING}
            for row in csv.DictReader(file)
        ]


@pytest.fixture(scope="module")
def command(tmp_path_factory) -> list[str]:
    pytest.importorskip("submitit")
    table = tmp_path_factory.mktemp("rows") / "rows.npy"
    np.save(table, np.random.default_rng(0).normal(size=(300, 3)))
    return ["likelihood", "--data", str(table), "--models", "nice", "--depths", "2",
            "--seeds", "0", "1", "2", "3", "4", "--steps", "4",
            "--preprocess", "whiten"]  # fmt: skip


@pytest.fixture(scope="module")
def plain(command, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("plain") / "out"
    assert cli.main([*command, "--jobs", "1", "--out", str(out)]) == 0
    return out


# submitit's debug executor leaves its log files open.
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.parametrize("executor", ["submitit-local", "submitit-debug"])
def test_six_cells_as_jobs_are_what_they_are_with_jobs(
    executor, command, plain, tmp_path, monkeypatch
):
    out = tmp_path / "out"
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    assert cli.main([*command, "--executor", executor, "--jobs", "3", "--out", str(out)]) == 0
    assert results(out) == results(plain)
    assert len(results(out)) == 7  # one of a closed form beside the Gaussian


def test_a_job_that_ends_without_a_result_is_lost(tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    found = dict(submitted(len, ["abc", 7], "submitit-local", tmp_path / "jobs", jobs=2))
    assert found["abc"] == 3
    assert isinstance(found[7], Lost)
    assert "ended without a result" in found[7].reason
    assert "has no len()" in found[7].reason
    assert "\n" not in found[7].reason


def test_a_stopped_job_is_queued_again_with_its_item():
    pytest.importorskip("submitit")
    again = slurm._Job(len, "abc").checkpoint()
    assert again.function() == 3


def test_without_submitit_or_slurm_one_line_says_so(tmp_path, monkeypatch, capsys):
    real = builtins.__import__

    def missing(name, *arguments, **settings):
        if name == "submitit":
            raise ModuleNotFoundError("No module named 'submitit'", name="submitit")
        return real(name, *arguments, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(builtins, "__import__", missing)
        with pytest.raises(SystemExit) as caught:
            cli.main(["compare", "--executor", "slurm", "--out", str(tmp_path / "out")])
    error = capsys.readouterr().err
    assert caught.value.code == 2
    assert "pip install 'cflows[slurm]'" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ClusterError, match="srun"):
        slurm.check("slurm")


def test_settings_of_slurm(monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(cli_runner(), "execute", lambda plan: asked.append(plan) or 0)
    assert cli.main(["compare", "--executor", "slurm", "--slurm", "partition=gpu", "time=60"]) == 0
    assert asked[0].cluster == {"slurm_partition": "gpu", "slurm_time": 60}
    assert asked[0].jobs == 0
    assert isinstance(asked[0], plans.Plan)
    for wrong in (["--slurm", "time=60"], ["--executor", "slurm", "--slurm", "gpu"]):
        with pytest.raises(SystemExit):
            cli.main(["compare", *wrong])
    assert "KEY=VALUE" in capsys.readouterr().err


def cli_runner():
    from baselines.harness.experiment import run as runner

    return runner
