"""A flow whose context goes through a network first."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from baselines import MAF, NSF
from cflows import (
    FFJORD,
    Affine,
    Chain,
    ContextNetwork,
    Flow,
    FlowMatching,
    TableFlow,
    behind,
    fit,
    load,
    log_likelihood,
    register,
    standardise,
    tune_solver,
)


@register
class Sums(nn.Module):
    """Two sums of a context of six."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, context):
        return self.weight * context.reshape(-1, 2, 3).sum(-1)


def conditional(kind="maf", **network):
    torch.manual_seed(0)
    network = network or {"hidden": (8,)}
    core = {
        "maf": lambda: MAF(2, hidden=(16,), layers=2, context_features=2),
        "ffjord": lambda: FFJORD(2, hidden=(16,), layer="film", context_features=2),
    }[kind]()
    for parameter in core.parameters():
        nn.init.normal_(parameter, std=0.3)
    return Flow(core.bijector, core.base, ContextNetwork(6, 2, **network)).eval()


@pytest.mark.parametrize("kind", ["maf", "ffjord"])
def test_the_flow_is_that_of_the_summary(kind, tmp_path):
    flow = conditional(kind)
    x, context = torch.randn(5, 2), torch.randn(5, 6)
    plain, summary = Flow(flow.bijector, flow.base), flow.context_network(context)
    assert flow.context_features == 6
    assert torch.equal(flow.log_prob(x, context), plain.log_prob(x, summary))
    assert flow.sample((3,), context).shape == (3, 5, 2)
    draws, told = flow.sample_and_log_prob((3,), context)
    torch.testing.assert_close(flow.log_prob(draws, context), told, atol=2e-4, rtol=0)
    one = flow.log_prob(x, context[0])
    torch.testing.assert_close(one, flow.log_prob(x, context[:1].expand(5, -1)))
    law = flow.distribution(context)
    assert law.batch_shape == (5,)
    torch.testing.assert_close(law.log_prob(x), flow.log_prob(x, context))
    torch.testing.assert_close(log_likelihood(flow, x, context), flow.log_prob(x, context))
    if kind == "ffjord":
        path = flow.trajectory(x, [1.0, 0.5, 0.0], context)
        torch.testing.assert_close(path[-1], flow.bijector.inverse(x, summary), atol=1e-4, rtol=0)
    flow.save(tmp_path / "conditional.flow")
    assert torch.equal(
        load(tmp_path / "conditional.flow").log_prob(x, context), flow.log_prob(x, context)
    )


def test_a_summary_stands_for_all_its_rows():
    flow, sizes = conditional(), []
    flow.context_network.register_forward_hook(lambda _, args, out: sizes.append(len(args[0])))
    flow.log_prob(torch.randn(1000, 2), torch.randn(1, 6))
    flow.sample((1000,), torch.randn(1, 6))
    assert sizes == [1, 1]


def test_a_module_of_ones_own_is_saved(tmp_path):
    flow = conditional(network=Sums())
    x, context = torch.randn(4, 2), torch.randn(4, 6)
    flow.save(tmp_path / "own.flow")
    assert torch.equal(load(tmp_path / "own.flow").log_prob(x, context), flow.log_prob(x, context))


@pytest.mark.parametrize("objective", ["forward_kl", "flow_matching", "reflow"])
def test_the_network_is_trained_with_the_flow(objective):
    """x is the mean of six noisy numbers: one of them says too little."""
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(3000, 1, generator=generator)
    context = 5 + 3 * (mean + torch.randn(3000, 6, generator=generator))
    core = FFJORD(1, hidden=(32, 32), layer="film", context_features=1)
    network = ContextNetwork.of(context, 1, hidden=(16,))
    flow = behind(Flow(core.bijector, core.base, network), standardise(mean))
    before = copy.deepcopy(network.state_dict())
    settings = {"learning_rate": 5e-3, "progress": False, "batch_size": 500}
    goal = FlowMatching(copy.deepcopy(flow)) if objective == "reflow" else objective
    steps = {"forward_kl": 60, "flow_matching": 400, "reflow": 3}[objective]
    fit(flow, (mean, context), objective=goal, steps=steps, **settings)
    changed = [
        name for name, value in network.state_dict().items() if not value.equal(before[name])
    ]
    assert changed == [name for name in before if name.startswith("network")]
    if objective == "reflow":
        return
    # The posterior of the mean given six numbers has variance 1 / 7.
    error = flow.sample((200,), context[:300]).mean(0) - (context[:300] - 5).sum(1, True) / 3 / 7
    assert error.square().mean().sqrt() < 0.15
    assert flow.sample((200,), context[:300]).std(0).mean().item() == pytest.approx(
        (1 / 7) ** 0.5, abs=0.1
    )


def test_a_solver_is_tuned_for_the_summaries():
    flow = conditional("ffjord")
    x, context = torch.randn(200, 2), torch.randn(200, 6)
    tuning = tune_solver(flow, x, context, tolerance=1e-3)
    assert tuning.kept
    with torch.no_grad():
        told = flow.log_prob(x, context)
        with flow.tightened():
            assert (flow.log_prob(x, context) - told).abs().mean() < 3e-3


def test_what_does_not_fit_is_refused():
    flow, x = conditional(), torch.randn(5, 2)
    with pytest.raises(ValueError, match=r"context of shape \(\*B, 6\) is needed"):
        flow.log_prob(x)
    with pytest.raises(ValueError, match=r"the context must have shape \(\*B, 6\)"):
        flow.log_prob(x, torch.randn(5, 2))
    with pytest.raises(ValueError, match="do not broadcast"):
        flow.log_prob(x, torch.randn(4, 6))
    with pytest.raises(ValueError, match="the context has NaN"):
        flow.log_prob(x, torch.full((5, 6), torch.nan))
    with pytest.raises(TypeError, match=r"the context is torch\.float64"):
        flow.log_prob(x, torch.randn(5, 6).double())
    with pytest.raises(ValueError, match="gives 2 features, the bijector takes 0"):
        Flow(Affine([0.0], [1.0]), context_network=ContextNetwork(2))
    with pytest.raises(ValueError, match="give hidden"):
        ContextNetwork(6, 2)
    with pytest.raises(ValueError, match="not both"):
        ContextNetwork(6, 2, hidden=(3,), network=Sums())
    with pytest.raises(ValueError, match="the scale positive"):
        ContextNetwork(1, scale=[0.0])
    with pytest.raises(ValueError, match="at least 1"):
        ContextNetwork(0)
    with pytest.raises(ValueError, match=r"gives \(5, 6\), where it says \(5, 2\)"):
        ContextNetwork(6, 2, network=nn.Identity())(torch.randn(5, 6))


def test_constant_contexts_and_chains():
    network = ContextNetwork.of(torch.tensor([[1.0, 7.0], [3.0, 7.0]]))
    assert network(torch.tensor([3.0, 8.0])).tolist() == [1.0, 1.0]
    core = NSF(2, hidden=(8,), layers=1, context_features=2)
    flow = behind(Flow(core.bijector, core.base, network), Affine([1.0, 1.0], [2.0, 2.0]))
    assert isinstance(flow.bijector, Chain)
    assert flow.context_network is network


def test_a_flow_with_names_keeps_the_network(tmp_path):
    flow, x, context = conditional(), torch.randn(4, 2), torch.randn(4, 6)
    named = TableFlow(
        flow.bijector,
        flow.base,
        context_loc=[1.0] * 6,
        context_scale=[2.0] * 6,
        context_network=flow.context_network,
    ).eval()
    assert len(named.context_columns) == 6
    torch.testing.assert_close(named.log_prob(x, 1 + 2 * context), flow.log_prob(x, context))
    named.save(tmp_path / "named.flow")
    again = load(tmp_path / "named.flow")
    assert torch.equal(again.log_prob(x, context), named.log_prob(x, context))
