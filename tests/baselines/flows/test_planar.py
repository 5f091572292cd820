from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call
from zoo import cases, perturbed

import cflows
from baselines import (
    InversionError,
    Planar,
    PlanarFlow,
    Radial,
    RadialFlow,
    Sylvester,
    SylvesterFlow,
)
from cflows import Bijector

D, C = 4, 2


@dataclass(frozen=True)
class Case:
    build: Callable[..., Bijector]
    numerical: bool = True
    """Inverted by root finding."""
    several_units: bool = False
    """Flat directions feed each other, where there are several features."""


MAPS = {
    "planar": Case(Planar),
    "radial": Case(Radial, numerical=False),
    "sylvester-identity": Case(
        lambda d, **k: Sylvester(d, orthogonal="identity", **k), several_units=True
    ),
    "sylvester-reversed": Case(
        lambda d, **k: Sylvester(d, orthogonal="reversed", **k), several_units=True
    ),
    "sylvester-householder": Case(
        lambda d, **k: Sylvester(d, hidden=max(1, d - 1), **k), several_units=True
    ),
}
DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32])


def at_the_boundary(case: Case, features: int) -> Bijector:
    """A map whose slopes are as close to zero as they get: w·û = -1 + 10⁻³, and so on."""
    f = perturbed(case.build(features))
    with torch.no_grad():
        if isinstance(f, Planar):
            w = torch.linspace(1, 2, features)
            f.parts.value.copy_(torch.cat([-30 * w, w, torch.tensor([0.1])]))
        elif isinstance(f, Radial):
            f.parts.value[-1] = -60
        else:
            size = len(f.rows)
            diagonal = (f.rows == f.columns).nonzero().flatten()
            f.parts.value[diagonal] = 20
            f.parts.value[size + diagonal] = -20
    return f


@torch.no_grad()
def smallest_slope(f: Bijector) -> float:
    if isinstance(f, Planar):
        u, w, _, slope = f._u_w_b_slope(None)
        assert float((w * u).sum() + 1 - slope) == pytest.approx(0, abs=1e-9)
        return float(slope)
    if isinstance(f, Radial):
        _, alpha, gamma = f._centre_alpha_gamma(None)
        return float(gamma / alpha)
    outer, inner, _ = f._outer_inner_b(None)
    return float((1 + outer.diagonal() * inner.diagonal()).min())


def near_the_steepest(f: Bijector, dtype: torch.dtype) -> torch.Tensor:
    """Points about where the map is flattest, and a few far away."""
    z = torch.randn(200, f.features, dtype=torch.float64)
    z[:100] *= 1e-3
    if isinstance(f, Radial):
        z = z + f.parts.value[: f.features].detach()
    return z.to(dtype)


@cases(MAPS)
@pytest.mark.parametrize("features", [1, D])
@DTYPES
def test_round_trip_at_the_boundary_of_the_constraint(case, features, dtype):
    f = at_the_boundary(case, features)
    assert smallest_slope(f) == pytest.approx(1e-3, rel=1e-6)
    f = f.to(dtype)
    z = near_the_steepest(f, dtype)
    with torch.no_grad():
        x, log_det = f.forward_and_log_det(z)
        back, log_det_back = f.inverse_and_log_det(x)
        again = f.forward(back)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(again, x, rtol=0, atol=50 * eps * float(1 + x.abs().max()))
    assert log_det.isfinite().all()
    # Noise is known to a thousand roundings in a flat direction; flat directions that feed each
    # other, as in Sylvester maps of several units, multiply.
    if features == 1 or not case.several_units:
        assert (back - z).abs().max() < 1e4 * eps
        assert (log_det + log_det_back).abs().max() < 2e6 * eps
    if case.numerical:
        assert f.inversion_status.converged
        assert f.inversion_status.iterations < 100


@cases(MAPS)
@pytest.mark.parametrize("scale", [1e6, 1e-6, 0.0])
@DTYPES
def test_far_and_near_inputs(case, scale, dtype):
    f = perturbed(case.build(D), dtype)
    z = (scale * torch.randn(50, D)).to(dtype)
    x, log_det = f.forward_and_log_det(z)
    back, log_det_back = f.inverse_and_log_det(x)
    for value in (x, log_det, back, log_det_back):
        assert value.isfinite().all()
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(back, z, rtol=0, atol=200 * eps * (1 + scale))
    assert (f.inverse(z) - z).abs().max() < 100


@pytest.mark.parametrize("scale", [1e19, 1e25, 1e30])
def test_radial_rows_whose_square_overflows_stay_where_they_are(scale):
    f = perturbed(Radial(D), torch.float32)
    z = (scale * torch.randn(50, D)).requires_grad_()
    for way in (f.forward_and_log_det, f.inverse_and_log_det):
        image, log_det = way(z)
        torch.testing.assert_close(image, z)
        torch.testing.assert_close(log_det, torch.zeros(50))
        ((image / scale).sum() + log_det.sum()).backward()
    torch.testing.assert_close(scale * z.grad, torch.full_like(z, 2.0))
    assert f.parts.value.grad.isfinite().all()


@pytest.mark.parametrize(("features", "context"), [(3, 0), (1, C)])
@pytest.mark.parametrize("method", ["forward_and_log_det", "inverse_and_log_det"])
@cases(MAPS)
def test_gradients_in_inputs_and_parameters(case, method, features, context):
    f = perturbed(case.build(features, context_features=context))
    names = [key for key, _ in f.named_parameters()]
    parameters = [p.detach().clone().requires_grad_() for p in f.parameters()]
    value = torch.randn(2, features, dtype=torch.float64, requires_grad=True)
    seen = [torch.randn(2, context, dtype=torch.float64, requires_grad=True)] if context else []

    def run(value, *rest):
        settings = dict(zip(names, rest[len(seen) :], strict=True))
        return functional_call(
            Both(f, method), {f"f.{k}": v for k, v in settings.items()}, (value, *rest[: len(seen)])
        )

    assert gradcheck(run, (value, *seen, *parameters))
    assert gradgradcheck(run, (value, *seen, *parameters), fast_mode=True)


class Both(torch.nn.Module):
    def __init__(self, f, method):
        super().__init__()
        self.f, self.method = f, method

    def forward(self, value, context=None):
        return getattr(self.f, self.method)(value, context)


@pytest.mark.parametrize("method", ["forward_and_log_det", "inverse_and_log_det"])
def test_radial_has_a_gradient_at_its_centre(method):
    f = perturbed(Radial(D))
    at = f.parts.value[:D].detach().clone().requires_grad_()
    value, log_det = getattr(f, method)(at)
    torch.testing.assert_close(value, at)
    (value.sum() + log_det).backward()
    _, alpha, gamma = f._centre_alpha_gamma(None)
    stretch = gamma / alpha if method.startswith("forward") else alpha / gamma
    torch.testing.assert_close(at.grad, stretch.expand(D))
    assert f.parts.value.grad.isfinite().all()


@cases(MAPS)
def test_log_det_has_the_sign_of_the_volume(case):
    # A box's image, measured by its corners: no use of autograd, nor of the map's own formula.
    f = perturbed(case.build(1))
    z = torch.linspace(-3, 3, 7, dtype=torch.float64)[:, None]
    h = 1e-5
    slope = ((f.forward(z + h) - f.forward(z - h)) / (2 * h)).squeeze(-1)
    assert (slope > 0).all()
    assert slope.log().abs().max() > 1e-3
    torch.testing.assert_close(f.forward_and_log_det(z)[1], slope.log(), rtol=0, atol=1e-7)
    torch.testing.assert_close(
        f.inverse_and_log_det(f.forward(z))[1], -slope.log(), rtol=0, atol=1e-7
    )


def test_planar_is_the_papers_equation():
    f = perturbed(Planar(D))
    u, w, b, _ = f._u_w_b_slope(None)
    z = torch.randn(7, D, dtype=torch.float64)
    x, log_det = f.forward_and_log_det(z)
    h = z @ w + b
    torch.testing.assert_close(x, z + torch.outer(torch.tanh(h), u))
    psi = (1 - torch.tanh(h) ** 2)[:, None] * w
    torch.testing.assert_close(log_det, (1 + psi @ u).abs().log())


def test_planar_without_a_direction_is_a_shift():
    f = perturbed(Planar(D))
    with torch.no_grad():
        f.parts.value[D : 2 * D] = 0
    z = torch.randn(7, D, dtype=torch.float64)
    x, log_det = f.forward_and_log_det(z)
    u, b = f.parts.value[:D], f.parts.value[-1]
    torch.testing.assert_close(x, z + u * torch.tanh(b))
    assert log_det.abs().max() < 1e-14
    torch.testing.assert_close(f.inverse(x), z)
    x.sum().backward()
    assert f.parts.value.grad.isfinite().all()


def test_radial_is_the_papers_equation():
    f = perturbed(Radial(D))
    centre, alpha, gamma = f._centre_alpha_gamma(None)
    beta = gamma - alpha
    z = torch.randn(7, D, dtype=torch.float64)
    x, log_det = f.forward_and_log_det(z)
    r = (z - centre).norm(dim=-1)
    h = 1 / (alpha + r)
    torch.testing.assert_close(x, z + (beta * h)[:, None] * (z - centre))
    slope = 1 + beta * h - beta * h**2 * r
    torch.testing.assert_close(log_det, (D - 1) * (1 + beta * h).log() + slope.log())


@pytest.mark.parametrize("orthogonal", ["identity", "reversed", "householder"])
@pytest.mark.parametrize("hidden", [1, 3, D])
def test_sylvester_is_the_papers_equation(orthogonal, hidden):
    f = perturbed(Sylvester(D, hidden=hidden, orthogonal=orthogonal))
    outer, inner, b = f._outer_inner_b(None)
    z = torch.randn(7, D, dtype=torch.float64)
    q = f._q(z)
    torch.testing.assert_close(q.mT @ q, torch.eye(hidden, dtype=torch.float64))
    for matrix in (outer, inner):
        assert torch.equal(matrix, matrix.triu())
        assert matrix.diagonal().abs().max() < 1
    x = z + torch.tanh(z @ q @ inner.mT + b) @ outer.mT @ q.mT
    torch.testing.assert_close(f.forward(z), x)


def test_the_fixed_orthogonal_matrices_choose_coordinates():
    z = torch.randn(5, D, dtype=torch.float64)
    for orthogonal, untouched in (("identity", slice(2, D)), ("reversed", slice(0, D - 2))):
        f = perturbed(Sylvester(D, hidden=2, orthogonal=orthogonal))
        moved = f.forward(z) - z
        assert (moved[:, untouched] == 0).all()
        assert (moved != 0).any(0).sum() == 2


@cases(MAPS, lambda case: case.numerical)
def test_status_of_the_last_inverse(case):
    f = perturbed(case.build(D))
    x = torch.randn(10, D, dtype=torch.float64)
    assert f.inversion_status is None
    f.inverse(x)
    assert f.inversion_status.converged
    assert 0 < f.inversion_status.iterations < 60
    assert f.inversion_status.residual < 1e-14
    assert copy.deepcopy(f).inversion_status == f.inversion_status
    f.max_iterations = 1
    with pytest.raises(InversionError, match="max_iterations") as caught:
        f.inverse(x)
    assert "\n" not in str(caught.value)
    assert f.inversion_status == caught.value.status
    assert not f.inversion_status.converged
    f.max_iterations = 100
    f.inverse(x)
    assert f.inversion_status.converged


@cases(MAPS)
def test_a_new_map_is_near_the_identity_and_can_learn(case):
    f = case.build(D, context_features=C).double()
    z = torch.randn(50, D, dtype=torch.float64)
    c = torch.randn(50, C, dtype=torch.float64)
    x, log_det = f.forward_and_log_det(z, c)
    assert (x - z).abs().max() < 0.3
    (x.square().sum() - log_det.sum()).backward()
    for key, parameter in f.named_parameters():
        assert parameter.grad.abs().max() > 0, key


@cases(MAPS)
def test_low_precision_leaves_the_map_and_its_inverse_alone(case):
    f = perturbed(case.build(D, context_features=C), torch.float32)
    z, c = torch.randn(20, D), torch.randn(20, C)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        x, log_det = f.forward_and_log_det(z, c)
        back, log_det_back = f.inverse_and_log_det(x, c)
    assert x.dtype == log_det.dtype == back.dtype == torch.float32
    torch.testing.assert_close(back, z, rtol=0, atol=1e-4)
    torch.testing.assert_close(log_det_back, -log_det, rtol=0, atol=1e-4)


@pytest.mark.parametrize("build", [PlanarFlow, RadialFlow, SylvesterFlow])
def test_flows_learn_a_shifted_density_by_maximum_likelihood(build):
    flow = build(2, layers=2)
    data = torch.randn(256, 2) * torch.tensor([0.7, 1.5]) + torch.tensor([1.0, -0.5])
    optimiser = torch.optim.Adam(flow.parameters(), lr=3e-2)
    losses = []
    for _ in range(30):
        optimiser.zero_grad()
        loss = -flow.log_prob(data).mean()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1


def test_a_small_allowance_is_saved_with_the_flow(tmp_path):
    flow = cflows.Flow(Planar(D, max_iterations=1))
    flow.save(tmp_path / "flow.pt")
    assert cflows.load(tmp_path / "flow.pt").bijector.max_iterations == 1


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Planar(0), "features must be"),
        (lambda: Planar(2, max_iterations=0), "max_iterations must be"),
        (lambda: Sylvester(3, hidden=4), "hidden must be within 1 to features=3, got 4"),
        (lambda: Sylvester(3, hidden=0), "hidden must be within"),
        (lambda: Sylvester(3, orthogonal="qr"), "orthogonal must be one of identity"),
        (lambda: SylvesterFlow(3, orthogonal="qr"), "orthogonal must be one of alternate"),
        (lambda: PlanarFlow(3, layers=0), "layers must be"),
        (lambda: RadialFlow(3, layers=0), "layers must be"),
        (lambda: SylvesterFlow(3, layers=0), "layers must be"),
    ],
)
def test_wrong_arguments(build, message):
    with pytest.raises(ValueError, match=message) as caught:
        build()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("length", [1e-5, 1e-3, 10.0])
def test_a_short_direction_keeps_its_precision(length):
    planar = perturbed(Planar(4), torch.float32)
    with torch.no_grad():
        planar.parts.value[4:8] *= length
    z = torch.randn(6, 4)
    found = []
    for f, at in ((planar, z), (copy.deepcopy(planar).double(), z.double())):
        x, log_det = f.forward_and_log_det(at)
        grad = torch.autograd.grad(x.square().sum() + log_det.sum(), f.parts.value)[0]
        found.append((x, log_det, grad))
    for single, double in zip(*found, strict=True):
        torch.testing.assert_close(single.double(), double, rtol=1e-3, atol=1e-4)
