from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm
from zoo import ForeignField, perturbed

from cflows import MLP, Adaptive, FixedGrid, Flow, ODEBijector
from cflows.continuous.divergence import (
    draw_probes,
    exact_is_cheap,
    linearize,
    orthonormal_probes,
    value_and_divergence,
)
from cflows.continuous.foreign import twice_differentiable
from cflows.continuous.layers import ACTIVATIONS, LAYERS, TimeFeatures

D, C, N = 4, 3, 6


def field(layer="concatsquash", activation="tanh", hidden=(7, 5), context=0, **more):
    return perturbed(
        MLP(D, context_features=context, hidden=hidden, layer=layer, activation=activation, **more)
    )


def applied(layer, t, h):
    """A layer at one time, as its equation reads."""
    phi = t.reshape(1)
    gate, shift = layer.coefficients(phi)
    value = h @ layer.weight_at(phi).T
    return (value if gate is None else gate * value) + shift


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
    weight = torch.cat([layer.time_weight, layer.weight], dim=1)
    expected = F.linear(torch.cat([t.expand(5, 1), h], dim=1), weight, layer.bias)
    torch.testing.assert_close(applied(layer, t, h), expected)


def test_concatsquash_layer_is_ffjords():
    layer = perturbed(LAYERS["concatsquash"](3, 2))
    h, t = torch.randn(5, 3, dtype=torch.float64), torch.tensor(0.3, dtype=torch.float64)
    gate = torch.sigmoid(layer.gate_weight[:, 0] * t + layer.gate_bias)
    expected = F.linear(h, layer.weight, layer.bias) * gate + layer.time_weight[:, 0] * t
    torch.testing.assert_close(applied(layer, t, h), expected)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_slopes_of_activations(name):
    activation = perturbed(ACTIVATIONS[name]())
    a = torch.linspace(-30, 30, 102, dtype=torch.float64, requires_grad=True)
    value, slope = activation.value_and_slope(a)
    torch.testing.assert_close(value, activation(a))
    torch.testing.assert_close(slope, torch.autograd.grad(activation(a).sum(), a)[0])


def test_the_layers_of_the_ffjord_code_that_have_no_test_of_their_own():
    t, h = torch.tensor(0.3, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    ignore, squash, blend, hyper, film = (
        perturbed(LAYERS[name](3, 2)) for name in ("ignore", "squash", "blend", "hyper", "film")
    )
    torch.testing.assert_close(applied(ignore, t, h), F.linear(h, ignore.weight, ignore.bias))
    gate = torch.sigmoid(squash.gate_weight[:, 0] * t + squash.gate_bias)
    expected = F.linear(h, squash.weight, squash.bias) * gate
    torch.testing.assert_close(applied(squash, t, h), expected)
    early = F.linear(h, blend.weight, blend.bias)
    late = F.linear(h, blend.late_weight, blend.late_bias)
    torch.testing.assert_close(applied(blend, t, h), early + t * (late - early))
    weight = hyper.weight + t * hyper.weight_slope[0]
    expected = F.linear(h, weight, hyper.bias + t * hyper.time_weight[:, 0])
    torch.testing.assert_close(applied(hyper, t, h), expected)
    gate = 1 + t * film.gate_weight[:, 0]
    expected = gate * (h @ film.weight.T) + film.bias + t * film.time_weight[:, 0]
    torch.testing.assert_close(applied(film, t, h), expected)


def test_time_features():
    t = torch.tensor([0.0, 0.25], dtype=torch.float64)
    features = TimeFeatures(2).double()(t)
    expected = torch.stack(
        [t] + [f(k * torch.pi * t) for f in (torch.sin, torch.cos) for k in (1, 2)], dim=1
    )
    torch.testing.assert_close(features, expected, rtol=0, atol=1e-7)
    assert TimeFeatures(0)(t).tolist() == [[0.0], [0.25]]


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
    probe = draw_probes(x, "gaussian", count)
    _, trace = value_and_divergence(f, t, x, None, probe)
    expected = torch.einsum("knd,nde,kne->n", probe, jacobians(f, t, x, None), probe)
    torch.testing.assert_close(trace, expected)


@pytest.mark.parametrize("kind", ["rademacher", "gaussian"])
def test_hutchinson_is_unbiased_with_the_variance_of_the_theory(kind):
    f = field()
    row, t = torch.randn(1, D, dtype=torch.float64), torch.tensor(0.3, dtype=torch.float64)
    n = 100_000
    x = row.expand(n, -1)
    _, estimates = value_and_divergence(f, t, x, None, draw_probes(x, kind))
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
    signs = draw_probes(x, "rademacher", 2)
    assert signs.shape == (2, 1000, D)
    assert set(draw_probes(x, "rademacher", 4).unique().tolist()) == {-0.5, 0.5}
    assert signs.mean().abs() < 0.05
    assert draw_probes(x.double(), "gaussian").dtype == torch.float64


@pytest.mark.parametrize("foreign", [False, True])
@pytest.mark.parametrize("probe", [False, True])
def test_divergence_carries_gradients_and_none_under_no_grad(foreign, probe):
    f = perturbed(ForeignField(D, 0)) if foreign else field()
    x, _ = inputs()
    t = torch.tensor(0.3, dtype=torch.float64)
    eps = draw_probes(x) if probe else None
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
    assert exact_is_cheap(MLP(50, hidden=(8,)), rows=1)
    assert exact_is_cheap(MLP(50, hidden=(64, 64)), rows=100)
    assert not exact_is_cheap(MLP(50, hidden=(64, 64)), rows=10)
    assert exact_is_cheap(MLP(2, hidden=(64, 64, 64)), rows=1000)
    assert not exact_is_cheap(MLP(6, hidden=(60, 60, 60)), rows=1000)
    assert exact_is_cheap(MLP(6, hidden=(60, 60, 60)), rows=1000, probes=4)
    assert not exact_is_cheap(ForeignField(2, 0), rows=1000)


@pytest.mark.parametrize("layer", ["concatsquash", "film", "hyper"])
@pytest.mark.parametrize("hidden", [(7,), (7, 5), (7, 3, 6)])
@pytest.mark.parametrize(
    "more",
    [
        {"time_frequencies": 2},
        {"residual": True},
        {"residual": "normal", "time_frequencies": 1},
        {"context": C, "context_mode": "gate"},
        {"context": C, "context_mode": "gate", "residual": True, "time_frequencies": 1},
        {"spectral": True},
    ],
)
def test_options_of_the_field(layer, hidden, more):
    f = field(layer, hidden=hidden, **more)
    x, c = inputs(more.get("context", 0))
    for t in (torch.rand((), dtype=torch.float64), torch.rand(N, dtype=torch.float64)):
        value, trace = value_and_divergence(f, t, x, c)
        jacobian = jacobians(f, t, x, c)
        expected = jacobian.diagonal(dim1=1, dim2=2).sum(-1)
        torch.testing.assert_close(trace, expected, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(value, f(t, x, c))
        local = linearize(f.frozen(t, c), x)
        v = torch.randn(2, N, D, dtype=torch.float64)
        torch.testing.assert_close(
            local.products(v), torch.einsum("nij,knj->kni", jacobian, v), rtol=1e-9, atol=1e-10
        )
        torch.testing.assert_close(local.diagonal(), jacobian.diagonal(dim1=1, dim2=2))
    if c is not None:
        assert (f(t, x, c) - f(t, x, 2 * c)).abs().min() > 0


def test_the_linear_part_takes_a_normal_to_itself(dtype):
    """E[x₁ - x₀ | x_t] of independent normals, whose flow over [0, 1] is the identity."""
    flow = ODEBijector(MLP(2, hidden=(4,), residual="normal")).to(dtype).eval()
    with torch.no_grad():
        for parameter in flow.field.layers[-1].parameters():
            parameter.zero_()
    x = torch.randn(5, 2, dtype=dtype)
    z, log_det = flow.inverse_and_log_det(x)
    torch.testing.assert_close(z, x, rtol=0, atol=1e-4)
    torch.testing.assert_close(log_det, torch.zeros_like(log_det), rtol=0, atol=1e-4)
    t = torch.tensor([0.0, 0.3, 0.5, 0.8, 1.0], dtype=dtype)
    covariance, variance = 2 * t - 1, t**2 + (1 - t) ** 2
    torch.testing.assert_close(flow.field(t, x), (covariance / variance)[:, None] * x)
    with pytest.raises(ValueError, match="residual"):
        MLP(2, residual="linear")


def test_residual_subtracts_the_state():
    x, _ = inputs()
    t = torch.tensor(0.3, dtype=torch.float64)
    plain, residual = field(), field(residual=True)
    residual.load_state_dict(plain.state_dict())
    torch.testing.assert_close(residual(t, x), plain(t, x) - x)


def test_spectral_norm_bounds_the_weights():
    f = MLP(D, hidden=(16, 16), spectral=True)
    for layer in f.layers:
        layer.parametrizations.weight.original.data.mul_(50)
    for _ in range(50):  # the power iteration of training
        f(torch.tensor(0.0), torch.zeros(1, D))
    for layer in f.eval().layers:
        assert torch.linalg.matrix_norm(layer.weight, 2) < 1.01


def test_a_solve_keeps_its_normalised_weights_from_other_threads():
    """A solve without a gradient stands still in one thread while another one trains."""
    started, over = threading.Event(), threading.Event()
    main = threading.current_thread()

    class Waiting(ForeignField):
        def forward(self, t, x, context=None):
            velocity = super().forward(t, x, context)
            if threading.current_thread() is not main:
                started.set()
                over.wait(10)
            return velocity

    f = Waiting(D, 0)
    layer = spectral_norm(next(part for part in f.modules() if isinstance(part, nn.Linear)))
    flow, same = (Flow(ODEBijector(f, training_solver=Adaptive("dopri5"))) for _ in range(2))
    x = torch.randn(N, D)
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(same.sample, 3)
        try:
            assert started.wait(10)
            before = layer.weight
            flow.log_prob(x).sum().backward()
            with torch.no_grad():
                layer.parametrizations.weight.original += torch.randn_like(layer.weight)
            assert not torch.equal(layer.weight, before)
        finally:
            over.set()
        assert other.result().isfinite().all()
    assert layer.parametrizations.weight.original.grad.abs().max() > 0


def test_tangents_go_in_chunks_with_the_same_answer_and_gradient(monkeypatch):
    f = field(hidden=(7, 6, 5))
    x, _ = inputs()
    t = torch.tensor(0.3, dtype=torch.float64)
    results = []
    for chunk in (2**24, 2 * N * 7):
        monkeypatch.setattr("cflows.continuous.fields.CHUNK", chunk)
        f.zero_grad()
        _, trace = value_and_divergence(f, t, x)
        trace.square().sum().backward()
        results.append(
            [trace.detach(), *(p.grad.clone() for p in f.parameters() if p.grad is not None)]
        )
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


def test_the_narrowest_layer_bounds_the_tangents(monkeypatch):
    seen = []
    from cflows.continuous import fields

    original = fields.pushforward
    monkeypatch.setattr(
        fields,
        "pushforward",
        lambda weights, diagonals, v: seen.append(len(v)) or original(weights, diagonals, v),
    )
    f = field(hidden=(9, 2, 9))
    x, _ = inputs()
    t = torch.tensor(0.3, dtype=torch.float64)
    _, trace = value_and_divergence(f, t, x)
    assert seen == [2]
    expected = jacobians(f, t, x, None).diagonal(dim1=1, dim2=2).sum(-1)
    torch.testing.assert_close(trace, expected)


@pytest.mark.parametrize("foreign", [False, True])
def test_hutch_plus_plus_is_unbiased_with_less_variance(foreign):
    f = perturbed(ForeignField(D, 0)) if foreign else field(hidden=(2, 2))
    row, t = torch.randn(1, D, dtype=torch.float64), torch.tensor(0.3, dtype=torch.float64)
    n = 20_000
    x = row.expand(n, -1).contiguous()
    at = (lambda s: f(t, s, None)) if foreign else f.frozen(t)
    probes = orthonormal_probes(at, x, count=4)
    assert not probes.requires_grad
    assert probes.shape == (4, n, D)
    second = torch.einsum("knd,kne->de", probes, probes) / n
    torch.testing.assert_close(second, torch.eye(D).double(), rtol=0, atol=0.05)
    _, estimates = value_and_divergence(f, t, x, None, probes)
    _, plain = value_and_divergence(f, t, x, None, draw_probes(x, count=4))
    exact = jacobians(f, t, row, None)[0].trace()
    assert (estimates.mean() - exact).abs() < 4 * estimates.std() / n**0.5 + 1e-9
    if not foreign:
        # J has rank two, and Q spans it: nothing is left to estimate.
        assert estimates.std() < 1e-8
    assert estimates.std() < 0.8 * plain.std()


def test_a_field_with_a_forward_of_its_own_is_not_taken_apart():
    class Damped(MLP):
        def forward(self, t, x, context=None):
            return super().forward(t, x, context) - 5 * x

    x, _ = inputs()
    t = torch.tensor(0.3, dtype=torch.float64)
    f = perturbed(Damped(D, hidden=(7, 5)))
    value, trace = value_and_divergence(f, t, x)
    torch.testing.assert_close(value, f(t, x))
    expected = jacobians(f, t, x, None).diagonal(dim1=1, dim2=2).sum(-1)
    torch.testing.assert_close(trace, expected)
    calls = []
    watched = field()
    watched.register_forward_hook(lambda *_: calls.append(1))
    value_and_divergence(watched, t, x)
    assert calls


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"layer": "concatenate"}, "layer must be one of ignore, concat, squash"),
        ({"activation": "sigmoid"}, "activation must be one of tanh, softplus, elu, silu, sin"),
        ({"hidden": ()}, "hidden must list"),
        ({"context_mode": "film"}, "context_mode must be one of additive, gate"),
        ({"time_frequencies": -1}, "time_frequencies must be at least 0"),
    ],
)
def test_bad_arguments(arguments, words):
    with pytest.raises(ValueError, match=words):
        MLP(2, **arguments)


class Convolution(nn.Module):
    """A field of images, written for a scalar time."""

    features = 16

    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(3, 1, 3, padding=1)

    def forward(self, t, x, context=None):
        h = torch.cat([x.view(-1, 1, 4, 4), t.expand(len(x), 1, 4, 4)], 1)
        return self.outer(torch.tanh(self.inner(h))).flatten(1)


@pytest.mark.parametrize("at_once", [1, 5])
def test_products_of_a_foreign_module_go_in_chunks(monkeypatch, at_once):
    f = perturbed(Convolution())
    t = torch.tensor(0.3, dtype=torch.float64)
    x = torch.randn(N, 16, dtype=torch.float64, requires_grad=True)
    probes = draw_probes(x, count=7)
    sizes = []
    whole = torch.autograd.grad
    results = []
    for chunk in (2**21, at_once * N * 16):
        monkeypatch.setattr("cflows.continuous.foreign.CHUNK", chunk)
        value, trace = value_and_divergence(f, t, x)
        gradients = whole(trace.square().sum() + value.sin().sum(), [x, *f.parameters()])
        with torch.no_grad(), monkeypatch.context() as patch:
            patch.setattr(
                torch.autograd,
                "grad",
                lambda y, x, v, **k: sizes.append(v.numel() // x.numel()) or whole(y, x, v, **k),
            )
            without = value_and_divergence(f, t, x)
            estimated = value_and_divergence(f, t, x, None, probes)
        results.append([value, trace, *gradients, *without, *estimated])
    assert sizes[:2] == [16, 7]
    assert max(sizes[2:]) == at_once
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


class Attention(nn.Module):
    """A field whose attention would take a fused kernel, which has one derivative."""

    features = 12

    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Linear(4, 16), nn.Linear(16, 3)
        self.attention = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)

    def forward(self, t, x, context=None):
        h = torch.cat([x.view(-1, 4, 3), t.expand(len(x), 4, 1)], -1)
        return self.outer(self.attention(self.inner(h))).flatten(1)


def test_fused_attention_is_back_when_the_last_thread_is_done():
    enabled = torch.backends.cuda.flash_sdp_enabled
    before = enabled()
    one, other = twice_differentiable(), twice_differentiable()
    one.__enter__()
    other.__enter__()
    one.__exit__(None, None, None)
    assert not enabled()
    other.__exit__(None, None, None)
    assert enabled() == before


@pytest.mark.parametrize("probe", [False, True])
def test_attention_can_be_differentiated_twice(probe):
    f = perturbed(Attention(), torch.float32)
    x, t = torch.randn(5, 12), torch.tensor(0.3)
    before = torch.backends.cuda.flash_sdp_enabled()
    value, trace = value_and_divergence(f, t, x, None, draw_probes(x) if probe else None)
    (value.sum() + trace.sum()).backward()
    assert all(p.grad is not None for p in f.attention.parameters())
    assert torch.backends.cuda.flash_sdp_enabled() == before
    if not probe:
        expected = jacobians(f, t, x, None).diagonal(dim1=1, dim2=2).sum(-1)
        torch.testing.assert_close(trace, expected, rtol=1e-4, atol=1e-4)


class Normed(nn.Module):
    """A field with a norm between its layers."""

    features = 4

    def __init__(self, norm):
        super().__init__()
        self.inner, self.norm, self.outer = nn.Linear(5, 8), norm, nn.Linear(8, 4)

    def forward(self, t, x, context=None):
        h = self.inner(torch.cat([x, t.expand(len(x), 1)], 1))
        return self.outer(torch.tanh(self.norm(h)))


@pytest.mark.parametrize("norm", [nn.GroupNorm(2, 8), nn.GroupNorm(4, 8), nn.LayerNorm(8)])
def test_layers_whose_gradients_torch_cannot_batch(norm):
    f = perturbed(Normed(norm))
    x, t = torch.randn(N, 4, dtype=torch.float64), torch.tensor(0.3, dtype=torch.float64)
    _, trace = value_and_divergence(f, t, x)
    gradient = torch.autograd.grad(trace.sum(), f.inner.weight)[0]
    expected = jacobians(f, t, x, None).diagonal(dim1=1, dim2=2).sum(-1)
    torch.testing.assert_close(trace, expected, rtol=1e-9, atol=1e-9)
    probes = torch.eye(4).double().unsqueeze(1).expand(4, N, 4)
    one_by_one = sum(value_and_divergence(f, t, x, None, v[None])[1].sum() for v in probes)
    torch.testing.assert_close(torch.autograd.grad(one_by_one, f.inner.weight)[0], gradient)


def test_norms_that_follow_the_batch_are_refused_by_transforms():
    flow = Flow(ODEBijector(Normed(nn.BatchNorm1d(8)), evaluation_solver=FixedGrid("rk4", 2)))
    score = torch.func.grad(lambda x: flow.log_prob(x).sum())
    x = torch.randn(N, 4)
    with flow.using(solver=FixedGrid("rk4", 2)):
        with pytest.raises(
            RuntimeError, match=r"norm \(BatchNorm1d\) updates.*call eval"
        ) as caught:
            score(x)
        assert "\n" not in str(caught.value)
        flow.eval()
        assert score(x).isfinite().all()
