"""Two-sample distances: right on two halves of one sample, large where the samples differ."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
import torch

from baselines.harness.metrics import sample_quality
from baselines.harness.report.tables import quality_table
from baselines.harness.results.aggregate import Group
from baselines.harness.results.records import Row
from cflows import Affine, Flow, whiten

ROWS = 500
NAMES = tuple(sample_quality.Distances.__annotations__)


def halves(features: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    rows = torch.randn(2 * ROWS, features, generator=torch.Generator().manual_seed(seed)).double()
    return rows[:ROWS], rows[ROWS:]


def ring(rows: int) -> torch.Tensor:
    z = torch.randn(rows, 2, generator=torch.Generator().manual_seed(1))
    return z / z.norm(dim=1, keepdim=True) + 0.1 * z.flip(1)


def test_the_nulls_are_right_on_two_halves_of_one_sample():
    """Each against what is known of it for one law, averaged over 12 samples."""
    found = [sample_quality.compare(*halves(3, seed), seed) for seed in range(12)]
    mean = {name: np.mean([values[name] for values in found]) for name in NAMES}
    # Unbiased: zero, within four standard errors of the 12.
    mmd = [values["mmd"] for values in found]
    assert abs(mean["mmd"]) < 4 * np.std(mmd, ddof=1) / math.sqrt(12)
    # A fair coin on 2N rows, twelve times.
    assert mean["c2st"] == pytest.approx(0.5, abs=4 * math.sqrt(0.25 / (2 * ROWS * 12)))
    # Kolmogorov's law: E sup = sqrt(pi / 2) log 2 / sqrt(n / 2), a little less for finite n.
    expected = math.sqrt(math.pi / 2) * math.log(2) / math.sqrt(ROWS / 2)
    assert mean["ks"] == pytest.approx(expected, rel=0.1)
    # Of order 1 / sqrt(n), for normal tails with a factor log log n.
    assert 0.5 / math.sqrt(ROWS) < mean["sw"] < 3 * math.sqrt(2 * math.log(math.log(ROWS)) / ROWS)


@pytest.mark.parametrize("features", [1, 4])
def test_a_perfect_model_is_no_farther_than_its_null(features):
    flow = Flow(Affine([0.0] * features, [1.0] * features))
    found = [
        sample_quality.evaluate(flow, torch.cat(halves(features, s)).float(), s) for s in range(5)
    ]
    for name in NAMES:
        own, null = ([values[name + end] for values in found] for end in ("", "_null"))
        error = math.hypot(np.std(own, ddof=1), np.std(null, ddof=1)) / math.sqrt(5)
        assert abs(np.mean(own) - np.mean(null)) < 4 * error, name


@pytest.mark.parametrize(("shift", "scale"), [(0.3, 1.0), (0.0, 1.4)])
def test_another_place_or_width_is_told_apart_by_all_four(shift, scale):
    rows = torch.cat(halves(2, 0)).float()
    found = sample_quality.evaluate(Flow(Affine([shift] * 2, [scale] * 2)), rows)
    assert found["sw"] > 2 * found["sw_null"]
    assert found["ks"] > 2 * found["ks_null"]
    assert found["mmd"] > 0.004 > abs(found["mmd_null"])
    assert found["c2st"] > 0.54 > found["c2st_null"]


def test_a_gaussian_of_the_same_moments_is_no_ring():
    rows = ring(2000)
    found = sample_quality.evaluate(Flow(whiten(rows)), rows)
    assert found["c2st"] > 0.75
    assert found["sw"] > 3 * found["sw_null"]


def test_units_do_not_matter_and_a_seed_repeats_the_figures():
    rows = torch.cat(halves(2, 3)).float()
    flow, scaled = Flow(Affine([0.1] * 2, [1.0] * 2)), Flow(Affine([100.1] * 2, [1000.0] * 2))
    state = torch.get_rng_state()
    first = sample_quality.evaluate(flow, rows, 5)
    assert first == sample_quality.evaluate(flow, rows, 5) != sample_quality.evaluate(flow, rows, 6)
    assert torch.equal(state, torch.get_rng_state())
    other = sample_quality.evaluate(scaled, 1000 * rows + 0.1, 5)
    # 100.1 = 1000 * 0.1 + 0.1: the same model and rows in another unit
    assert other == pytest.approx(first, abs=2e-3)


def test_a_first_look_draws_and_compares_fewer_rows(monkeypatch):
    drawn, flow = [], Flow(Affine([0.0] * 2, [1.0] * 2))
    sample = flow.sample
    monkeypatch.setattr(flow, "sample", lambda n: drawn.append(n) or sample(n))
    rows = torch.randn(1200, 2)
    quick, full = (sample_quality.evaluate(flow, rows, quick=quick) for quick in (True, False))
    assert drawn == [500, 600]
    assert all(quick[name] != full[name] for name in quick)  # the nulls are kept apart too


def test_draws_that_are_not_finite_are_far_off():
    class Broken(Flow):
        def sample(self, sample_shape=(), context=None):
            x = super().sample(sample_shape, context)
            x[::2] = math.inf
            x[1::4] = math.nan
            return x

    found = sample_quality.evaluate(Broken(Affine([0.0], [1.0])), torch.cat(halves(1, 0)).float())
    assert found["sw"] > 1000
    assert found["ks"] > 0.4
    assert found["c2st"] > 0.7
    assert all(map(math.isfinite, found.values()))


def test_few_rows_tell_nothing_and_constant_columns_do_no_harm():
    assert sample_quality.evaluate(Flow(Affine([0.0], [1.0])), torch.randn(39, 1)) == {}
    rows = torch.cat(halves(2, 0)).float()
    rows[:, 1] = 3.0
    found = sample_quality.evaluate(Flow(Affine([0.0, 3.0], [1.0, 1e-9])), rows)
    assert all(map(math.isfinite, found.values()))
    with pytest.raises(ValueError, match="of one shape"):
        sample_quality.compare(rows, rows[:3])


def test_without_the_libraries_two_distances_are_left(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.stats", None)
    monkeypatch.setitem(sys.modules, "sklearn.exceptions", None)
    found = sample_quality.compare(*halves(2, 0))
    assert (found["ks"], found["c2st"]) == (None, None)
    assert min(found["sw"], abs(found["mmd"])) > 0


def test_the_table_puts_each_null_beside_its_figure():
    row = {name + end: value for name, value in zip(NAMES, (0.2, 0.01, 0.05, 0.6),
           strict=True) for end in ("", "_null")}  # fmt: skip
    rows = [Row(**{**row, "c2st": c2st}) for c2st in (0.6, 0.7)]
    found = [Group("d", "maf", 2, rows=rows), Group("d", "nice", 2, rows=[Row()])]
    table = quality_table(found)
    assert len(table.rows) == 1
    texts = dict(zip(table.header, (cell.text for cell in table.rows[0]), strict=True))
    assert texts["classifier accuracy (null)"] == "0.650 ± 0.071 s.d. (0.600)"
    assert texts["sliced Wasserstein (null)"] == "0.200 ± 0.000 s.d. (0.200)"
