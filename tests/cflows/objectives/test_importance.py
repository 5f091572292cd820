"""Weighted draws of a flow, against closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from cflows import Affine, Flow, StudentT, importance
from cflows.objectives.importance import pareto_k


def normal(x):
    """Unnormalised: log Z = D log(2π) / 2."""
    return -0.5 * x.square().sum(-1)


@pytest.mark.parametrize("scale", [1.0, 1.3])
def test_log_z_and_ess_are_those_of_two_normals(scale):
    """E[w²] / E[w]² of N(0, 1) by N(0, s²) is s² / √(2 s² - 1) a column."""
    torch.manual_seed(0)
    flow, n = Flow(Affine([0.0] * 3, [scale] * 3)), 200_000
    result = importance(flow, normal, n)
    assert result.x.shape == (n, 3)
    assert result.log_z == pytest.approx(
        1.5 * math.log(2 * math.pi), abs=4 * result.log_z_error + 1e-6
    )
    share = (math.sqrt(2 * scale**2 - 1) / scale**2) ** 3
    assert result.ess_fraction == pytest.approx(share, rel=0.02)
    assert result.ess_per_second == pytest.approx(result.ess / result.seconds)
    moment = result.mean(result.x.square())
    torch.testing.assert_close(moment, torch.ones(3), atol=0.03, rtol=0)
    again = result.resample(50_000)
    torch.testing.assert_close(again.std(0), torch.ones(3), atol=0.03, rtol=0)
    assert "effective sample size" in str(result)


def test_the_error_covers_the_truth_as_often_as_it_says():
    torch.manual_seed(1)
    flow, truth = Flow(Affine([0.2], [1.2])), 0.5 * math.log(2 * math.pi)
    results = [importance(flow, normal, 400) for _ in range(200)]
    inside = [abs(result.log_z - truth) < 2 * result.log_z_error for result in results]
    assert 0.9 <= sum(inside) / len(inside) <= 0.99


@pytest.mark.parametrize("k", [0.2, 0.5, 0.9])
def test_the_shape_of_a_pareto_tail(k):
    torch.manual_seed(0)
    told = [pareto_k(-k * torch.rand(20_000, dtype=torch.float64).log()) for _ in range(20)]
    assert sum(told) / 20 == pytest.approx(k, abs=0.05)


def test_a_narrow_proposal_is_told():
    torch.manual_seed(0)
    narrow = importance(Flow(Affine([0.0] * 2, [0.5] * 2)), normal, 10_000)
    assert narrow.pareto_k > 0.7
    wide = importance(Flow(Affine([0.0] * 2, [1.2] * 2)), normal, 10_000)
    assert wide.pareto_k < 0.3
    heavy = importance(Flow(Affine([0.0], [1.0]), StudentT(1, df=3.0)), normal, 10_000)
    assert heavy.pareto_k < 0.5
    assert math.isnan(pareto_k(torch.zeros(10)))
    assert pareto_k(torch.zeros(1000)) == -math.inf
    assert pareto_k(-1000.0 * torch.arange(1000.0)) == math.inf


def test_contexts_and_regions_without_density():
    torch.manual_seed(0)
    flow = Flow(Affine([0.0], [1.0]))
    half = importance(flow, lambda x: normal(x).where(x[:, 0] > 0, -torch.inf), 20_000)
    assert half.log_z == pytest.approx(0.5 * math.log(2 * math.pi) - math.log(2), abs=0.03)
    assert half.ess_fraction == pytest.approx(0.5, abs=0.02)


def test_means_of_truths_and_of_integers():
    torch.manual_seed(0)
    result = importance(Flow(Affine([0.0], [1.1])), normal, 20_000)
    share = result.mean(result.x[:, 0] > 0)
    assert float(share) == pytest.approx(0.5, abs=0.02)
    torch.testing.assert_close(result.mean((result.x[:, 0] > 0).long()), share)


def test_mistakes_are_told():
    flow = Flow(Affine([0.0], [1.0]))
    with pytest.raises(ValueError, match="n must be at least 2"):
        importance(flow, normal, 1)
    with pytest.raises(ValueError, match=r"must have shape \(10,\) for rows \(10, 1\)"):
        importance(flow, lambda x: x, 10)
    with pytest.raises(ValueError, match="not a number"):
        importance(flow, lambda x: normal(x) * torch.nan, 10)
    with pytest.raises(ValueError, match="zero at all draws"):
        importance(flow, lambda x: torch.full((len(x),), -torch.inf), 10)
