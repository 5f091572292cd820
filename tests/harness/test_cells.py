"""One cell at a time: its key, what it touches, and how it fails."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from baselines.harness import data
from baselines.harness.experiment import cells
from baselines.harness.experiment.cell import Cell, rows_of
from baselines.harness.metrics import likelihood, timing
from baselines.harness.plots import likelihood_cost
from baselines.harness.plots.style import encode
from baselines.harness.results.aggregate import Group
from baselines.harness.results.records import Row
from baselines.models import builtin, registry
from baselines.models.model import ClosedForm
from cflows import (
    FFJORD,
    Adaptive,
    FixedGrid,
    Flow,
    Lagged,
    Margins,
    SolverError,
    Whitening,
    gaussianise,
    whiten,
)


@pytest.fixture
def cell(tmp_path: Path) -> Cell:
    """The Gaussian of a small file."""
    path = tmp_path / "rows.npy"
    np.save(path, np.random.default_rng(0).normal(size=(200, 3)))
    return Cell("rows.npy", str(path), data.load(path).checksum, "gaussian", None, 0, 0, None, 0.0)


def test_keys_are_readable_and_tell_cells_apart():
    first = Cell("my data.csv", "/a/my data.csv", "ab", "maf", 2, 0, 100, None, 1e-3)
    assert first.key.startswith("my-data-csv-maf-2-seed0-")
    assert dataclasses.replace(first, source="/b/my data.csv").key == first.key
    for name, value in (("checksum", "ac"), ("depth", 3), ("seed", 1), ("steps", 101),
                        ("seconds", 1.0), ("learning_rate", 1.0), ("configuration", "c"),
                        ("batch_size", 7), ("validation_rows", 7), ("validations", 7),
                        ("warmup", 7), ("version", "0.0.0"), ("quick", True)):  # fmt: skip
        assert dataclasses.replace(first, **{name: value}).key != first.key


def with_core(monkeypatch, core) -> None:
    changed = dataclasses.replace(builtin.MODELS["ffjord"], core=core)
    monkeypatch.setitem(builtin.MODELS, "ffjord", changed)


def test_a_models_configuration_changes_with_its_preset(monkeypatch):
    def hashes() -> list[str]:
        return [registry.configuration("ffjord", *sizes) for sizes in ((2, 1), (2, 2), (3, 1))]

    with_core(monkeypatch, lambda d, k: FFJORD(d, blocks=k, hidden=(64, 64)))
    before, state = hashes(), torch.get_rng_state()
    assert len(set(before)) == 3
    assert hashes() == before
    assert torch.equal(torch.get_rng_state(), state)
    with_core(monkeypatch, lambda d, k: FFJORD(d, blocks=k, hidden=(64, 63)))
    assert not set(hashes()) & set(before)
    # A default that the preset does not name counts too: here one of FFJORD's own.
    with_core(monkeypatch, lambda d, k: FFJORD(d, blocks=k, hidden=(64, 64)))
    assert hashes() == before
    defaults = {**FFJORD.__init__.__wrapped__.__kwdefaults__, "gradient": "checkpoint"}
    monkeypatch.setattr(FFJORD.__init__.__wrapped__, "__kwdefaults__", defaults)
    assert not set(hashes()) & set(before)


def test_models_without_a_configuration(monkeypatch):
    assert registry.configuration("gaussian", 2, None) == ""
    with_core(monkeypatch, lambda d, k: FFJORD(d, hidden=()))
    assert registry.configuration("ffjord", 2, 1) == ""
    assert registry.solvers("ffjord") == {}


def test_solvers_are_those_of_the_model(monkeypatch):
    assert registry.solvers("ffjord") == {
        "training": repr(Lagged("rk4", 1e-2)),
        "evaluation": repr(Adaptive("dopri5", 1e-5, 1e-5)),
    }
    grid = FixedGrid("midpoint", 3)
    with_core(monkeypatch, lambda d, k: FFJORD(d, training_solver=grid))
    assert registry.solvers("ffjord")["training"] == repr(grid)
    assert registry.solvers("maf") == {}


def test_matching_stops_early_by_the_likelihood_of_validation_rows(cell, tmp_path, monkeypatch):
    name = "ffjord-matching"
    before = registry.configuration(name, 3, 1)
    grid = FixedGrid("midpoint", 2)
    small = dataclasses.replace(
        builtin.MODELS[name],
        core=lambda d, k: FFJORD(d, hidden=(8,), training_solver=grid, evaluation_solver=grid),
        patience=2,
    )
    monkeypatch.setitem(builtin.MODELS, name, small)
    assert registry.configuration(name, 3, 1) != before
    few = dataclasses.replace(
        cell, model=name, depth=1, steps=60, learning_rate=0.3, preprocess="whiten"
    )
    result = cells.run(few, tmp_path / "out")
    assert result["status"] == "ok", result["error"]
    assert result["steps"] < 60


def test_a_file_that_changed_after_the_plan_fails_the_cell(cell, tmp_path):
    np.save(cell.source, np.random.default_rng(1).normal(size=(200, 3)))
    result = cells.run(cell, tmp_path / "out")
    assert result["status"] == "failed"
    assert "has changed since the command was planned" in result["error"]


def test_the_chain_of_closed_forms_is_a_model(cell, tmp_path, monkeypatch):
    """Its own maps alone, which hold what is counted, saved and loaded; refused in one line."""

    def refuse(train, validation):
        raise ValueError("too few rows")

    rows = np.random.default_rng(0).lognormal(size=(600, 3))
    np.save(cell.source, rows)
    chain = dataclasses.replace(
        cell, model="gaussianised", checksum=data.load(cell.source).checksum
    )
    result = cells.run(chain, tmp_path)
    train, validation, test = chain.rows()
    flow = Flow(gaussianise(train, validation, gain=0.005)).eval()
    assert result["steps"] == 0
    assert result["train_seconds"] > 0
    knots = sum(part.places.numel() for part in flow.modules() if isinstance(part, Margins))
    whitenings = sum(isinstance(part, Whitening) for part in flow.modules())
    assert result["parameters"] == 3 * knots + 9 * whitenings
    kept = cells.flow_of(chain, tmp_path).log_prob(test)
    assert torch.equal(kept, flow.log_prob(test))
    monkeypatch.setattr(cells, "CLOSED_FORM", {"gaussianised": ClosedForm("", refuse)})
    assert cells.run(chain, tmp_path / "refused")["error"] == "ValueError: too few rows"


def test_a_file_that_changed_is_not_timed(cell, tmp_path):
    assert cells.run(cell, tmp_path / "out")["status"] == "ok"
    np.save(cell.source, np.random.default_rng(1).normal(size=(200, 3)))
    rows_of.cache_clear()
    result = cells.cost_of(cell, tmp_path / "out")
    assert result["status"] == "failed"
    assert result["error"].startswith("timing: DataError: ")
    assert cells.finished(cell, tmp_path / "out") is None


def test_a_processor_without_timings_is_timed_and_a_known_one_is_not(cell, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(timing, "measure", lambda *_: {"n": calls.append(1) or len(calls)})
    cells.run(cell, tmp_path / "out")
    for name, timings in (("slow", 1), ("slow", 1), ("fast", 2), ("fast", 2)):
        monkeypatch.setattr(timing, "processor", lambda _, name=name: name)
        assert cells.cost_of(cell, tmp_path / "out") == {"n": timings, "processor": name}
    place = cell.folder(tmp_path / "out") / "cost.json"
    assert json.loads(place.read_text())["processor"] == "fast"
    place.write_text("{")
    assert cells.cost_of(cell, tmp_path / "out")["n"] == 3


def test_a_cell_on_the_cpu_leaves_the_gpu_alone(cell, tmp_path, monkeypatch):
    def touched(*_):
        raise AssertionError("a context was made on the GPU")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name in ("synchronize", "reset_peak_memory_stats", "max_memory_allocated"):
        monkeypatch.setattr(torch.cuda, name, touched)
    assert cells.run(cell, tmp_path / "out")["status"] == "ok"
    assert "density_ms_per_1000" in cells.cost_of(cell, tmp_path / "out")


def test_a_solve_that_fails_is_the_cells_reason(cell, tmp_path, monkeypatch):
    def stiff(*_):
        raise SolverError("20000 evaluations at t = 0.3")

    monkeypatch.setattr(likelihood, "log_likelihood", stiff)
    result = cells.run(cell, tmp_path / "out")
    assert result == {"status": "failed", "error": "SolverError: 20000 evaluations at t = 0.3"}


PLANE = torch.randn(300, 2, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "test",
    [
        PLANE,
        PLANE * torch.tensor([1.0, 0.0]),
        PLANE * 0 + torch.tensor([1e5, -3.0]),
        PLANE * torch.tensor([1e30, 1e-30]),
        PLANE * torch.tensor([1e-4, 1e4]),
        torch.full((300, 2), torch.inf),
    ],
    ids=["good", "zero", "one point", "wide", "high", "infinite"],
)
def test_a_picture_has_an_extent_and_can_be_drawn(test):
    """Warnings are errors here, matplotlib's own included."""
    scale = test.std(0).where((test.std(0) > 0) & test.isfinite().all(0), 1.0)
    flow = Flow(whiten(PLANE * scale)).eval()
    parts = likelihood.picture(flow, test, samples=50)
    x0, x1, y0, y1 = parts["extent"]
    assert np.isfinite(parts["extent"]).all()
    assert x0 < x1
    assert y0 < y1
    for low, high, column in ((x0, x1, test[:, 0]), (y0, y1, test[:, 1])):
        if column.isfinite().all():
            assert low < column.median() < high
    row = Row(test_log_prob=1.0, test_log_prob_2se=0.1)
    arrays = {name: np.asarray(value, np.float64) for name, value in parts.items()}
    figure = likelihood_cost.densities([(Group("d", "maf", 2, rows=[row]), arrays)], arrays["data"])
    encode(figure)


def test_the_round_trip_error_is_finite_where_rows_have_no_spread():
    test = PLANE * torch.tensor([1.0, 0.0])
    scores, _ = likelihood.evaluate(Flow(whiten(PLANE)).eval(), test)
    assert scores["round_trip_error"] < 1e-5
