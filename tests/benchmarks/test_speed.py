"""The scripts that track speed: what they count, and that they run."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import comparisons
import counts
from perf.base import checked


def test_a_count_that_differs_is_named():
    measured = {"a": 1, "b": 2, "c": "SolverError: no"}
    lines = counts.differences(measured, {"a": 1, "b": 3, "d": 4})
    assert lines == [
        "b: committed 3, now 2",
        "c: committed not committed, now SolverError: no",
        "d: committed 4, now not counted",
    ]


def test_committed_counts_are_this_codes():
    committed = json.loads(counts.COMMITTED.read_text(encoding="utf-8"))
    measured = counts.measured("TrainingSolve.draws (hutchinson")
    assert measured
    assert measured == {name: committed[name] for name in measured}


def test_a_resampled_probe_changes_the_counts_by_name(monkeypatch):
    from perf import counts as suite

    from cflows.continuous import ode_bijector
    from cflows.continuous.divergence import draw_probes

    suite._trained.cache_clear()
    slope = ode_bijector.slope
    monkeypatch.setattr(
        ode_bijector,
        "slope",
        lambda field, x, traced, probes, *rest: slope(field, x, traced, draw_probes(x), *rest),
    )
    committed = json.loads(counts.COMMITTED.read_text(encoding="utf-8"))
    part = "TrainingSolve.draws (hutchinson, backprop)"
    measured = counts.measured(part)
    suite._trained.cache_clear()
    lines = counts.differences(measured, {part: committed[part]})
    assert len(lines) == 1
    assert lines[0].startswith(part)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_count_that_is_no_number_raises(value):
    with pytest.raises(ArithmeticError, match="nothing to compare"):
        checked(value)


@pytest.mark.parametrize("command", ["likelihood", "sampling", "depth"])
def test_each_comparison_has_help(command, capsys):
    with pytest.raises(SystemExit) as caught:
        comparisons.main([command, "--help"])
    assert caught.value.code == 0
    assert "--quick" in capsys.readouterr().out


def test_imports_leave_heavy_packages_alone():
    code = (
        "import sys, cflows, baselines\n"
        "heavy = 'torchdiffeq', 'scipy', 'matplotlib', 'sklearn', 'h5py', 'PIL'\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
