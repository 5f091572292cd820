from __future__ import annotations

import copy
import gc
import subprocess
import sys

import pytest
import torch
from zoo import perturbed

import cflows
from baselines import IAF, MAF, AutoregressiveAffine
from baselines.inversion import degree_sweep as walks
from baselines.inversion.degree_sweep import INVERSIONS
from baselines.transforms.univariate import Additive, AffineScale, UnivariateTransform

KINDS = {
    "plain": {},
    "random": {"order": "random", "hidden_degrees": "random", "activation": "tanh"},
    "residual": {"residual": True, "activation": "elu", "order": "reversed"},
    "context": {"context_features": 2, "activation": "silu"},
    "residual-context": {"context_features": 2, "residual": True, "order": "random"},
    "one-layer": {"hidden": (5,)},
    "wide": {"hidden": (90, 70, 80)},
}


def layer(features: int, conditions_on: str, kind: str, scale: float = 1.0) -> AutoregressiveAffine:
    settings = {"hidden": (12, 12), **KINDS[kind]}
    torch.manual_seed(1)
    made = AutoregressiveAffine(features, conditions_on=conditions_on, **settings)
    generator = torch.Generator().manual_seed(features)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += scale * 0.3 * torch.randn(parameter.shape, generator=generator)
    return made.double()


def solve(f: AutoregressiveAffine, inversion: str, given, context):
    f.inversion = inversion
    slow = f.forward_and_log_det if f.conditions_on == "data" else f.inverse_and_log_det
    return slow(given, context)


def inputs(f: AutoregressiveAffine, rows: int = 7):
    generator = torch.Generator().manual_seed(5)
    given = torch.randn(rows, f.features, generator=generator, dtype=torch.float64)
    c = f.context_features
    context = torch.randn(rows, c, generator=generator, dtype=torch.float64) if c else None
    return given, context


@pytest.mark.parametrize("features", [1, 2, 3, 20, 70])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("conditions_on", ["data", "noise"])
@pytest.mark.parametrize("at_a_time", [7, 96])
def test_all_inversions_give_the_same_values_and_gradients(
    features, kind, conditions_on, at_a_time, monkeypatch
):
    monkeypatch.setattr(walks, "UNITS_AT_A_TIME", at_a_time)
    f = layer(features, conditions_on, kind, scale=min(1.0, 4 / features))
    given, context = inputs(f)
    leaves = [given.requires_grad_(), *([] if context is None else [context.requires_grad_()])]
    leaves += f.parameters()
    weight = torch.randn(given.shape, dtype=torch.float64)
    found = {}
    for way in INVERSIONS:
        y, log_det = solve(f, way, given, context)
        with torch.no_grad():
            again = solve(f, way, given, context)
        torch.testing.assert_close(again, (y, log_det), rtol=1e-12, atol=1e-12)
        loss = (weight * y).sum() + (log_det * log_det).sum()
        gradients = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
        found[way] = (y, log_det, *gradients)
    for way in ("cached", "jacobi"):
        for one, other in zip(found[way], found["sequential"], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("conditions_on", ["data", "noise"])
@pytest.mark.parametrize("inversion", ["cached", "jacobi"])
def test_gradients_are_those_of_finite_differences(kind, conditions_on, inversion):
    # elu and relu have kinks that finite differences may cross.
    f = layer(4, conditions_on, kind)
    f.made.activation = "tanh"
    given, context = inputs(f, rows=3)
    names = [name for name, _ in f.named_parameters()]

    def function(given, context, *parameters):
        return torch.func.functional_call(
            _Slow(f, inversion),
            {f"f.{name}": value for name, value in zip(names, parameters, strict=True)},
            (given, context),
        )

    leaves = [v.detach().requires_grad_() if v is not None else None for v in (given, context)]
    parameters = [p.detach().clone().requires_grad_() for p in f.parameters()]
    assert torch.autograd.gradcheck(function, (*leaves, *parameters), fast_mode=True)


class _Slow(torch.nn.Module):
    def __init__(self, f, inversion):
        super().__init__()
        self.f, self.inversion = f, inversion

    def forward(self, given, context):
        return solve(self.f, self.inversion, given, context)


class Cubic(UnivariateTransform):
    """x = z + h² z³ / 3, without a gradient of its own and solved only forwards."""

    size = 1

    def forward(self, z, parameters):
        h = parameters[..., 0]
        return z + h**2 * z**3 / 3, torch.log1p(h**2 * z**2)

    def inverse(self, x, parameters):
        raise NotImplementedError


def test_a_transformer_without_a_gradient_of_its_own():
    from baselines import Autoregressive

    f = Autoregressive(6, Cubic(), hidden=(9,)).double()
    for parameter in f.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    z = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    found = {}
    for way in INVERSIONS:
        f.inversion = way
        x, log_det = f.forward_and_log_det(z)
        gradients = torch.autograd.grad(x.sum() + log_det.sum(), [z, *f.parameters()])
        found[way] = (x, log_det, *gradients)
    for way in ("cached", "jacobi"):
        for one, other in zip(found[way], found["sequential"], strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize("transformer", [AffineScale(), Additive()])
@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_gradients_written_by_hand_are_those_of_autograd(transformer, direction):
    given = torch.randn(5, 3, dtype=torch.float64)
    parameters = 3 * torch.randn(5, 3, transformer.size, dtype=torch.float64)
    for_value, for_slope = torch.randn(2, 5, 3, dtype=torch.float64)
    value, _ = getattr(transformer, direction)(given, parameters)
    by_hand = getattr(transformer, f"{direction}_vjp")
    arguments = (given, parameters, value, for_value, for_slope)
    expected = getattr(UnivariateTransform, f"{direction}_vjp")(transformer, *arguments)
    torch.testing.assert_close(by_hand(*arguments), expected)


@pytest.mark.parametrize("inversion", ["cached", "jacobi"])
def test_second_derivatives_are_refused_with_the_remedy(inversion):
    flow = perturbed(MAF(4, layers=2, hidden=(8,), inversion=inversion))
    z = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(flow.bijector(z).sum(), z, create_graph=True)
    with pytest.raises(RuntimeError, match='inversion="sequential"') as caught:
        first.sum().backward()
    assert "\n" not in str(caught.value)


def test_second_derivatives_through_sequential():
    f = layer(3, "data", "random")
    f.inversion = "sequential"
    z = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda z: f.forward_and_log_det(z), z)


def test_jacobi_stops_early_where_little_depends_on_little():
    flow = MAF(40, layers=1, hidden=(64,), inversion="jacobi")
    for parameter in flow.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    before = flow.evaluations
    flow.sample(10)
    assert flow.evaluations - before < 15


@pytest.mark.parametrize("inversion", INVERSIONS)
def test_large_inputs_give_no_nan(inversion):
    f = AutoregressiveAffine(64, hidden=(32,), inversion=inversion)
    with torch.no_grad():
        for parameter in f.parameters():
            parameter.add_(torch.randn_like(parameter))
    assert not f.forward(100 * torch.randn(3, 64)).isnan().any()


@pytest.mark.parametrize("inversion", INVERSIONS)
def test_overflow_on_the_way_does_not_outlive_the_sweep(inversion):
    # Whatever a sweep makes of coordinates that it cannot know yet, D sweeps are enough.
    f = layer(20, "data", "plain", scale=4.0)
    z, _ = inputs(f)
    expected, _ = solve(f, "sequential", z, None)
    y, _ = solve(f, inversion, z, None)
    torch.testing.assert_close(y, expected, rtol=1e-6, atol=0)


def test_unmasked_weights_carry_no_gradient():
    f = layer(10, "data", "wide")
    y, log_det = solve(f, "cached", *inputs(f))
    (y.square().sum() + log_det.sum()).backward()
    for masked in f.made.layers:
        assert (masked.weight.grad[masked.mask == 0] == 0).all()


def test_autocast_does_not_lower_the_walk():
    flow = MAF(6, layers=2, hidden=(16,))
    for parameter in flow.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    z = torch.randn(50, 6)
    plain = flow.bijector.forward_and_log_det(z)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = flow.bijector.forward_and_log_det(z)
    assert torch.equal(plain[0], cast[0])
    assert torch.equal(plain[1], cast[1])


def test_784_dimensions_with_gradients():
    flow = MAF(784, layers=1, hidden=(64, 64))
    sequential = copy.deepcopy(flow)
    sequential.bijector.parts[0].inversion = "sequential"
    for one, other in zip(flow.parameters(), sequential.parameters(), strict=True):
        torch.nn.init.normal_(one, std=0.01)
        with torch.no_grad():
            other.copy_(one)
    z = torch.randn(3, 784)
    for model in (flow, sequential):
        x, log_det = model.bijector.forward_and_log_det(z)
        (x.square().mean() + log_det.mean()).backward()
    for one, other in zip(flow.parameters(), sequential.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-4)


MEMORY = """
import re, sys, torch
torch.set_num_threads(1)
from baselines import MAF
features = int(sys.argv[1])
flow = MAF(features, layers=1, hidden=(512, 512))
z = torch.randn(2000, features, requires_grad=True)
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
before = peak()
x, log_det = flow.bijector.forward_and_log_det(z)
(x.sum() + log_det.sum()).backward()
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read in Linux's units")
def test_memory_of_a_gradient_is_that_of_the_layers(device):
    if torch.device(device).type != "cpu":
        pytest.skip("memory of the process")
    megabytes = {
        d: int(
            subprocess.run(
                [sys.executable, "-c", MEMORY, str(d)], capture_output=True, text=True, check=True
            ).stdout
        )
        / 1024
        for d in (8, 128)
    }
    # O(N H) a layer: 2,000 rows of 512 units are 4 MB, and D of them would be 500 MB at D = 128.
    assert megabytes[128] < megabytes[8] + 100, megabytes


def test_graph_of_a_jacobi_inversion_is_freed():
    f = layer(5, "data", "plain")
    counts = []
    for _ in range(4):
        y, _ = solve(f, "jacobi", *inputs(f))
        y.sum().backward()
        f.zero_grad(set_to_none=True)
        del y
        gc.collect()
        counts.append(sum(type(o) is torch.Tensor for o in gc.get_objects()))
    assert counts[-1] <= counts[1], counts


@pytest.mark.parametrize("flow", [MAF, IAF])
def test_random_orders_survive_saving(flow, tmp_path):
    model = perturbed(
        flow(9, layers=2, hidden=(16,), order="random", hidden_degrees="random"), torch.float32
    )
    x = torch.randn(4, 9)
    model.log_prob(x)  # plans are made before the state is replaced, below
    model.save(tmp_path / "flow.pt")
    again = cflows.load(tmp_path / "flow.pt")
    assert torch.equal(again.log_prob(x), model.log_prob(x))
    other = flow(9, layers=2, hidden=(16,), order="random", hidden_degrees="random").eval()
    other.log_prob(x)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.log_prob(x), model.log_prob(x))


@pytest.mark.parametrize("inversion", INVERSIONS)
def test_what_is_not_finite_is_not_hidden(inversion):
    f = layer(5, "data", "random")
    given, _ = inputs(f)
    first = int(f.made.degrees.argmin())
    given[0, first] = torch.nan
    y, _ = solve(f, inversion, given, None)
    assert y[0].isnan().all()
    assert y[1:].isfinite().all()
    given, _ = inputs(f)
    y, _ = solve(f, inversion, given, None)
    cotangent = torch.ones_like(y)
    cotangent[0, f.made.degrees.argmax()] = torch.nan
    y.backward(cotangent)
    assert f.made.layers[0].weight.grad.isnan().any()


@pytest.mark.parametrize("inversion", INVERSIONS)
def test_frozen_layers_record_no_graph(inversion):
    f = layer(4, "data", "plain").requires_grad_(False)
    assert not solve(f, inversion, *inputs(f))[0].requires_grad


@pytest.mark.parametrize("inversion", INVERSIONS)
def test_transforms_give_the_gradients_of_the_engine(inversion):
    f = layer(4, "data", "plain")
    given, _ = inputs(f)

    def total(row, inversion=inversion):
        y, log_det = solve(f, inversion, row, None)
        return y.square().sum() + log_det.sum()

    by_row = torch.func.vmap(torch.func.grad(total))(given)
    leaf = given.clone().requires_grad_()
    (expected,) = torch.autograd.grad(total(leaf), leaf)
    torch.testing.assert_close(by_row, expected)
    hessian = torch.func.jacrev(torch.func.jacrev(total))(given[0])
    leaf = given[:1].clone().requires_grad_()
    expected = torch.autograd.functional.hessian(lambda v: total(v, "sequential"), leaf)[0, :, 0]
    torch.testing.assert_close(hessian, expected)


def test_autocast_does_not_lower_the_walks_gradient():
    f = layer(6, "data", "plain").float()
    z = torch.randn(5, 6)
    gradients = []
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            y, _ = solve(f, "cached", z, None)
            gradients.append(torch.autograd.grad(y.square().sum(), list(f.parameters())))
    torch.testing.assert_close(*gradients, rtol=0, atol=0)


def test_gradient_of_a_small_scale_beside_a_large_shift():
    parameters, ones = torch.tensor([[1e6, -10.0]]), torch.ones(1)
    z, zeros = torch.tensor([0.7]), torch.zeros(1)

    def gradient(dtype):
        given = [v.to(dtype) for v in (z, parameters)]
        x, _ = AffineScale().forward(*given)
        return AffineScale().forward_vjp(*given, x, ones.to(dtype), zeros.to(dtype))[1]

    torch.testing.assert_close(
        gradient(torch.float32).double(), gradient(torch.float64), rtol=1e-5, atol=0
    )
