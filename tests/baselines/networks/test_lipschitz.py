from __future__ import annotations

import pytest
import torch
from zoo import perturbed

from baselines import ResidualFlow
from baselines.networks.lipschitz import CONTRACTIVE, LipschitzMLP, spectral_bound


def largest_singular_values(module) -> list[float]:
    """Of the weights that are used, by their singular value decomposition."""
    networks = [part for part in module.modules() if isinstance(part, LipschitzMLP)]
    assert networks
    return [
        float(torch.linalg.svdvals(weight.detach())[0])
        for network in networks
        for weight in network.frozen(_context(network)).weights
    ]


def _context(network: LipschitzMLP) -> torch.Tensor | None:
    if network.context is None:
        return None
    return torch.zeros(1, network.context.in_features, dtype=network.context.weight.dtype)


@pytest.mark.parametrize("shape", [(64, 64), (2, 30), (30, 2), (1, 1), (5, 5)])
@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_the_bound_is_one_and_tight(shape, scale, dtype):
    rank = min(shape)
    flat = torch.linalg.qr(torch.randn(max(shape), rank, dtype=torch.float64))[0].reshape(shape)
    for weight in (torch.randn(shape, dtype=torch.float64), flat):
        weight = (scale * weight).to(dtype)
        exact, bound = torch.linalg.svdvals(weight)[0], spectral_bound(weight)
        assert bound >= exact * (1 - 1e-6)
        assert bound <= exact * (rank ** (1 / 256) + 1e-6)


def test_the_bound_has_the_gradient_of_the_singular_value():
    weight = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    (found,) = torch.autograd.grad(spectral_bound(weight), weight)
    (expected,) = torch.autograd.grad(torch.linalg.svdvals(weight)[0], weight)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    assert torch.autograd.gradcheck(spectral_bound, weight)


def test_zero_weights_are_left_alone_and_learn(dtype):
    network = LipschitzMLP(3, hidden=(8,)).to(dtype)
    x = torch.randn(5, 3, dtype=dtype)
    assert network(x).abs().max() == 0
    (network(x) - 1).square().sum().backward()
    for parameter in network.parameters():
        assert parameter.grad.isfinite().all()
    assert network.layers[-1].weight.grad.abs().max() > 0


@pytest.mark.parametrize("coefficient", [0.5, 0.97])
def test_weights_contract_in_every_state(coefficient, dtype, tmp_path):
    import cflows

    flow = ResidualFlow(3, context_features=2, layers=2, hidden=(16, 16), coefficient=coefficient)
    perturbed(flow, dtype)  # no pass of training since
    assert max(largest_singular_values(flow)) <= coefficient * (1 + 1e-5)
    assert max(largest_singular_values(flow)) > 0.95 * coefficient
    flow.train()
    x, c = torch.randn(50, 3, dtype=dtype), torch.randn(50, 2, dtype=dtype)
    optimiser = torch.optim.Adam(flow.parameters(), lr=0.3)  # far too large: weights run away
    for _ in range(10):
        optimiser.zero_grad()
        (-flow.log_prob(x, c)).mean().backward()
        optimiser.step()
        assert max(largest_singular_values(flow)) <= coefficient * (1 + 1e-5)
    flow.eval()
    assert max(largest_singular_values(flow)) <= coefficient * (1 + 1e-5)
    flow.save(tmp_path / "flow.pt")
    again = cflows.load(tmp_path / "flow.pt")
    assert largest_singular_values(again) == largest_singular_values(flow)


@pytest.mark.parametrize("activation", CONTRACTIVE)
def test_activations_have_slopes_of_at_most_one(activation):
    part = CONTRACTIVE[activation]().double()
    a = torch.linspace(-60, 60, 6001, dtype=torch.float64, requires_grad=True)
    for beta in (-3.0, 0.5, 4.0):
        for parameter in part.parameters():
            torch.nn.init.constant_(parameter, beta)
        value, slope = part.value_and_slope(a)
        (expected,) = torch.autograd.grad(value.sum(), a, create_graph=True)
        torch.testing.assert_close(slope, expected)
        torch.testing.assert_close(part(a), value)
        assert slope.abs().max() <= 1
        assert slope.max() > 0.99


@pytest.mark.parametrize("activation", CONTRACTIVE)
def test_the_network_contracts_in_x_alone(activation):
    network = perturbed(LipschitzMLP(3, context_features=1, hidden=(16, 16), activation=activation))
    x, y = torch.randn(2, 500, 3, dtype=torch.float64)
    c = 100 * torch.randn(500, 1, dtype=torch.float64)
    moved = (network(x, c) - network(y, c)).norm(dim=-1)
    assert (moved <= 0.97**3 * (x - y).norm(dim=-1)).all()
    assert (network(x, c) - network(x, -c)).abs().max() > 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"hidden": ()}, "hidden must list"),
        ({"hidden": (0,)}, "hidden must list"),
        ({"activation": "relu"}, "activation must be one of lipswish, elu, tanh"),
        ({"coefficient": 1.0}, "coefficient must lie in"),
        ({"coefficient": 0.0}, "coefficient must lie in"),
    ],
)
def test_bad_arguments(arguments, words):
    with pytest.raises(ValueError, match=words) as caught:
        ResidualFlow(3, **arguments)
    assert "\n" not in str(caught.value)
