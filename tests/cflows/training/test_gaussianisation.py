"""Closed-form maps to a standard normal: right by integrals, and honest about ties."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from scipy import stats

import cflows
from baselines.harness.cli import main
from baselines.sklearn import DensityEstimator
from cflows import Flow, Margins, behind, gaussianise, whiten
from cflows.training.knots import log_chi_quantiles


def skewed(rows: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Two log-normal columns that hang together, and a Laplace one."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(rows, 3, generator=generator, dtype=torch.float64)
    z[:, 1] += z[:, 0]
    z[:, 2] = z[:, 2].sign() * z[:, 2].abs() ** 1.5
    return torch.cat([z[:, :2].exp(), z[:, 2:]], dim=1).to(dtype)


def elliptical(rows: int, features: int = 5) -> torch.Tensor:
    """Student's t with 3 degrees of freedom, and a scale: what a radial map undoes."""
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(rows, features, generator=generator, dtype=torch.float64)
    chi = torch.randn(rows, 3, generator=generator, dtype=torch.float64).square().mean(1).sqrt()
    return z / chi[:, None] * torch.linspace(1, 4, features).double()


def test_it_comes_near_the_truth_of_log_normal_columns():
    train, test = skewed(20_000), skewed(40_000)[20_000:]
    truth = torch.distributions.Normal(0.0, 1.0)
    logs = test[:, :2].log()
    exact = truth.log_prob(logs[:, 0]) + truth.log_prob(logs[:, 1] - logs[:, 0]) - logs.sum(1)
    root = test[:, 2].sign() * test[:, 2].abs() ** (2 / 3)
    exact = exact + truth.log_prob(root) + np.log(2 / 3) - root.abs().log() / 2
    reached = Flow(gaussianise(train)).log_prob(test)
    gaussian = Flow(whiten(train)).log_prob(test)
    assert float((exact - reached).mean()) < 0.06
    assert float((exact - gaussian).mean()) > 2


def test_a_radial_map_undoes_elliptical_tails():
    train, test = elliptical(20_000), elliptical(30_000)[20_000:]
    chain = gaussianise(train)
    assert any(isinstance(part, cflows.Radial) for part in chain.parts)
    exact = stats.multivariate_t(np.zeros(5), np.diag(np.linspace(1, 4, 5) ** 2), df=3)
    gap = exact.logpdf(test.numpy()) - Flow(chain).log_prob(test).numpy()
    assert gap.mean() < 0.03


def test_a_part_must_win_what_is_asked():
    """Elliptical tails: the radial map wins much a column, what comes behind it next to nothing."""
    rows = elliptical(4000)
    some, many = (gaussianise(rows, gain=gain).parts for gain in (0.05, 0.0005))
    assert [type(part) for part in some] == [cflows.Radial, cflows.Whitening]
    assert len(many) > 2
    assert not any(isinstance(part, cflows.Radial) for part in gaussianise(rows, gain=5.0).parts)


@pytest.mark.parametrize("make", [skewed, elliptical])
def test_both_ways_meet_in_double_precision(make):
    rows = make(2000)
    chain = gaussianise(rows)
    z, log_det = chain.inverse_and_log_det(rows)
    x, back = chain.forward_and_log_det(z)
    scale = rows.std(0)
    torch.testing.assert_close(x / scale, rows / scale, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(back, -log_det, rtol=1e-9, atol=1e-8)


def test_one_column_is_a_density():
    rows = skewed(3000)[:, :1]
    flow = Flow(gaussianise(rows))
    x = torch.linspace(-40.0, 200.0, 2_000_001).double()[:, None]
    mass = torch.trapezoid(flow.log_prob(x).exp(), x[:, 0])
    assert float(mass) == pytest.approx(1, abs=1e-4)


def test_two_columns_are_a_density():
    flow = Flow(gaussianise(elliptical(3000, 2)))
    line = torch.linspace(-60, 60, 1201).double()
    grid = torch.cartesian_prod(line, line)
    assert float(flow.log_prob(grid).exp().sum()) * 0.1**2 == pytest.approx(1, abs=2e-3)


def test_far_rows_have_finite_densities():
    chain = gaussianise(skewed(2000))
    far = torch.tensor([[1e4, -1e4, 1e3], [-50.0, 1e3, -1e4]]).double()
    assert bool(Flow(chain).log_prob(far).isfinite().all())


def test_held_out_rows_choose_the_knots():
    """Rows that are normal already get few knots, and lose next to nothing by them."""
    rows = torch.randn(4000, 2, generator=torch.Generator().manual_seed(2)).double()
    test = torch.randn(4000, 2, generator=torch.Generator().manual_seed(3)).double()
    gap = cflows.Normal(2).log_prob(test) - Flow(gaussianise(rows)).log_prob(test)
    assert abs(float(gap.mean())) < 0.01


@pytest.mark.parametrize("share", [0.06, 0.4])
def test_an_atom_is_told_and_buys_no_density(share):
    rows = skewed(4000)
    rows[: int(share * len(rows)), 2] = 0.0
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(1))]
    with pytest.warns(UserWarning, match=r"column 2 is 0 in \d+% of the rows"):
        chain = gaussianise(rows)
    density = Flow(chain).log_prob(rows)
    near = rows.clone()
    near[:, 2] += 1e-6
    torch.testing.assert_close(density, Flow(chain).log_prob(near), rtol=0, atol=0.05)


@pytest.mark.parametrize("step", [0.01, 0.2])
def test_a_grid_of_values_buys_no_density(step):
    """The same column with its step filled up is as likely, but for what the step itself says."""
    rows, noise = skewed(8000), torch.rand(8000, generator=torch.Generator().manual_seed(4))
    column = torch.round(rows[:, 2:] / step) * step
    filled = column + step * (noise[:, None].double() - 0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a coarse grid has atoms
        stepped = Flow(gaussianise(column)).log_prob(column).mean()
    assert float(stepped) < float(Flow(gaussianise(filled)).log_prob(filled).mean()) + 0.2


def test_duplicated_rows_buy_no_density():
    rows = skewed(500)
    once = Flow(gaussianise(rows)).log_prob(skewed(3000)[500:]).mean()
    again = Flow(gaussianise(rows.repeat(4, 1))).log_prob(skewed(3000)[500:]).mean()
    assert float(again) > float(once) - 0.5


@pytest.mark.parametrize("rows", [12, 30, 100])
def test_few_rows(rows):
    chain = gaussianise(skewed(rows))
    assert bool(Flow(chain).log_prob(skewed(rows + 50)[rows:]).isfinite().all())


@pytest.mark.parametrize("rows", [1, 2])
def test_too_few_rows_are_refused(rows):
    with pytest.raises(ValueError, match="column 0 of the rows is constant or not finite"):
        gaussianise(skewed(rows))


def test_a_constant_stretch_is_an_atom():
    rows = skewed(4000).cumsum(0)
    rows[1000:2500, 1] = rows[1000, 1]
    with pytest.warns(UserWarning, match="column 1 is .* in 38% of the rows"):
        chain = gaussianise(rows)
    assert bool(Flow(chain).log_prob(rows).isfinite().all())


def test_many_columns_are_searched_on_enough_rows(monkeypatch):
    monkeypatch.setattr("cflows.training.gaussianisation.SEARCHED", 2000)  # 50 of the rows
    chain = gaussianise(elliptical(4000, 40))
    assert any(isinstance(part, cflows.Radial) for part in chain.parts)


def test_columns_that_depend_on_each_other_are_mapped_one_by_one():
    rows = skewed(1000)[:, [0, 1, 0]]
    chain = gaussianise(rows)
    assert [type(part) for part in chain.parts] == [Margins]


@pytest.mark.parametrize(
    ("column", "match"), [(3.0, "column 1 .* constant"), (float("nan"), "column 1 .* not finite")]
)
def test_what_no_map_can_hold_is_refused(column, match):
    rows = skewed(100)
    rows[:, 1] = column
    with pytest.raises(ValueError, match=match):
        gaussianise(rows)


def test_rows_on_the_disk_are_read_in_part(tmp_path, monkeypatch):
    rows = skewed(4000, torch.float32)
    path = tmp_path / "rows.npy"
    np.save(path, rows.numpy())
    monkeypatch.setattr("cflows.training.gaussianisation.FITTED", 6000)
    monkeypatch.setattr("cflows.training.gaussianisation.SEARCHED", 3000)
    streamed = gaussianise(np.load(path, mmap_mode="r"))
    whole = gaussianise(rows)
    torch.testing.assert_close(
        Flow(streamed).log_prob(rows[:100]).mean(), Flow(whole).log_prob(rows[:100]).mean(),
        rtol=0, atol=0.1,
    )  # fmt: skip
    assert next(streamed.buffers()).dtype == torch.float32


def test_a_flow_behind_it_is_saved_and_loaded(tmp_path):
    rows = skewed(500, torch.float32)
    flow = behind(cflows.FFJORD(3, hidden=(4,)), gaussianise(rows)).eval()
    flow.save(tmp_path / "x.flow")
    assert torch.equal(cflows.load(tmp_path / "x.flow").log_prob(rows[:5]), flow.log_prob(rows[:5]))


@pytest.mark.parametrize("features", [1, 2, 63, 784])
def test_quantiles_of_lengths(features):
    levels = torch.tensor([1e-6, 0.01, 0.5, 0.99, 1 - 1e-6]).double()
    exact = np.log(stats.chi(features).ppf(levels.numpy()))
    np.testing.assert_allclose(
        log_chi_quantiles(levels, features).numpy(), exact, rtol=0, atol=1e-9
    )


def test_the_command_and_the_estimator_take_it(tmp_path):
    rows = skewed(300, torch.float32).numpy()
    np.save(tmp_path / "rows.npy", rows)
    out = tmp_path / "m.flow"
    arguments = ["fit", "--model", "nice", "--depth", "1", "--steps", "5", "--preprocess"]
    assert (
        main([*arguments, "gaussianise", "--data", f"{tmp_path}/rows.npy", "--out", f"{out}"]) == 0
    )
    kinds = [type(part).__name__ for part in cflows.load(out).bijector.modules()]
    assert "Margins" in kinds
    estimator = DensityEstimator("nice", depth=1, steps=5, preprocess="gaussianise").fit(rows)
    assert estimator.preprocess_ == "gaussianise"


def test_behind_bounds():
    rows = skewed(2000)[:, :1]
    end = cflows.inside(cflows.Bounded([0.0], [None]), gaussianise)(rows)
    flow = Flow(end).double()
    assert bool((flow.sample(1000) > 0).all())
    exact = torch.distributions.LogNormal(0.0, 1.0).log_prob(rows).sum(1).double()
    assert abs(float((exact - flow.log_prob(rows)).mean())) < 0.02
