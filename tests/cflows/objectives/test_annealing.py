"""Particles that are led from a wide normal to a density."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from cflows import Affine, BatchNorm, Flow, annealed


def start(features=2, spread=5.0):
    return Flow(Affine([0.0] * features, [spread] * features))


def two_modes(x):
    """A third and two thirds of the mass at -4 and 4; log Z = log(2π) + log 3."""
    apart = torch.stack([x + 4, x - 4]).square().sum(-1) * -0.5
    return torch.logsumexp(apart + torch.tensor([0.0, math.log(2)], dtype=x.dtype).view(2, 1), 0)


def test_both_modes_with_their_weights_and_log_z():
    torch.manual_seed(0)
    results = [annealed(two_modes, start(), 2000) for _ in range(3)]
    for result in results:
        assert 0.5 < result.accepted < 0.98
        assert result.temperatures > 2
    share = torch.stack([(result.x[:, 0] > 0).float().mean() for result in results]).mean()
    assert float(share) == pytest.approx(2 / 3, abs=0.06)
    log_z = sum(result.log_z for result in results) / 3
    assert log_z == pytest.approx(math.log(2 * math.pi) + math.log(3), abs=0.1)
    right = results[0].x[results[0].x[:, 0] > 0]
    torch.testing.assert_close(right.mean(0), torch.tensor([4.0, 4.0]), atol=0.15, rtol=0)
    torch.testing.assert_close(right.std(0), torch.ones(2), atol=0.1, rtol=0)


def test_a_start_that_is_the_density_takes_one_step():
    result = annealed(lambda x: -0.5 * (x / 5).square().sum(-1), start(), 500, moves=1)
    assert result.temperatures == 1
    assert result.log_z == pytest.approx(math.log(2 * math.pi * 25), abs=1e-4)


def test_a_region_without_density_is_left():
    torch.manual_seed(0)
    normal = lambda x: -0.5 * x.square().sum(-1)  # noqa: E731
    result = annealed(lambda x: normal(x).where(x[:, 0] > 0, -torch.inf), start(), 2000)
    assert float(result.x[:, 0].min()) > 0
    assert result.log_z == pytest.approx(math.log(math.pi), abs=0.15)


def test_no_gradient_is_left_and_parameters_are_not_touched():
    flow = start()
    result = annealed(two_modes, flow, 200, moves=2)
    assert not result.x.requires_grad
    assert all(parameter.grad is None for parameter in flow.parameters())


def test_moves_that_leave_the_numbers_are_rejected():
    """A force of the fifth power throws particles far off, where the start refuses to look."""
    torch.manual_seed(0)
    result = annealed(lambda x: -(x.pow(6)).sum(-1), start(2, 1e3), 500, moves=3)
    assert bool(result.x.isfinite().all())
    assert float(result.x.abs().max()) < 3


def test_the_start_keeps_its_mode_and_its_state():
    flow = Flow(BatchNorm(2)).train()
    before = copy.deepcopy(flow.state_dict())
    annealed(two_modes, flow, 100, moves=1)
    assert flow.training
    for name, value in flow.state_dict().items():
        assert torch.equal(value, before[name])


def test_mistakes_are_told():
    with pytest.raises(ValueError, match="n must be at least 2"):
        annealed(two_modes, start(), 1)
    with pytest.raises(ValueError, match="not a number"):
        annealed(lambda x: two_modes(x) * torch.nan, start(), 50)
    with pytest.raises(ValueError, match=r"must have shape \(50,\) for rows \(50, 2\)"):
        annealed(lambda x: x, start(), 50)
    with pytest.raises(ValueError, match="zero at all particles"):
        annealed(lambda x: two_modes(x).masked_fill(x[:, 0] < 1e9, -torch.inf), start(), 50)
    with pytest.raises(ValueError, match="take a start that covers"):
        annealed(lambda x: two_modes(x / 1e-3), start(), 50, moves=1, most=2)
