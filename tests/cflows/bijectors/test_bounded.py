from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from baselines.sklearn import DensityEstimator
from cflows import Bounded, Flow, inside, load, whiten

LOWER, UPPER = [0.0, None, -3.0, None, 5.0], [None, 1.0, -2.0, None, 5.5]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1.0, 30.0, 1e3, 1e30])
def test_draws_are_inside_and_have_a_density(dtype, size):
    f = Bounded(LOWER, UPPER).to(dtype).eval()
    z = size * torch.randn(2000, 5, dtype=dtype)
    x = f(z)
    for column, (low, high) in enumerate(zip(LOWER, UPPER, strict=True)):
        assert (x[:, column] > (-math.inf if low is None else low)).all()
        assert (x[:, column] < (math.inf if high is None else high)).all()
    assert x.isfinite().all()
    back, log_det = f.inverse_and_log_det(x)
    assert back.isfinite().all()
    assert log_det.isfinite().all()
    assert torch.equal(f(back.clone().requires_grad_()).detach()[:, 3], x[:, 3])
    leaf = z.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(f(leaf).clamp(-1e6, 1e6).sum(), leaf)
    assert gradient.isfinite().all()


def test_densities_integrate_to_one():
    flow = Flow(Bounded([0.0], [1.0])).double().eval()
    x = torch.linspace(0, 1, 20_002, dtype=torch.float64)[1:-1, None]
    assert math.isclose(flow.log_prob(x).exp().mean().item(), 1, abs_tol=1e-4)
    flow = Flow(Bounded([None], [2.0])).double().eval()
    y = torch.linspace(-12, 12, 20_001, dtype=torch.float64)
    x = 2 - y.exp()
    total = torch.trapezoid(flow.log_prob(x[:, None]).exp() * y.exp(), y)
    assert math.isclose(total.item(), 1, abs_tol=1e-6)


@pytest.mark.parametrize(
    ("column", "value"), [(0, -1.0), (1, 1.5), (2, -1.9), (4, 6.0), (4, math.nan)]
)
def test_rows_outside_are_refused(column, value):
    f = Bounded(LOWER, UPPER).eval()
    x = f(torch.zeros(3, 5))
    x[1, column] = value
    with pytest.raises(ValueError, match=f"{value:g} is outside of the bounds") as caught:
        f.inverse(x)
    assert "\n" not in str(caught.value)
    if not math.isnan(value):
        law = Flow(f).eval().distribution()
        assert law.log_prob(x).isinf().tolist() == [False, True, False]
        assert law.support.check(x).tolist() == [True, False, True]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_rounded_to_a_bound_is_next_to_it(dtype):
    f = Bounded([0.0, None], [1.0, 2.0]).to(dtype).eval()
    x = torch.tensor([[1.0, 2.0], [0.0, 0.0]], dtype=dtype)
    beside = torch.nextafter(x, torch.tensor([0.5, 0.0], dtype=dtype))
    beside[1, 0] = torch.finfo(dtype).tiny
    for found, expected in zip(
        f.inverse_and_log_det(x), f.inverse_and_log_det(beside), strict=True
    ):
        assert found.isfinite().all()
        assert torch.equal(found, expected)


def test_bounds_without_room():
    for lower, upper in (([1.0], [1.0]), ([2.0], [1.0]), ([math.nan], [1.0])):
        with pytest.raises(ValueError, match="has no room between"):
            Bounded(lower, upper)
    with pytest.raises(ValueError, match="one each a column"):
        Bounded([1.0], [2.0, 3.0])


def test_saved_and_loaded(tmp_path):
    flow = Flow(Bounded(LOWER, UPPER)).eval()
    flow.save(tmp_path / "bounded.flow")
    again = load(tmp_path / "bounded.flow")
    x = flow.sample(50)
    assert torch.equal(again.log_prob(x), flow.log_prob(x))


# Twenty steps are few for the tail of a logarithm.
@pytest.mark.filterwarnings("ignore:.*draws lie far outside:UserWarning")
def test_an_estimator_draws_inside():
    waits = np.random.default_rng(0).exponential(1, 300)
    X = np.column_stack([waits, np.linspace(0.01, 0.99, 300)])
    settings = {"depth": 1, "steps": 20, "preprocess": "standardise"}
    for bounds in ([(0, None), (0, 1)], {0: (0, None), 1: (0, 1)}):
        found = DensityEstimator("maf", bounds=bounds, **settings).fit(X)
        drawn = found.sample(2000, random_state=0)
        assert (drawn > 0).all()
        assert (drawn[:, 1] < 1).all()
        assert np.isfinite(found.score_samples(drawn)).all()
    with pytest.raises(ValueError, match=r"column 1 of X has \d+ rows on or outside"):
        DensityEstimator("maf", bounds=[(0, None), (0.5, 1)], **settings).fit(X)
    with pytest.raises(ValueError, match="a pair for each of 2 columns"):
        DensityEstimator("maf", bounds=[(0, None)], **settings).fit(X)
    with pytest.raises(ValueError, match="no column of X"):
        DensityEstimator("maf", bounds={"a": (0, None)}, **settings).fit(X)


def test_a_map_behind_bounds_is_fitted_on_the_line(tmp_path):
    rows = torch.rand(500, 2, dtype=torch.float64).exp()
    bounds = Bounded([0.0, 1.0], [None, 3.0])
    end = inside(bounds, whiten)(rows)
    z = end.eval().inverse(rows)
    torch.testing.assert_close(z.T @ z / 500, torch.eye(2, dtype=torch.float64))
    np.save(tmp_path / "rows.npy", rows.numpy())
    mapped = inside(bounds, whiten)(np.load(tmp_path / "rows.npy", mmap_mode="r"))
    middle = end(torch.zeros(1, 2, dtype=torch.float64)).float()
    torch.testing.assert_close(mapped.eval()(torch.zeros(1, 2)), middle)
