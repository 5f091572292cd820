"""What every flow and every bijector promises, judged by autograd's Jacobian."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from zoo import ALL, FLOWS, cases, draws

import cflows
from cflows import Flow

D, C = 4, 2


def jacobian(function, point: torch.Tensor) -> torch.Tensor:
    return torch.autograd.functional.jacobian(function, point)


@pytest.mark.parametrize("context", [0, C])
@cases(ALL)
def test_inverse_and_log_det_agree_with_the_jacobian(case, context, dtype, device):
    if context and not case.context:
        context = 0
    f = case.bijector(D, context, dtype=dtype, device=device)
    z = case.noise(D, dtype=dtype, device=device)
    c = draws(context, dtype=dtype, device=device) if context else None
    near = case.tolerance(dtype)
    x, log_det = f.forward_and_log_det(z, c)
    back, log_det_back = f.inverse_and_log_det(x, c)
    scale = 1 + x.detach().abs().max()
    torch.testing.assert_close(back, z, rtol=0, atol=near * float(scale))
    torch.testing.assert_close(log_det_back, -log_det, rtol=0, atol=near * float(scale))
    expected = torch.linalg.slogdet(jacobian(lambda v: f.forward(v, c), z))[1]
    torch.testing.assert_close(log_det, expected, rtol=0, atol=10 * near)
    expected = torch.linalg.slogdet(jacobian(lambda v: f.inverse(v, c), x))[1]
    torch.testing.assert_close(log_det_back, expected, rtol=0, atol=10 * near * float(scale))


@cases(ALL)
def test_perturbed_map_is_not_the_identity(case, dtype, device):
    f = case.bijector(D, dtype=dtype, device=device)
    z = case.noise(5, D, dtype=dtype, device=device)
    assert (f.forward(z) - z).abs().max() > 1e-2


@cases(ALL)
@pytest.mark.parametrize("batch", [(), (1,), (5,), (2, 3), (0,), (2, 1, 3)])
def test_any_batch_shape(case, batch, dtype, device):
    f = case.bijector(D, dtype=dtype, device=device)
    z = case.noise(*batch, D, dtype=dtype, device=device)
    x = case.data(f, *batch, D, dtype=dtype, device=device)
    for method, given in ((f.forward_and_log_det, z), (f.inverse_and_log_det, x)):
        value, log_det = method(given)
        assert value.shape == given.shape
        assert log_det.shape == batch
        assert value.dtype == log_det.dtype == dtype
    assert torch.equal(f.forward(z), f.forward_and_log_det(z)[0]) or case.continuous
    assert torch.equal(f.inverse(x), f.inverse_and_log_det(x)[0]) or case.continuous


@cases(ALL, lambda case: case.continuous)
def test_solves_with_and_without_log_det_agree(case, dtype, device):
    f = case.bijector(D, dtype=dtype, device=device)
    z = draws(5, D, dtype=dtype, device=device)
    near = case.tolerance(dtype)
    torch.testing.assert_close(f.forward(z), f.forward_and_log_det(z)[0], rtol=0, atol=near)
    torch.testing.assert_close(f.inverse(z), f.inverse_and_log_det(z)[0], rtol=0, atol=near)


@cases(ALL)
def test_rows_do_not_see_each_other(case, dtype, device):
    f = case.bijector(D, dtype=dtype, device=device)
    x = case.data(f, 6, D, dtype=dtype, device=device)
    whole, log_det = f.inverse_and_log_det(x)
    near = 10 * case.tolerance(dtype)
    for row in (0, 3):
        alone, log_det_alone = f.inverse_and_log_det(x[row : row + 1])
        torch.testing.assert_close(alone[0], whole[row], rtol=near, atol=near)
        torch.testing.assert_close(log_det_alone[0], log_det[row], rtol=near, atol=near)


@cases(ALL, lambda case: case.parameters)
def test_every_parameter_gets_a_gradient(case, dtype, device):
    context = C if case.context else 0
    f = case.bijector(D, context, dtype=dtype, device=device)
    x = draws(20, D, dtype=dtype, device=device)
    c = draws(20, context, dtype=dtype, device=device) if context else None
    for method in (f.inverse_and_log_det, f.forward_and_log_det):
        f.zero_grad()
        value, log_det = method(x, c)
        (value.square().sum() + log_det.sum()).backward()
        for parameter_name, parameter in f.named_parameters():
            assert parameter.grad is not None, parameter_name
            assert parameter.grad.isfinite().all(), parameter_name
            assert parameter.grad.abs().max() > 0, parameter_name


@cases(ALL)
def test_context_matters_and_broadcasts(case, dtype, device):
    if not case.context:
        f = case.bijector(D, dtype=dtype, device=device)
        with pytest.raises(ValueError, match="takes no context"):
            f.forward(draws(D, dtype=dtype, device=device), draws(C, dtype=dtype, device=device))
        return
    f = case.bijector(D, C, dtype=dtype, device=device)
    z = draws(3, D, dtype=dtype, device=device)
    c = draws(2, 1, C, dtype=dtype, device=device)
    x, log_det = f.forward_and_log_det(z, c)
    assert x.shape == (2, 3, D)
    assert log_det.shape == (2, 3)
    near = 10 * case.tolerance(dtype)
    alone = f.forward(z[2], c[1, 0])
    torch.testing.assert_close(x[1, 2], alone, rtol=near, atol=near)
    assert (x[0] - x[1]).abs().max() > 1e-3
    with pytest.raises(ValueError, match="context of shape"):
        f.forward(z)
    with pytest.raises(ValueError, match="context"):
        f.forward(z, draws(3, C + 1, dtype=dtype, device=device))
    with pytest.raises(ValueError, match="do not broadcast"):
        f.forward(z, draws(4, C, dtype=dtype, device=device))


@cases(ALL)
def test_bad_shapes_are_refused(case, dtype, device):
    f = case.bijector(D, dtype=dtype, device=device)
    for method in (f.forward, f.inverse, f.forward_and_log_det, f.inverse_and_log_det):
        for shape in ((), (D + 1,), (5, D - 1), (D, 5)):
            with pytest.raises(ValueError, match=rf"shape \(\*B, {D}\)") as caught:
                method(torch.zeros(shape, dtype=dtype, device=device))
            assert "\n" not in str(caught.value)
        with pytest.raises(TypeError, match="floating-point"):
            method(torch.zeros(3, D, dtype=torch.long, device=device)[..., : D - 1])


@cases(FLOWS)
def test_flow_refuses_what_it_cannot_score(case, dtype, device):
    flow = case.make(D, dtype=dtype, device=device)
    x = draws(3, D, dtype=dtype, device=device)
    for bad in (float("nan"), float("inf")):
        broken = x.clone()
        broken[1, 2] = bad
        with pytest.raises(ValueError, match="NaN or infinite") as caught:
            flow.log_prob(broken)
        assert "\n" not in str(caught.value)
    other = torch.float32 if dtype == torch.float64 else torch.float64
    with pytest.raises(TypeError, match=r"cast one of them"):
        flow.log_prob(x.to(other))
    with pytest.raises(TypeError, match="floating-point"):
        flow.log_prob(torch.zeros(3, D, dtype=torch.long, device=device))
    with pytest.raises(ValueError, match="takes no context"):
        flow.log_prob(x, x)


@pytest.mark.parametrize("context", [0, C])
@cases(FLOWS)
def test_log_prob_of_a_sample(case, context, dtype, device):
    flow = case.make(D, context, dtype=dtype, device=device)
    c = draws(3, context, dtype=dtype, device=device) if context else None
    batch = (3,) if context else ()
    x, log_prob = flow.sample_and_log_prob((5,), c)
    assert x.shape == (5, *batch, D)
    assert log_prob.shape == (5, *batch)
    near = 1e-6 if dtype == torch.float64 else 5e-2
    torch.testing.assert_close(flow.log_prob(x, c), log_prob, rtol=near, atol=near)
    assert flow.sample(7, c).shape == (7, *batch, D)
    assert flow.sample((), c).shape == (*batch, D)
    assert not flow.sample(2, c).requires_grad
    if not case.rsample:
        with pytest.raises(TypeError, match="no reparameterised draws: use sample"):
            flow.rsample((2,), c)
    else:
        assert flow.rsample((2,), c).requires_grad
    assert torch.equal(flow(x, c), flow.log_prob(x, c))


@cases(FLOWS)
def test_sample_has_the_density(case, device):
    # E over samples of q(x)/p(x) is 1 for any density q that p covers: here a narrow normal at the
    # median, so that a wrong sign of either log-determinant shows.
    flow = case.make(2, device=device)
    with torch.no_grad():
        x, log_prob = flow.sample_and_log_prob(4000)
        centre, width = x.median(0).values, 0.3 * x.std(0).clamp(max=1.0)
        q = torch.distributions.Independent(torch.distributions.Normal(centre, width), 1)
        ratio = (q.log_prob(x) - log_prob).exp()
        error = ratio.std() / len(ratio) ** 0.5
    assert error < 0.2
    assert (ratio.mean() - 1).abs() < 5 * error


@cases(FLOWS)
def test_save_and_load_give_the_same_bits(case, dtype, device, tmp_path):
    flow = case.make(D, C, dtype=dtype, device=device)
    x, c = draws(6, D, dtype=dtype, device=device), draws(6, C, dtype=dtype, device=device)
    flow.save(tmp_path / "flow.pt")
    torch.manual_seed(3)
    again = cflows.load(tmp_path / "flow.pt").to(device)
    assert torch.equal(torch.rand(2), torch.rand(2, generator=torch.Generator().manual_seed(3)))
    assert type(again) is type(flow)
    assert not again.training
    assert torch.equal(flow.log_prob(x, c), again.log_prob(x, c))
    torch.manual_seed(1)
    first = flow.sample(3, c)
    torch.manual_seed(1)
    assert torch.equal(first, again.sample(3, c))
    again.save(tmp_path / "again.pt")
    assert list(tmp_path.iterdir()) != []
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again.pt", "flow.pt"]


@cases(FLOWS)
def test_density_integrates_to_one(case, device):
    flow = case.make(2, device=device)
    # Integrate over the noise's square [-5, 5]², seen in the data: the grid is laid where the
    # samples are, wide enough that what is outside cannot matter.
    with torch.no_grad():
        x = flow.sample(4000)
        low, high = x.amin(0), x.amax(0)
        low, high = low - 0.5 * (high - low), high + 0.5 * (high - low)
        n = 1000 if case.kinked else 300
        axes = [
            torch.linspace(float(a), float(b), n, dtype=x.dtype)
            for a, b in zip(low, high, strict=True)
        ]
        grid = torch.cartesian_prod(*axes).to(device)
        density = cflows.log_likelihood(flow, grid, batch_size=50_000).exp()
        total = density.sum() * torch.prod((high - low) / (n - 1))
    assert abs(float(total) - 1) < 5e-3


@cases(FLOWS)
def test_one_feature(case, device):
    if case.least_features > 1:
        with pytest.raises(ValueError, match="features >= 2") as caught:
            case.build(1, 0)
        assert "\n" not in str(caught.value)
        return
    flow = case.make(1, device=device)
    with torch.no_grad():
        x = flow.sample(2000)
        margin = 2 * (x.max() - x.min())
        points = 400_001 if case.kinked else 4001
        axis = torch.linspace(float(x.min() - margin), float(x.max() + margin), points).to(x)
        total = torch.trapezoid(flow.log_prob(axis[:, None]).exp(), axis)
    assert abs(float(total) - 1) < 1e-6


@cases(FLOWS)
def test_distribution(case, dtype, device):
    flow = case.make(D, C, dtype=dtype, device=device).train()
    c = draws(3, C, dtype=dtype, device=device)
    distribution = flow.distribution(c)
    assert distribution.batch_shape == (3,)
    assert distribution.event_shape == (D,)
    x = distribution.sample((5,))
    assert x.shape == (5, 3, D)
    assert distribution.log_prob(x).shape == (5, 3)
    wide = distribution.expand((2, 3))
    assert wide.sample((5,)).shape == (5, 2, 3, D)
    assert wide.log_prob(x[0]).shape == (2, 3)
    assert distribution.has_rsample == case.rsample
    if case.rsample:
        assert distribution.rsample().requires_grad
    assert flow.training
    flow.eval()
    torch.testing.assert_close(distribution.log_prob(x), flow.log_prob(x, c))


def test_distribution_without_context_expands(dtype, device):
    flow = FLOWS["maf"].make(D, dtype=dtype, device=device)
    wide = flow.distribution().expand((2, 3))
    x = wide.sample((5,))
    assert x.shape == (5, 2, 3, D)
    assert wide.log_prob(x).shape == (5, 2, 3)
    assert wide.log_prob(x[0, 0, 0]).shape == (2, 3)
    with pytest.raises(ValueError, match="context"):
        FLOWS["maf"].make(D, C, dtype=dtype, device=device).distribution()


def test_float32_round_trip(device):
    for name, case in FLOWS.items():
        flow: Flow = case.make(D, dtype=torch.float32, device=device)
        z = 0.5 * torch.randn(50, D, device=device)
        x = flow.bijector.forward(z)
        error = (flow.bijector.inverse(x) - z).abs().max()
        assert error < 1e-2, f"{name}: {error}"


@cases(ALL)
def test_pickles_and_copies_are_the_same_in_every_respect(case, dtype, device):
    module = case.make(D, dtype=dtype, device=device)
    x = case.data(getattr(module, "bijector", module), 3, D, dtype=dtype, device=device)
    expected = module.log_prob(x) if isinstance(module, Flow) else module.inverse(x)
    list(module.modules())[-1].train()
    for parameter in list(module.parameters())[:1]:
        parameter.requires_grad_(False)
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    for twin in (
        pickle.loads(pickle.dumps(module)),
        pickle.loads(pickle.dumps(copy.deepcopy(module))),
        torch.load(buffer, weights_only=False),
    ):
        assert [type(p).__name__ for p in twin.modules()] == [
            type(p).__name__ for p in module.modules()
        ]
        assert [p.training for p in twin.modules()] == [p.training for p in module.modules()]
        assert [(n, p.requires_grad) for n, p in twin.named_parameters()] == [
            (n, p.requires_grad) for n, p in module.named_parameters()
        ]
        state, kept = module.state_dict(), twin.state_dict()
        assert state.keys() == kept.keys()
        assert all(torch.equal(state[n], kept[n]) and state[n].dtype == kept[n].dtype for n in kept)
        twin.eval()
        found = twin.log_prob(x) if isinstance(twin, Flow) else twin.inverse(x)
        assert torch.equal(found, expected)
