from __future__ import annotations

import math

import pytest
import torch
from zoo import perturbed

import cflows
from baselines import MAF
from cflows import (
    Chain,
    ElementwiseAffine,
    Exp,
    Flow,
    LeakyReLU,
    Log,
    Logit,
    Sigmoid,
    SinhArcsinh,
    Softplus,
    Softsign,
    Tanh,
)

BOUNDED = {
    "softsign": (Softsign, -1.0, 1.0),
    "tanh": (Tanh, -1.0, 1.0),
    "sigmoid": (Sigmoid, 0.0, 1.0),
    "exp": (Exp, 0.0, math.inf),
    "softplus": (Softplus, 0.0, math.inf),
}


@pytest.mark.parametrize("name", BOUNDED)
def test_the_range_is_kept_and_what_lies_outside_is_refused(name, dtype, device):
    cls, low, high = BOUNDED[name]
    f = cls(3).to(device).eval()
    x = f(torch.linspace(-8, 8, 300, dtype=dtype, device=device).reshape(100, 3))
    assert low < float(x.min()) < (0.01 if low == 0 else -0.88)
    assert 0.88 < float(x.max()) < high
    for bad in (low, low - 0.5, *((high, high + 0.5) if high < math.inf else ())):
        outside = x.clone()
        outside[7, 1] = bad
        for method in (f.inverse, f.inverse_and_log_det):
            with pytest.raises(ValueError, match=f"open range of {cls.__name__}") as caught:
                method(outside)
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("cls", "bad"), [(Logit, 0.0), (Logit, 1.5), (Log, 0.0), (Log, -1.0)])
def test_logit_and_log_refuse_what_has_none(cls, bad, dtype):
    f = cls(2).eval()
    with pytest.raises(ValueError, match="outside"):
        f(torch.tensor([[0.5, bad]], dtype=dtype))


def test_training_does_not_ask_and_one_row_does_not_spoil_another(dtype):
    f = Sigmoid(2).train()
    x = torch.tensor([[0.5, 1.5], [0.25, 0.5]], dtype=dtype)
    z, log_det = f.inverse_and_log_det(x)
    assert not log_det[0].isfinite()
    assert z[1].isfinite().all()
    assert log_det[1].isfinite()


def test_alpha_takes_the_closed_interval(dtype):
    f = Sigmoid(1, alpha=0.05).to(dtype).eval()
    x = torch.linspace(0, 1, 11, dtype=dtype)[:, None]
    z, log_det = f.inverse_and_log_det(x)
    p = 0.05 + 0.9 * x
    torch.testing.assert_close(z, torch.log(p / (1 - p)))
    torch.testing.assert_close(log_det, (0.9 / (p * (1 - p))).log().sum(-1))
    torch.testing.assert_close(Logit(1, alpha=0.05)(x), z)
    with pytest.raises(ValueError, match="outside"):
        f.inverse(torch.tensor([[-0.06]], dtype=dtype))


def test_float32_carries_softsign_far_out():
    z = torch.cat([-torch.logspace(-6, 4, 200), torch.logspace(-6, 4, 200)])[:, None]
    f = Softsign(1).eval()
    x, log_det = f.forward_and_log_det(z)
    back, log_det_back = f.inverse_and_log_det(x)
    assert log_det.isfinite().all()
    # 1 - |x| = 1 / (1 + |z|) is known to half an ulp of x.
    allowed = 2**-23 * (1 + z.abs()) * (1 + z.abs())
    assert ((back - z).abs() <= allowed).all()
    torch.testing.assert_close(log_det_back, -log_det, rtol=0, atol=2.5e-3)
    torch.testing.assert_close(
        log_det.double(),
        -2 * torch.log1p(z.double().abs())[:, 0],
        rtol=1e-6,
        atol=1e-6,
        check_dtype=False,
    )


@pytest.mark.parametrize("z", [-50.0, 50.0])
def test_log_determinants_far_out(z):
    exact = {
        # log(1 - tanh²) = log 4 - 2|z| - 2 log(1 + exp(-2|z|))
        Tanh: math.log(4) - 100,
        Sigmoid: -50.0,
        Softplus: -50.0 if z < 0 else -math.exp(-50),
    }
    for cls, expected in exact.items():
        given = torch.tensor([z], requires_grad=True)
        log_det = cls(1).forward_and_log_det(given)[1]
        assert log_det.item() == pytest.approx(expected, rel=1e-6)
        (slope,) = torch.autograd.grad(log_det, given)
        assert slope.isfinite().all()


@pytest.mark.parametrize(
    ("cls", "low", "high"),
    [(Tanh, -4, 4), (Sigmoid, -80, 6), (Exp, -80, 80), (Softplus, -80, 1e4), (SinhArcsinh, -9, 9)],
)
def test_float32_round_trip_where_it_can_be(cls, low, high):
    f = perturbed(cls(1), torch.float32)
    z = torch.linspace(low, high, 501)[:, None]
    x, log_det = f.forward_and_log_det(z)
    back, log_det_back = f.inverse_and_log_det(x)
    torch.testing.assert_close(back, z, rtol=1e-6, atol=1e-3)
    torch.testing.assert_close(log_det_back, -log_det, rtol=1e-6, atol=2e-3)


def test_softplus_is_exact_beyond_torchs_threshold():
    z = torch.tensor([25.0], dtype=torch.float64)
    assert float(Softplus(1)(z)) == pytest.approx(25 + math.exp(-25), rel=1e-15)


def test_sinh_arcsinh_is_that_of_jones_and_pewsey(dtype):
    f = SinhArcsinh(2).to(dtype).requires_grad_(False)
    x = torch.randn(50, 2, dtype=dtype)
    assert torch.allclose(f(x), x, atol=1e-6), "the identity when built"
    f.skew.copy_(torch.tensor([0.4, -0.7]))
    f.raw_log_tail.copy_(torch.tensor([0.5, -0.3]))
    epsilon, delta = f.skew, f.log_tail.exp()
    s = torch.sinh(delta * torch.asinh(x) - epsilon)
    c = torch.cosh(delta * torch.asinh(x) - epsilon)
    z, log_det = f.inverse_and_log_det(x)
    torch.testing.assert_close(z, s)
    slope = delta * c / (1 + x.square()).sqrt()
    torch.testing.assert_close(log_det, slope.log().sum(-1))


def test_learned_scales_are_bounded():
    f, g = ElementwiseAffine(1, bound=3.0), SinhArcsinh(1)
    f.raw_log_scale.data.fill_(1e6)
    g.raw_log_tail.data.fill_(-1e6)
    assert f.log_scale.item() == 3.0
    assert g.log_tail.item() == -2.0


@pytest.mark.parametrize(
    "build",
    [
        lambda: LeakyReLU(2, slope=0.0),
        lambda: LeakyReLU(2, slope=math.inf),
        lambda: Sigmoid(2, alpha=0.5),
        lambda: Logit(2, alpha=-0.1),
        lambda: ElementwiseAffine(2, bound=0.0),
        lambda: Tanh(0),
    ],
)
def test_arguments_are_checked(build):
    with pytest.raises(ValueError, match="must be") as caught:
        build()
    assert "\n" not in str(caught.value)


def test_every_map_is_saved_and_loaded(tmp_path, dtype, device):
    parts = [
        *(ElementwiseAffine(2, bound=2.0), SinhArcsinh(2), LeakyReLU(2, 0.3), Softsign(2)),
        *(Logit(2, 0.1), Sigmoid(2, alpha=0.1), Tanh(2), Softplus(2), Log(2), Exp(2), Log(2)),
    ]
    flow = perturbed(Flow(Chain(*parts)), dtype, device)
    flow.save(tmp_path / "flow.pt")
    again = cflows.load(tmp_path / "flow.pt").to(device)
    assert [type(part) for part in again.bijector.parts] == [type(part) for part in parts]
    z = torch.randn(20, 2, dtype=dtype, device=device).clamp(0.1, 2.0)
    # Softsign of positive numbers and Tanh of positive numbers stay in the next map's domain.
    for ours, theirs in zip(
        flow.bijector.forward_and_log_det(z), again.bijector.forward_and_log_det(z), strict=True
    ):
        assert torch.equal(ours, theirs)


def test_a_flow_onto_the_unit_square_is_a_density(device):
    flow = Flow(Chain(MAF(2, layers=2, hidden=(8,)).bijector, Sigmoid(2)))
    flow = perturbed(flow, torch.float64, device)
    n = 400
    axis = ((torch.arange(n, dtype=torch.float64) + 0.5) / n).to(device)
    density = cflows.log_likelihood(flow, torch.cartesian_prod(axis, axis)).exp()
    assert abs(float(density.mean()) - 1) < 1e-3
    x = flow.sample(1000)
    assert ((x > 0) & (x < 1)).all()


def test_an_affine_of_integers_is_of_floats():
    layer = cflows.Affine([1, 2], torch.tensor([2.0, 4.0], dtype=torch.float64))
    assert layer.loc.dtype == layer.scale.dtype == torch.float64
    whole = cflows.Affine([1, 2], [2, 4])
    assert whole.loc.dtype == torch.get_default_dtype()
    assert whole.double().loc.dtype == torch.float64
