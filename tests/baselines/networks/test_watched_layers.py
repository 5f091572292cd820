"""Layers that carry hooks, or that stand in a layer's place, are called and not read."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm
from zoo import perturbed

from baselines import IAF, MADE, MAF, NSF, RealNVP, ResidualFlow
from baselines.networks.masked_linear import MaskedLinear
from cflows import FFJORD, MLP, FixedGrid
from cflows.continuous.layers import LAYERS

SMALL = {"layers": 2, "hidden": (8, 8), "activation": "silu"}
FLOWS = {
    "realnvp": lambda: RealNVP(3, **SMALL),
    "realnvp-context": lambda: RealNVP(3, context_features=2, **SMALL),
    "maf": lambda: MAF(3, **SMALL),
    "maf-context": lambda: MAF(3, context_features=2, **SMALL),
    "maf-residual": lambda: MAF(3, residual=True, **SMALL),
    "maf-mog": lambda: MAF(3, components=2, **SMALL),
    "iaf": lambda: IAF(3, **SMALL),
    "iaf-jacobi": lambda: IAF(3, inversion="jacobi", **SMALL),
    "nsf": lambda: NSF(3, **SMALL),
    "nsf-autoregressive": lambda: NSF(3, passes="autoregressive", **SMALL),
}
CHANGES = {
    "weight_norm": pytest.param(
        weight_norm, marks=pytest.mark.filterwarnings("ignore:.torch.nn.utils.weight_norm")
    ),
    "spectral_norm": spectral_norm,
    "prune": lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
    "parametrize": parametrizations.weight_norm,
}


FIELDS = {
    **{layer: {"layer": layer} for layer in LAYERS},
    "silu": {"activation": "silu", "layer": "film", "time_frequencies": 2},
    "residual": {"activation": "softplus", "residual": True},
    "gate": {"context_features": 2, "context_mode": "gate"},
    "additive": {"context_features": 2, "activation": "silu"},
}


class LowRank(nn.Module):
    """An adapter: the layer as it was, and a factored change that is trained."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer.requires_grad_(False)
        dtype = layer.weight.dtype
        self.down = nn.Parameter(torch.randn(1, layer.in_features, dtype=dtype))
        self.up = nn.Parameter(torch.zeros(layer.out_features, 1, dtype=dtype))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) + x @ self.down.mT @ self.up.mT


def linears(flow: nn.Module) -> list[nn.Module]:
    return [part for part in flow.modules() if isinstance(part, nn.Linear | MaskedLinear)]


def given(flow) -> tuple[torch.Tensor, torch.Tensor | None]:
    x = torch.randn(5, 3, dtype=torch.float64)
    return x, torch.randn(5, 2, dtype=torch.float64) if flow.context_features else None


@pytest.mark.parametrize("name", FLOWS)
def test_hooks_fire_and_change_nothing(name):
    flow = perturbed(FLOWS[name]())
    x, context = given(flow)
    expected = flow.log_prob(x, context), flow.bijector(x, context)
    fired = set()
    for layer in linears(flow):
        layer.register_forward_hook(lambda layer, *_: fired.add(layer))
    found = flow.log_prob(x, context), flow.bijector(x, context)
    torch.testing.assert_close(found, expected)
    assert fired == set(linears(flow))


@pytest.mark.parametrize("name", [name for name in FLOWS if "maf" in name or "auto" in name])
def test_hooks_of_whole_networks_fire_and_their_answers_are_taken(name):
    flow = perturbed(FLOWS[name]())
    x, context = given(flow)
    expected = flow.log_prob(x, context), flow.bijector(x, context)
    torch.manual_seed(0)
    drawn, fired = flow.sample(4, context), []
    mades = [part for part in flow.modules() if isinstance(part, MADE)]
    for made in mades:
        made.register_forward_hook(lambda made, *_: fired.append(made))
    found = flow.log_prob(x, context), flow.bijector(x, context)
    torch.testing.assert_close(found, expected)
    assert set(fired) == set(mades)
    fired.clear()
    torch.manual_seed(0)
    torch.testing.assert_close(flow.sample(4, context), drawn)
    assert set(fired) == set(mades)
    for made in mades:
        made.register_forward_hook(lambda made, inputs, out: tuple(2 * part for part in out))
    assert not torch.equal(flow.log_prob(x, context), expected[0])
    torch.testing.assert_close(flow.bijector.inverse(flow.bijector(x, context), context), x)


@pytest.mark.parametrize("register", ["register_forward_pre_hook", "register_full_backward_hook"])
def test_other_hooks_fire_too(register):
    flow, fired = perturbed(MAF(3, **SMALL)), []
    for layer in linears(flow):
        getattr(layer, register)(lambda *_: fired.append(1) and None)
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    flow.log_prob(x).sum().backward()
    assert len(fired) == len(linears(flow))


def test_hooks_of_all_modules_fire():
    flow, fired = perturbed(RealNVP(3, **SMALL)), set()
    handle = register_module_forward_hook(lambda layer, *_: fired.add(layer))
    try:
        flow.log_prob(torch.randn(5, 3, dtype=torch.float64))
    finally:
        handle.remove()
    assert fired >= set(linears(flow))


@pytest.mark.parametrize("change", CHANGES.values(), ids=list(CHANGES))
@pytest.mark.parametrize("name", FLOWS)
def test_computed_weights_are_trained(name, change):
    flow = perturbed(FLOWS[name]())
    x, context = given(flow)
    for layer in linears(flow):
        change(layer)
    flow.train()
    before = copy.deepcopy(dict(flow.named_parameters()))
    optimiser = torch.optim.Adam(flow.parameters(), 1e-2)
    for _ in range(3):
        optimiser.zero_grad()
        (-flow.log_prob(x, context).mean()).backward()
        optimiser.step()
    flow.eval()
    for name, parameter in flow.named_parameters():
        assert not torch.equal(parameter, before[name]), name
    with torch.no_grad():
        drawn = flow.bijector(x, context)
        back = flow.bijector.inverse(drawn, context)
    torch.testing.assert_close(back, x)


@pytest.mark.parametrize("name", ["realnvp", "nsf"])
def test_layers_may_be_replaced(name):
    flow = perturbed(FLOWS[name]())
    x, _ = given(flow)
    expected = flow.log_prob(x)
    for part in list(flow.modules()):
        for key, layer in list(part.named_children()):
            if type(layer) is nn.Linear:
                setattr(part, key, LowRank(layer))
    torch.testing.assert_close(flow.log_prob(x), expected)
    flow.log_prob(x).sum().backward()
    trained = [p for p in flow.parameters() if p.requires_grad]
    assert trained
    assert all(p.grad is not None for p in trained)


def test_a_contraction_refuses_what_it_cannot_read():
    flow = perturbed(ResidualFlow(3, layers=1, hidden=(8,)))
    linears(flow)[0].register_forward_hook(lambda *_: None)
    with pytest.raises(TypeError, match="take the hooks off") as caught:
        flow.log_prob(torch.zeros(1, 3, dtype=torch.float64))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("settings", FIELDS.values(), ids=list(FIELDS))
@pytest.mark.parametrize("own_times", [False, True])
def test_a_field_by_calls_is_the_field(settings, own_times):
    field = perturbed(MLP(3, hidden=(8, 6), **settings))
    x = torch.randn(5, 3, dtype=torch.float64)
    t = torch.rand(5 if own_times else (), dtype=torch.float64)
    context = torch.randn(5, 2, dtype=torch.float64) if field.context_features else None
    expected, fired = field(t, x, context), set()
    parts = [*field.layers, *field.activations]
    for part in parts:
        part.register_forward_hook(lambda part, *_: fired.add(part))
    torch.testing.assert_close(field(t, x, context), expected)
    assert fired == set(parts)


@pytest.mark.parametrize("change", CHANGES.values(), ids=list(CHANGES))
def test_computed_weights_of_a_field_are_trained(change):
    flow = perturbed(FFJORD(2, hidden=(8, 8), training_solver=FixedGrid("rk4", 2)))
    x = torch.randn(16, 2, dtype=torch.float64)
    expected = flow.log_prob(x)
    fired = []
    handle = (
        flow.bijector.parts[0].field.layers[0].register_forward_hook(lambda *_: fired.append(1))
    )
    torch.testing.assert_close(flow.log_prob(x), expected, rtol=1e-4, atol=1e-4)
    assert fired
    handle.remove()
    for layer in flow.bijector.parts[0].field.layers:
        change(layer)
    before = copy.deepcopy(dict(flow.train().named_parameters()))
    optimiser = torch.optim.Adam(flow.parameters(), 1e-2)
    for _ in range(3):
        optimiser.zero_grad()
        (-flow.log_prob(x).mean()).backward()
        optimiser.step()
    for name, parameter in flow.named_parameters():
        assert not torch.equal(parameter, before[name]), name
