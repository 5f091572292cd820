"""Networks that other libraries and scripts trained, scored here."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from cflows import FixedGrid, Flow, ODEBijector, field_from, tune_solver
from cflows.continuous.layers import normal_rate

GRID = FixedGrid("rk4", 8)


class Normals(nn.Module):
    """E[x₁ - x₀ | x_t] where both are standard normals: its flow is the identity."""

    def forward(self, *inputs):
        t, x = inputs if inputs[0].dim() == 1 else inputs[::-1]
        assert t.shape == x.shape[:1]
        return normal_rate(t).view(-1, *[1] * (x.dim() - 1)) * x


class Shifted(nn.Module):
    """The velocity of the shift by c, or by 2, in a state beside its time."""

    def __init__(self, features, context=0):
        super().__init__()
        self.features, self.context = features, context

    def forward(self, inputs):
        assert inputs.shape[-1] == self.features + self.context + 1
        if self.context:
            return inputs[..., self.features : -1].expand(-1, self.features)
        return torch.full_like(inputs[..., : self.features], 2.0)


def flow_of(field):
    return Flow(ODEBijector(field, evaluation_solver=GRID)).eval()


@pytest.mark.parametrize("call", ["t,x", "x,t", lambda net, t, x: net(t, x)])
def test_the_ways_to_call_a_network(call):
    flow, x = flow_of(field_from(Normals(), call, features=3)), torch.randn(10, 3)
    torch.testing.assert_close(flow.bijector(x), x, atol=1e-4, rtol=0)
    torch.testing.assert_close(flow.log_prob(x), flow.base.log_prob(x), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("data_at", "shift"), [(1.0, 2.0), (0.0, -2.0)])
def test_one_tensor_and_the_direction_of_time(data_at, shift):
    flow = flow_of(field_from(Shifted(2), "cat", features=2, data_at=data_at))
    z = torch.randn(5, 2)
    torch.testing.assert_close(flow.bijector(z), z + shift)


def test_a_context_comes_last():
    field = field_from(Shifted(2, 1), "cat", features=2, context_features=1)
    z, context = torch.randn(5, 2), torch.randn(5, 1)
    torch.testing.assert_close(flow_of(field).bijector(z, context), z + context)
    keeps = field_from(
        Normals(), lambda net, t, x, c: net(t, x) + c, features=2, context_features=1
    )
    torch.testing.assert_close(flow_of(keeps).bijector(z, 0 * context), z, atol=1e-4, rtol=0)


def test_states_with_a_shape():
    flow = flow_of(field_from(Normals(), shape=(1, 2, 3)))
    assert flow.features == 6
    x = torch.randn(4, 6)
    torch.testing.assert_close(flow.log_prob(x), flow.base.log_prob(x), atol=1e-4, rtol=0)


def test_mistakes_are_told():
    with pytest.raises(ValueError, match="call must be one of 't,x', 'x,t', 'cat'"):
        field_from(Normals(), "tx", features=2)
    with pytest.raises(ValueError, match="is needed"):
        field_from(Normals())
    with pytest.raises(ValueError, match="has 6 features, not 5"):
        field_from(Normals(), features=5, shape=(2, 3))
    with pytest.raises(ValueError, match="data_at must be 0 or 1"):
        field_from(Normals(), features=2, data_at=0.5)
    flow = flow_of(field_from(nn.Linear(3, 1), "cat", features=2))
    with pytest.raises(ValueError, match=r"gave \(7, 1\) for states \(7, 2\)"):
        flow.log_prob(torch.zeros(7, 2))


def test_a_network_of_ones_own_is_not_saved_by_accident(tmp_path):
    flow = flow_of(field_from(Normals(), features=2))
    with pytest.raises(TypeError, match="Normals"):
        flow.save(tmp_path / "flow")


# Nets that other libraries' own loops trained.


def rows(n):
    """Two moons' worth of bend in two columns."""
    x = torch.randn(n)
    return torch.stack([x, 0.5 * x.square() - 0.5 + 0.4 * torch.randn(n)], dim=1)


def true_log_prob(x):
    normal = -0.5 * (x[:, 0].square() + math.log(2 * math.pi))
    left = (x[:, 1] - 0.5 * x[:, 0].square() + 0.5) / 0.4
    return normal - 0.5 * (left.square() + math.log(2 * math.pi)) - math.log(0.4)


def by_torchcfm():
    torchcfm = pytest.importorskip("torchcfm.conditional_flow_matching")
    from torchcfm.models.models import MLP

    net = MLP(dim=2, w=64, time_varying=True)
    matcher = torchcfm.ConditionalFlowMatcher(sigma=0.0)
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(800):
        end = rows(256)
        t, state, velocity = matcher.sample_location_and_conditional_flow(
            torch.randn_like(end), end
        )
        loss = (net(torch.cat([state, t[:, None]], dim=-1)) - velocity).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return field_from(net, "cat", features=2)


def by_flow_matching(scheduler):
    path = pytest.importorskip("flow_matching.path")
    schedulers = pytest.importorskip("flow_matching.path.scheduler")
    from torchcfm.models.models import MLP

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = MLP(dim=2, w=64, time_varying=True)

        def forward(self, x, t):
            return self.inner(torch.cat([x, t.reshape(-1, 1).expand(len(x), 1)], dim=-1))

    net = Net()
    paths = path.AffineProbPath(scheduler=getattr(schedulers, scheduler)())
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(800):
        end = rows(256)
        sample = paths.sample(t=torch.rand(256), x_0=torch.randn_like(end), x_1=end)
        loss = (net(x=sample.x_t, t=sample.t) - sample.dx_t).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return field_from(net, "x,t", features=2)


@pytest.mark.parametrize("library", ["torchcfm", "CondOTScheduler", "CosineScheduler"])
def test_what_other_libraries_trained_has_a_density(library):
    torch.manual_seed(0)
    pytest.importorskip("torchcfm")
    field = by_torchcfm() if library == "torchcfm" else by_flow_matching(library)
    flow = Flow(ODEBijector(field)).eval()
    ticks = torch.linspace(-6, 6, 121), torch.linspace(-5, 15, 201)
    grid = torch.cartesian_prod(*ticks)
    with torch.no_grad(), flow.using(solver=FixedGrid("dopri5", 8)):
        integral = flow.log_prob(grid).exp().sum() * 0.1 * 0.1
    assert abs(float(integral) - 1) < 0.005
    x = rows(2000)
    tuning = tune_solver(flow, rows(400), tolerance=0.02)
    assert tuning.kept
    with torch.no_grad():
        gap = true_log_prob(x).mean() - flow.log_prob(x).mean()
    assert -0.02 < gap < 0.15
