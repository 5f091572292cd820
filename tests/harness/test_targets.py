"""Targets in several dimensions: their normalisers are what they say."""

from __future__ import annotations

import math

import pytest
import torch

from baselines.harness.data.dataset import DataError
from baselines.harness.data.targets import TARGETS, WELLS, target
from cflows import Affine, Flow, importance


def test_the_mixtures_integral_over_a_grid():
    mixture = target("mixture40")
    side = torch.linspace(-50, 50, 1001, dtype=torch.float64)
    values = mixture.log_prob(torch.cartesian_prod(side, side))
    assert values.exp().sum().item() * 0.1**2 == pytest.approx(1, abs=1e-6)


def test_the_wells_integral_is_the_papers():
    """11784.50927 for one well, as Midgley et al. give it."""
    one = target("manywell8").log_normaliser / WELLS - 0.5 * math.log(2 * math.pi)
    assert math.exp(one) == pytest.approx(11784.50927, rel=1e-6)


def test_the_gaussians_normaliser_by_its_second_differences():
    gaussian = target("gaussian10")
    f, unit = gaussian.log_density, torch.eye(10, dtype=torch.float64)
    # Second differences of a quadratic are its second derivatives.
    both = f(unit.unsqueeze(0) + unit.unsqueeze(1))
    precision = f(unit).unsqueeze(0) + f(unit).unsqueeze(1) - both - f(0 * unit[0])
    log_z = 5 * math.log(2 * math.pi) - 0.5 * torch.linalg.slogdet(precision).logabsdet
    assert gaussian.log_normaliser == pytest.approx(log_z.item(), abs=1e-9)


def test_the_funnels_normaliser_by_nested_normals():
    funnel = target("funnel10")
    torch.manual_seed(0)
    v = 3 * torch.randn(4000, 1, dtype=torch.float64)
    rest = torch.randn(4000, 9, dtype=torch.float64) * torch.exp(v / 2)
    log_q = torch.distributions.Normal(0, 3).log_prob(v[:, 0]) + torch.distributions.Normal(
        0, torch.exp(v / 2)
    ).log_prob(rest).sum(-1)
    torch.testing.assert_close(funnel.log_prob(torch.cat([v, rest], 1)), log_q)


@pytest.mark.parametrize("name", TARGETS)
def test_a_wide_normal_covers_it(name):
    """Weights of a normal of the target's spread are finite; float32 does as float64 does."""
    made = target(name)
    flow = Flow(Affine([0.0] * made.features, [made.spread] * made.features)).double()
    torch.manual_seed(0)
    result = importance(flow, made.log_density, 2000)
    assert math.isfinite(result.log_z)
    x = result.x[:50]
    torch.testing.assert_close(
        made.log_density(x.float()).double(), made.log_density(x), rtol=1e-4, atol=1e-3
    )


def test_an_unknown_name():
    with pytest.raises(DataError, match="the targets are gaussian10, funnel10"):
        target("funnel")
