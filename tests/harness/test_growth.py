"""Cost against rows, dimension and depth; the peak memory of a call; the steps of a solver."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from baselines import MAF
from baselines.harness import cli
from baselines.harness.experiment import cost_sweeps
from baselines.harness.metrics import depth, scaling, timing
from baselines.harness.metrics.memory import call_peak_mb
from baselines.harness.metrics.timing import Call, Limits
from baselines.harness.results import layout
from cflows import FFJORD, Affine, Flow

FEW = Limits(repeats=3, patience=0.0, longest=60.0)


def test_peak_memory_is_what_is_alive_at_once():
    x = torch.randn(1024, 256)  # one megabyte

    def work():
        one = x + 1
        two = one + 1  # 2 MB alive
        del one
        three = two.view(-1).mul_(2)  # a view, in place: nothing more
        return three[:5] + x[0, :5]  # a few bytes

    assert call_peak_mb(work, x.device) == pytest.approx(2.0, abs=0.01)
    assert call_peak_mb(lambda: x.view(-1), x.device) == 0.0
    assert call_peak_mb(lambda: (x + 1, x + 2, x + 3), x.device) == pytest.approx(3.0, abs=0.01)


def test_memory_grows_with_the_rows_and_evaluations_do_not():
    flow = MAF(3, layers=2, hidden=(8,)).eval()
    small, large = (timing.both(flow, torch.randn(rows, 3), FEW) for rows in (100, 1000))
    for one, other in zip(small, large, strict=True):
        assert set(one) == set(Call.__annotations__)
        assert other["memory_mb"] == pytest.approx(10 * one["memory_mb"], rel=0.3)
        assert one["nfe_call"] == other["nfe_call"] == 2
        assert other["nfe_row"] == 2 / 1000
        assert one["ms_q1"] <= one["ms"] <= one["ms_q3"]
        assert one["repeats"] == 3


def test_a_call_that_takes_long_is_made_once(monkeypatch):
    made = []
    flow = Flow(Affine([0.0], [1.0])).eval()
    monkeypatch.setattr(flow, "log_prob", lambda x: made.append(len(x)))
    density, _ = timing.both(flow, torch.randn(5, 1), Limits(longest=-1.0))
    assert (made, density["repeats"], density["memory_mb"]) == ([5], 1, None)


@pytest.mark.parametrize(("longest", "repeats"), [(60.0, 3), (-1.0, 1)])
def test_a_quick_timing_has_quartiles_where_it_was_repeated(longest, repeats, monkeypatch):
    monkeypatch.setitem(timing.LIMITS, True, Limits(3, longest=longest))
    cost = timing.measure(Flow(Affine([0.0], [1.0])).eval(), torch.randn(5, 1), quick=True)
    assert cost["repeats"] == repeats
    assert (cost["density_ms_quartiles"] is None) == (repeats == 1)
    assert (cost["sample_ms_quartiles"] is None) == (repeats == 1)


def test_the_sequential_way_costs_d_passes_and_the_setting_is_put_back():
    flow = MAF(6, layers=2, hidden=(8,)).eval()
    found = {(r["way"], r["what"], r["rows"]): r for r in scaling.by_rows(flow, torch.randn(7, 6))}
    assert {rows for _, _, rows in found} == {1, 100, 10_000}
    assert found["cached", "sample", 100]["nfe_call"] == 2
    assert found["sequential", "sample", 100]["nfe_call"] == 12
    assert found["sequential", "density", 100]["nfe_call"] == 2
    before = flow.evaluations
    flow.sample(1)
    assert flow.evaluations - before == 2


def test_a_sweep_by_dimension_and_what_it_leaves_out(monkeypatch):
    monkeypatch.setattr(scaling, "QUICK", {"features": (2, 4, 8), "depth": (1, 2)})
    found = scaling.sweep("features", ["maf", "nice"], True, "cpu")
    assert {r["size"] for r in found} == {2, 4, 8}
    nfe = [r["nfe_call"] for r in found if r.get("way") == "sequential" and r["what"] == "sample"]
    assert nfe == [4, 8, 16]
    assert scaling.slope([2, 4, 8], nfe) == pytest.approx(1.0)
    monkeypatch.setattr(scaling, "SECONDS", {True: -1.0})
    found = scaling.sweep("depth", ["ffjord-matching", "nice"], True, "cpu")
    notes = {(r["model"], r["size"]): r["note"] for r in found}
    assert notes["nice", 1] == "the time of the sweep was over"
    assert "leave the depth at 1" in notes["ffjord-matching", 2]


def test_a_sweep_calls_a_users_model_by_what_tables_call_it(tmp_path, monkeypatch):
    (tmp_path / "own.py").write_text(
        "from baselines import NICE\n\ndef mine(features, depth):\n"
        "    return NICE(features, layers=2 * depth, hidden=(4,))\n"
    )
    monkeypatch.setattr(scaling, "QUICK", {"features": (2, 4), "depth": (1, 2)})
    chosen = {"own.py:mine": f"{tmp_path}/own.py:mine", "nice": "nice"}
    cost_sweeps.measure("depth", [], tmp_path, chosen, quick=True, device="cpu", say=print)
    kept = json.loads((tmp_path / layout.sweep("depth")).read_text())
    assert {record["model"] for record in kept["records"]} == {"own.py:mine", "nice"}
    assert set(kept["key"]["models"]) == {"own.py:mine", "nice"}
    assert all("note" not in record for record in kept["records"])


def test_the_cost_of_depth_is_linear_by_what_it_evaluates():
    evaluations = []
    for layers in (1, 2, 4, 8):
        flow = MAF(3, layers=layers, hidden=(4,)).eval()
        evaluations.append([r["nfe_call"] for r in timing.both(flow, torch.randn(10, 3), FEW)])
    for way in zip(*evaluations, strict=True):
        assert scaling.slope([1, 2, 4, 8], way) == pytest.approx(1.0)


def test_a_slope_needs_three_sizes_and_heeds_the_least():
    assert scaling.slope([1, 2], [1, 2]) is None
    assert scaling.slope([1, 1, 2, 2], [1, 1, 2, 2]) is None
    assert scaling.slope([1, 4, 8, 16], [100, 4, 8, 16], 4) == pytest.approx(1.0)
    assert scaling.slope([1, 4, 8, 16], [0, 16, 64, 256]) == pytest.approx(2.0)


def test_records_are_made_once_for_a_key(tmp_path):
    place, made = tmp_path / "a.json", []

    def make():
        made.append(1)
        return [{"ms": 1.0}]

    for key in ({"a": 1}, {"a": 1}, {"a": 2}):
        assert scaling.kept_or_made(place, key, make) == [{"ms": 1.0}]
    assert len(made) == 2
    place.write_text("{")
    scaling.kept_or_made(place, {"a": 2}, make)
    assert len(made) == 3


def test_more_steps_of_the_solver_come_nearer_to_the_flow():
    torch.manual_seed(1)
    flow = FFJORD(2, hidden=(16,)).double().eval()  # in float32 rounding is what would be seen
    with torch.no_grad():
        for p in flow.parameters():
            p.normal_(0.0, 0.6)
    found = depth.solver_steps(flow, torch.randn(60, 2).double(), quick=True)
    assert [r["steps"] for r in found] == [1, 4, 16]
    assert [r["density"]["nfe_call"] for r in found] == [4, 16, 64]
    errors = [r["error_max"] for r in found]
    assert errors[0] > 10 * errors[1]
    assert errors[0] > 100 * errors[2]
    assert found[0]["round_trip_error"] > found[2]["round_trip_error"]


@pytest.mark.parametrize(("comparison", "file"), [("sampling", "sizes"), ("depth", "solver_steps")])
def test_a_comparison_measures_after_its_cells_and_once(comparison, file, tmp_path, monkeypatch):
    monkeypatch.setattr(scaling, "QUICK", {"features": (2, 4), "depth": (1, 2)})
    monkeypatch.setattr(scaling, "ROWS", {True: (1, 10)})
    np.save(tmp_path / "few.npy", np.random.default_rng(0).normal(size=(300, 2)))
    command = [comparison, "--data", str(tmp_path / "few.npy"), "--models", "ffjord",
               "--depths", "1", "--steps", "2", "--quick", "--jobs", "1",
               "--out", str(tmp_path / "out")]  # fmt: skip
    assert cli.main(command) == 0
    (kept,) = (tmp_path / "out" / "cells").glob(f"few-npy-ffjord-*/{file}.json")
    assert json.loads(kept.read_text())["records"]
    assert len(list((tmp_path / "out").glob("growth_*.json"))) == 1
    before = kept.stat().st_mtime_ns
    assert cli.main(command) == 0
    assert kept.stat().st_mtime_ns == before
