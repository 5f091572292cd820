from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from zoo import ForeignField, perturbed

from cflows import MLP
from cflows.divergence import divergence_is_cheap, draw_probe, value_and_divergence
from cflows.fields import ACTIVATIONS, LAYERS

D, C, N = 4, 3, 6


def field(layer="concatsquash", activation="tanh", hidden=(7, 5), context=0):
    return perturbed(
        MLP(D, context_features=context, hidden=hidden, layer=layer, activation=activation)
    )


def inputs(context=0):
    x = torch.randn(N, D, dtype=torch.float64)
    return x, (torch.randn(N, context, dtype=torch.float64) if context else None)


def jacobians(f, t, x, c):
    """One row at a time, by autograd: the judge."""
    rows = []
    for k in range(len(x)):
        ck = None if c is None else c[k : k + 1]
        tk = t if t.dim() == 0 else t[k : k + 1]
        rows.append(
            torch.autograd.functional.jacobian(lambda v: f(tk, v[None], ck)[0], x[k])  # noqa: B023
        )
    return torch.stack(rows)


def test_concat_layer_is_ffjords():
    layer = perturbed(LAYERS["concat"](3, 2))
    h, t = torch.randn(5, 3, dtype=torch.float64), torch.tensor(0.3, dtype=torch.float64)
    weight = torch.cat([layer.time_weight[:, None], layer.weight], dim=1)
    expected = F.linear(torch.cat([t.expand(5, 1), h], dim=1), weight, layer.bias)
    torch.testing.assert_close(layer(t, h), expected)


def test_concatsquash_layer_is_ffjords():
    layer = perturbed(LAYERS["concatsquash"](3, 2))
    h, t = torch.randn(5, 3, dtype=torch.float64), torch.tensor(0.3, dtype=torch.float64)
    gate = torch.sigmoid(layer.gate_weight * t + layer.gate_bias)
    expected = F.linear(h, layer.weight, layer.bias) * gate + layer.time_weight * t
    torch.testing.assert_close(layer(t, h), expected)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_slopes_of_activations(name):
    activate, with_slope = ACTIVATIONS[name]
    a = torch.linspace(-30, 30, 101, dtype=torch.float64, requires_grad=True)
    value, slope = with_slope(a)
    torch.testing.assert_close(value, activate(a))
    torch.testing.assert_close(slope, torch.autograd.grad(activate(a).sum(), a)[0])


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("context", [0, C])
def test_frozen_at_many_times_is_the_field_at_each(layer, context):
    f = field(layer, context=context)
    x, c = inputs(context)
    times = torch.tensor([0.0, 0.4, 1.0], dtype=torch.float64)
    for t, frozen in zip(times, f.at(times, c, scale=torch.tensor(2.0)), strict=True):
        torch.testing.assert_close(frozen(x), 2 * f(t, x, c))


@pytest.mark.parametrize("layer", LAYERS)
def test_time_may_differ_by_row(layer):
    f = field(layer, context=C)
    x, c = inputs(C)
    t = torch.rand(N, dtype=torch.float64)
    rows = [f(t[k], x[k : k + 1], c[k : k + 1]) for k in range(N)]
    torch.testing.assert_close(f(t, x, c), torch.cat(rows))


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("hidden", [(7,), (7, 5), (7, 5, 6), (2,), (3, 2, 5, 4)])
@pytest.mark.parametrize("context", [0, C])
@pytest.mark.parametrize("by_row", [False, True])
def test_exact_trace_is_the_jacobians(layer, activation, hidden, context, by_row):
    f = field(layer, activation, hidden, context)
    x, c = inputs(context)
    t = torch.rand(N if by_row else (), dtype=torch.float64)
    value, trace = value_and_divergence(f, t, x, c)
    torch.testing.assert_close(value, f(t, x, c))
    expected = jacobians(f, t, x, c).diagonal(dim1=1, dim2=2).sum(-1)
    torch.testing.assert_close(trace, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("context", [0, C])
def test_exact_trace_of_a_foreign_module(context):
    f = perturbed(ForeignField(D, context))
    x, c = inputs(context)
    t = torch.tensor(0.3, dtype=torch.float64)
    value, trace = value_and_divergence(f, t, x, c)
    torch.testing.assert_close(value, f(t, x, c))
    expected = jacobians(f, t, x, c).diagonal(dim1=1, dim2=2).sum(-1)
    torch.testing.assert_close(trace, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("foreign", [False, True])
@pytest.mark.parametrize("count", [1, 3])
def test_hutchinson_is_the_quadratic_form_of_its_probe(foreign, count):
    f = perturbed(ForeignField(D, 0)) if foreign else field()
    x, _ = inputs()
    t = torch.tensor(0.3, dtype=torch.float64)
    probe = draw_probe(x, "gaussian", count)
    _, trace = value_and_divergence(f, t, x, None, probe)
    expected = torch.einsum("knd,nde,kne->kn", probe, jacobians(f, t, x, None), probe).mean(0)
    torch.testing.assert_close(trace, expected)


@pytest.mark.parametrize("kind", ["rademacher", "gaussian"])
def test_hutchinson_is_unbiased_with_the_variance_of_the_theory(kind):
    f = field()
    row, t = torch.randn(1, D, dtype=torch.float64), torch.tensor(0.3, dtype=torch.float64)
    n = 100_000
    x = row.expand(n, -1)
    _, estimates = value_and_divergence(f, t, x, None, draw_probe(x, kind))
    jacobian = jacobians(f, t, row, None)[0]
    symmetric = (jacobian + jacobian.T) / 2
    variance = 2 * symmetric.square().sum()
    if kind == "rademacher":
        variance = variance - 2 * symmetric.diagonal().square().sum()
    error = (variance / n).sqrt()
    assert (estimates.mean() - jacobian.trace()).abs() < 4 * error
    assert estimates.var().item() == pytest.approx(variance.item(), rel=0.05)


def test_probes():
    x = torch.zeros(1000, D)
    signs = draw_probe(x, "rademacher", 2)
    assert signs.shape == (2, 1000, D)
    assert set(signs.unique().tolist()) == {-1.0, 1.0}
    assert signs.mean().abs() < 0.05
    assert draw_probe(x.double(), "gaussian").dtype == torch.float64


@pytest.mark.parametrize("foreign", [False, True])
@pytest.mark.parametrize("probe", [False, True])
def test_divergence_carries_gradients_and_none_under_no_grad(foreign, probe):
    f = perturbed(ForeignField(D, 0)) if foreign else field()
    x, _ = inputs()
    t = torch.tensor(0.3, dtype=torch.float64)
    eps = draw_probe(x) if probe else None
    x.requires_grad_()
    value, trace = value_and_divergence(f, t, x, None, eps)
    (gradient,) = torch.autograd.grad(trace.sum(), x, retain_graph=True)
    assert gradient.abs().max() > 0
    step = 1e-6
    shifted = [
        value_and_divergence(f, t, x.detach() + sign * step, None, eps)[1].sum() for sign in (1, -1)
    ]
    numeric = (shifted[0] - shifted[1]) / (2 * step)
    assert gradient.sum().item() == pytest.approx(float(numeric.detach()), rel=1e-4, abs=1e-7)
    assert torch.autograd.grad(trace.sum(), list(f.parameters()), allow_unused=True)[0] is not None
    with torch.no_grad():
        value, trace = value_and_divergence(f, t, x.detach(), None, eps)
    assert value.grad_fn is None
    assert trace.grad_fn is None


def test_a_field_that_ignores_x_has_no_divergence():
    _, trace = value_and_divergence(
        lambda t, x, context: torch.ones_like(x), torch.tensor(0.0), torch.zeros(3, 2)
    )
    assert trace.tolist() == [0.0] * 3


def test_when_the_exact_trace_is_cheap():
    assert divergence_is_cheap(MLP(50, hidden=(8,)), rows=10)
    assert divergence_is_cheap(MLP(50, hidden=(8, 8)), rows=50)
    assert not divergence_is_cheap(MLP(50, hidden=(8, 8)), rows=49)
    assert not divergence_is_cheap(MLP(2, hidden=(8, 8, 8)), rows=1000)
    assert not divergence_is_cheap(ForeignField(2, 0), rows=1000)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"layer": "concatenate"}, "layer must be one of concat, concatsquash"),
        ({"activation": "sigmoid"}, "activation must be one of tanh, softplus"),
        ({"hidden": ()}, "hidden must list"),
    ],
)
def test_bad_arguments(arguments, words):
    with pytest.raises(ValueError, match=words):
        MLP(2, **arguments)
