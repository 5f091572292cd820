"""Muon beside AdamW, and the settings that an objective brings."""

import pytest
import torch

from baselines import MAF, RealNVP
from cflows import FFJORD, ODEBijector, ResidualField, fit
from cflows.core.flow import Flow
from cflows.training.optimizers import Muon, hidden_weights, named_optimizer, orthogonalised

QUIET = {"progress": False, "device": "cpu"}


@pytest.mark.parametrize("shape", [(6, 6), (9, 4), (4, 9)])
def test_a_turned_matrix_keeps_its_singular_vectors_and_evens_its_values(shape, dtype):
    matrices = torch.randn(3, *shape, dtype=dtype)
    turned = orthogonalised(matrices)
    for before, after in zip(matrices, turned, strict=True):
        u, s, vh = torch.linalg.svd(before, full_matrices=False)
        inner = u.mT @ after @ vh.mT
        near = 1e-4 if dtype == torch.float32 else 1e-9
        assert (inner - inner.diagonal().diag()).abs().max() < near
        even = inner.diagonal()[s > 0.01 * torch.linalg.vector_norm(s)]
        assert len(even) > 2
        assert ((even > 0.72) & (even < 1.28)).all()


def test_one_step_moves_hidden_matrices_by_muon_and_the_rest_as_adamw_does():
    flows = {}
    for name in ("adamw", "muon"):
        torch.manual_seed(0)
        flows[name] = MAF(3, layers=1, hidden=(8, 8))
        parameters = list(flows[name].parameters())
        optimizer = named_optimizer(name, [flows[name]], parameters, 0.01, 0.1)
        for parameter in parameters:
            parameter.grad = torch.randn_like(parameter, requires_grad=False)
        optimizer.step()
    hidden = hidden_weights([flows["muon"]])
    assert [tuple(weight.shape) for weight in hidden] == [(8, 8)]
    for one, other in zip(flows["adamw"].parameters(), flows["muon"].parameters(), strict=True):
        assert torch.equal(one, other) != (other in hidden)
    torch.manual_seed(0)
    start = MAF(3, layers=1, hidden=(8, 8)).parameters()
    before = dict(zip(flows["muon"].parameters(), start, strict=True))
    (weight,) = hidden
    # m = (1 - μ) g and u = (1 - μ) g + μ m: a multiple of g, whose size does not count.
    step = -0.01 * 0.2 * 8**0.5 * orthogonalised(weight.grad.unsqueeze(0))[0]
    expected = (1 - 0.01 * 0.1) * before[weight].detach() + step
    torch.testing.assert_close(weight.detach(), expected)


def test_muon_goes_on_from_its_state_bit_for_bit():
    def steps(optimizer, weight, numbers):
        for number in numbers:
            weight.grad = torch.full((5, 5), 0.1).fill_diagonal_(number)
            optimizer.step()

    weights = [torch.nn.Parameter(torch.eye(5)) for _ in range(2)]
    groups = [[{"params": [w], "hidden": True, "weight_decay": 0.0}] for w in weights]
    whole, first = (Muon(group, lr=0.1) for group in groups)
    steps(whole, weights[0], range(6))
    steps(first, weights[1], range(3))
    second = Muon(groups[1], lr=0.1)
    second.load_state_dict(first.state_dict())
    steps(second, weights[1], range(3, 6))
    assert torch.equal(*weights)


@pytest.mark.parametrize(
    ("network", "count"),
    [
        (FFJORD(2, hidden=(4, 5, 6), layer="hyper"), 2),
        (FFJORD(2, hidden=(4, 5, 6), layer="film"), 2),
        (ResidualField(2, width=4, blocks=3), 6),
        (RealNVP(2, layers=2, hidden=(4, 4)), 2),
        (MAF(2, layers=2, hidden=(4,)), 0),
    ],
)
def test_networks_name_their_hidden_matrices(network, count):
    assert len(hidden_weights([network])) == count


def test_muon_without_hidden_matrices_is_refused_and_as_the_usual_one_left():
    flow, rows = FFJORD(2, hidden=(4,)), torch.randn(64, 2)
    with pytest.raises(ValueError, match="hidden_weights"):
        fit(flow, rows, optimizer="muon", steps=1, **QUIET)
    fit(flow, rows, objective="flow_matching", steps=1, **QUIET)
    with pytest.raises(ValueError, match=r"adamw, muon.*'adam'"):
        fit(flow, rows, optimizer="adam", steps=1, **QUIET)


def test_an_objective_brings_settings_and_the_caller_has_the_last_word():
    def trained(**settings):
        torch.manual_seed(0)
        flow = Flow(ODEBijector(ResidualField(2, width=4, blocks=1)))
        fit(flow, torch.randn(64, 2), steps=12, batch_size=16, **settings, **QUIET)
        return torch.cat([p.detach().flatten() for p in flow.parameters()])

    brought = trained(objective="flow_matching")
    told = {"learning_rate": 5e-3, "optimizer": "muon", "ema": 0.999}
    assert torch.equal(brought, trained(objective="flow_matching", **told))
    for other in ({"learning_rate": 1e-3}, {"optimizer": "adamw"}, {"ema": 0}, {"warmup": 9}):
        assert not torch.equal(brought, trained(objective="flow_matching", **other))
