"""Two models on the same rows: the interval of their difference, and the table of pairs."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from baselines.harness.metrics.bootstrap import MOST_ROWS, intervals, over_seeds
from baselines.harness.report.difference_table import difference_table, leader
from baselines.harness.results.aggregate import Group
from baselines.harness.results.records import Row

DRAWS = 1000


def comparisons(count: int, rows: int, seed: int) -> tuple[np.ndarray, float]:
    """Differences of log p of two Gaussians on the same normal rows, and their true mean."""
    x = np.random.default_rng(seed).normal(size=(count, rows, 2))
    first = -0.5 * (x**2).sum(-1)
    second = -0.5 * ((x / 1.2) ** 2).sum(-1) - 2 * math.log(1.2)
    return first - second, -1 + 1 / 1.2**2 + 2 * math.log(1.2)


def test_the_95_percent_interval_covers_the_true_difference():
    covered = 0
    for block in range(20):  # blocks of comparisons share their draws: not all of them should
        differences, true = comparisons(100, 400, seed=block)
        found = intervals(differences, seed=block, resamples=DRAWS)
        covered += sum(interval.low <= true <= interval.high for interval in found)
    assert 0.935 <= covered / 2000 <= 0.965


def test_unpaired_intervals_would_be_several_times_wider():
    x = np.random.default_rng(0).normal(size=(1, 2000, 2))
    first, second = (-0.5 * ((x / s) ** 2).sum(-1) - 2 * math.log(s) for s in (1.0, 1.1))
    (paired,) = intervals(first - second)
    unpaired = 2 * 1.96 * math.hypot(first.std(), second.std()) / math.sqrt(2000)
    assert paired.high - paired.low < unpaired / 4


def test_scipy_draws_the_same_interval():
    stats = pytest.importorskip("scipy.stats")
    rows = np.random.default_rng(0).lognormal(size=200)  # skewed, so that BCa has work to do
    theirs = stats.bootstrap(
        (rows,), np.mean, method="BCa", n_resamples=20_000, random_state=np.random.default_rng(1)
    ).confidence_interval
    (ours,) = intervals(rows[None], resamples=20_000)
    percentile = np.quantile(rows[np.random.default_rng(2).integers(200, size=(9999, 200))].mean(1),
                             0.975)  # fmt: skip
    width = theirs.high - theirs.low
    assert [ours.low, ours.high] == pytest.approx([theirs.low, theirs.high], abs=0.02 * width)
    assert ours.high - percentile > 0.04 * width  # the plain percentile is another one


def test_groups_of_many_rows_vary_as_the_rows_do():
    rows = np.random.default_rng(0).normal(0.3, 2.0, size=(3, 7 * MOST_ROWS + 13))
    half = 1.96 * rows.std(axis=1) / math.sqrt(rows.shape[1])
    for interval, mean, error in zip(intervals(rows), rows.mean(1), half, strict=True):
        assert interval.mean == pytest.approx(mean, abs=1e-12)
        assert interval.high - mean == pytest.approx(error, rel=0.1)
        assert mean - interval.low == pytest.approx(error, rel=0.1)


def test_what_has_no_interval():
    rows = np.vstack([np.full(50, -math.inf), np.arange(50.0), np.zeros(50)])
    lost, sound, equal = intervals(rows)
    assert lost.mean == -math.inf
    assert math.isnan(lost.low)
    assert sound.low < 24.5 < sound.high
    assert equal == (0.0, 0.0, 0.0)
    assert math.isnan(intervals(np.ones((1, 1)))[0].low)
    assert math.isnan(intervals(np.ones((1, 0)))[0].mean)


def test_two_standard_errors_over_seeds():
    first, second = np.array([1.0, 2.0, 3.0]), np.array([0.0, 4.0])
    assert over_seeds(first, second) == pytest.approx(2 * math.sqrt(1 / 3 + 8 / 2))
    assert over_seeds(first, np.array([7.0])) == pytest.approx(2 * math.sqrt(1 / 3))
    assert over_seeds(first[:1], second[:1]) is None
    assert over_seeds(first, np.array([0.0, math.nan])) is None


def setting(model: str, base: np.ndarray, seeds: list[float], depth: int = 2) -> Group:
    vectors = [base + shift for shift in seeds]
    rows = [Row(test_log_prob=v.mean(), test_log_prob_2se=0.1, seed=i)
            for i, v in enumerate(vectors)]  # fmt: skip
    return Group("d", model, depth, label=model.upper(), rows=rows, log_probs=vectors)


def test_the_table_ranks_pairs_and_carries_both_spreads():
    rng = np.random.default_rng(0)
    base, wiggle = rng.normal(size=300), 0.1 * rng.normal(size=300)
    found = [
        setting("maf", base, [0.0, 0.2]),
        setting("ffjord", base + wiggle, [0.5, 0.5]),
        setting("ffjord", base + 9, [0.0], depth=1),  # not its deepest
        setting("nice", base + wiggle, [0.51, 0.51]),
        Group("d", "iaf", 2, failed=[Row(seed=0)]),
    ]
    table = difference_table(found)
    assert table.header[-2:] == ("95% over test points", "± 2 s.e. over seeds")
    lines = [[cell.text for cell in row] for row in table.rows]
    assert [line[:2] for line in lines] == [
        ["NICE", "FFJORD"], ["NICE", "MAF"], ["FFJORD", "MAF"]
    ]  # fmt: skip
    assert lines[2][4] == "± 0.200"  # 2 x 0.1414 / sqrt(2), and nothing from the equal seeds
    assert [row[2].bold for row in table.rows] == [True, True, True]
    low, high = map(float, lines[2][3].split(" to "))
    assert low < 0.4 + wiggle.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * 0.1 / math.sqrt(300), rel=0.15)


def test_a_difference_within_its_interval_is_not_bold_and_other_rows_are_no_pair():
    rng = np.random.default_rng(1)
    base = rng.normal(size=300)
    near = setting("maf", base + rng.normal(0, 0.1, 300), [0.0])
    table = difference_table([setting("nice", base, [0.0]), near])
    assert table.header[-1] == "95% over test points"
    assert [row[2].bold for row in table.rows] == [False]
    assert not difference_table([near, setting("nice", base[:200], [0.0])]).rows


def test_one_line_says_who_leads_by_how_much_and_whether_that_is_sure():
    rng = np.random.default_rng(2)
    base = rng.normal(size=300)
    first = setting("maf", base + 0.5, [0.0])
    timed = {"density_ms_per_1000": 2.0, "sample_ms_per_1000": 40.0, "train_seconds": 12.3}
    first = replace(first, rows=[replace(first.rows[0], **timed)])
    line = leader([setting("nice", base, [0.0]), first])
    assert line.startswith("MAF leads with")
    assert "0.50" in line
    assert "ahead of NICE, the next" in line
    assert line.endswith("12 s; 1000 densities take 2.00 ms, 1000 samples 40.0 ms.")
    near = setting("iaf", base + 0.5 + rng.normal(0, 0.1, 300), [0.0])
    assert "not apart from" in leader([first, near])
    assert leader([first]) == ""
