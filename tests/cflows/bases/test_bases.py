from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import distributions as td
from zoo import perturbed

import cflows
from cflows import (
    Base,
    DiagonalScale,
    Flow,
    Logistic,
    MixtureOfGaussians,
    Normal,
    StudentT,
    TorchBase,
)

D = 3
LAPLACE = td.Laplace(torch.tensor([0.0, 1.0, -1.0]), torch.tensor([1.0, 0.5, 2.0]))

BASES = {
    "normal": lambda learnable: Normal(D, learnable=learnable),
    "logistic": lambda learnable: Logistic(D, learnable=learnable),
    "student": lambda learnable: StudentT(D, df=4.0, learnable=learnable),
    "mixture": lambda learnable: MixtureOfGaussians(D, 4, learnable=learnable),
    "laplace": lambda learnable: TorchBase.of(LAPLACE, learnable=learnable),
    "multivariate-normal": lambda learnable: TorchBase.of(
        td.MultivariateNormal(torch.ones(D), 2 * torch.eye(D) + 0.5), learnable=learnable
    ),
    "gamma": lambda learnable: TorchBase.of(
        td.Gamma(torch.full((D,), 3.0), torch.ones(D)), learnable=learnable
    ),
}


def reference(base: Base) -> td.Distribution:
    """The same law, from torch's own classes."""
    if isinstance(base, TorchBase):
        return base.distribution()
    scale = base.log_scale.exp()
    if isinstance(base, MixtureOfGaussians):
        each = td.Independent(td.Normal(base.loc, scale), 1)
        return td.MixtureSameFamily(td.Categorical(logits=base.logits), each)
    if isinstance(base, StudentT):
        return td.Independent(td.StudentT(base.log_df.exp(), base.loc, scale), 1)
    if isinstance(base, Normal):
        return td.Independent(td.Normal(base.loc, scale), 1)
    uniform = td.Uniform(torch.zeros_like(scale), torch.ones_like(scale))
    parts = [td.SigmoidTransform().inv, td.AffineTransform(base.loc, scale)]
    return td.Independent(td.TransformedDistribution(uniform, parts), 1)


@pytest.mark.parametrize("learnable", [False, True])
@pytest.mark.parametrize("name", BASES)
def test_density_shapes_and_dtype(name, learnable, dtype, device):
    base = perturbed(BASES[name](learnable), dtype, device)
    context = torch.zeros(5, 2, dtype=dtype, device=device)
    for shape in ((), (4,), (2, 3), (0,)):
        assert base.sample(shape).shape == (*shape, D)
        z = base.sample(shape, context)
        assert z.shape == (*shape, 5, D)
        assert z.dtype == dtype
        assert z.device.type == device.type
        assert not z.requires_grad
        log_prob = base.log_prob(z)
        assert log_prob.shape == (*shape, 5)
        assert log_prob.dtype == dtype
        if z.numel():
            near = 1e-9 if dtype == torch.float64 else 1e-4
            expected = reference(base).log_prob(z)
            torch.testing.assert_close(log_prob, expected, rtol=near, atol=near)


@pytest.mark.parametrize("name", BASES)
def test_draws_follow_the_density(name, device):
    # E_p(q/p) = 1 for a narrow normal q at the median, as in the contract of flows.
    base = perturbed(BASES[name](True), torch.float64, device).requires_grad_(False)
    z = base.sample((20_000,))
    centre, width = z.median(0).values, 0.3 * z.std(0).clamp(max=1.0)
    q = td.Independent(td.Normal(centre, width), 1)
    ratio = (q.log_prob(z) - base.log_prob(z)).exp()
    error = ratio.std() / len(ratio) ** 0.5
    assert error < 0.1
    assert (ratio.mean() - 1).abs() < 5 * error


@pytest.mark.parametrize("name", BASES)
def test_every_parameter_learns(name, dtype, device):
    base = perturbed(BASES[name](True), dtype, device)
    kinds = [base.log_prob(base.sample((50,)))]
    if base.has_rsample:
        kinds.append(base.rsample((50,)).square())
    else:
        with pytest.raises(TypeError, match=f"{type(base).__name__} has no reparam") as caught:
            base.rsample((50,))
        assert "\n" not in str(caught.value)
    for value in kinds:
        base.zero_grad()
        value.sum().backward()
        for parameter_name, parameter in base.named_parameters():
            assert parameter.grad is not None, parameter_name
            assert parameter.grad.isfinite().all(), parameter_name
            assert parameter.grad.abs().max() > 0, parameter_name


@pytest.mark.parametrize("learnable", [False, True])
@pytest.mark.parametrize("name", BASES)
def test_saved_and_loaded_with_a_flow(name, learnable, dtype, device, tmp_path):
    flow = perturbed(Flow(DiagonalScale(D), BASES[name](learnable)), dtype, device)
    flow.save(tmp_path / "flow.pt")
    again = cflows.load(tmp_path / "flow.pt").to(device)
    x = flow.sample(20)
    for twin in (again, copy.deepcopy(flow)):
        assert torch.equal(flow.log_prob(x), twin.log_prob(x))
        assert twin.distribution().has_rsample == flow.base.has_rsample
    assert bool(list(flow.base.parameters())) == learnable


def test_a_mixture_fits_two_heaps(device):
    target = td.MixtureSameFamily(
        td.Categorical(torch.tensor([0.25, 0.75])),
        td.Independent(
            td.Normal(torch.tensor([[-3.0, 0.0], [3.0, 1.0]]), torch.tensor([[0.5], [1.0]])), 1
        ),
    )
    x = target.sample((2000,)).to(device)
    base = MixtureOfGaussians(2, 2, spread=2.0).to(device)
    optimiser = torch.optim.Adam(base.parameters(), lr=0.05)
    for _ in range(300):
        optimiser.zero_grad()
        loss = -base.log_prob(x).mean()
        loss.backward()
        optimiser.step()
    assert loss.item() < -target.log_prob(x.cpu()).mean().item() + 0.01
    weights = base.logits.detach().softmax(-1).sort().values.cpu()
    torch.testing.assert_close(weights, torch.tensor([0.25, 0.75]), rtol=0, atol=0.05)


def test_one_component_is_a_normal(dtype):
    mixture = MixtureOfGaussians(2, 1, spread=0.0).to(dtype)
    z = torch.randn(9, 2, dtype=dtype)
    torch.testing.assert_close(mixture.log_prob(z), Normal(2).to(dtype).log_prob(z))


def test_densities_far_out_stay_finite():
    z = torch.full((1, D), 1e4)
    for base in (Logistic(D), StudentT(D), MixtureOfGaussians(D, 3)):
        assert base.log_prob(z).isfinite().all()
        assert base.log_prob(-z).isfinite().all()


def test_student_tends_to_the_normal_in_float32():
    z = torch.randn(50, D)
    near = StudentT(D, df=1e5).log_prob(z)
    torch.testing.assert_close(near, Normal(D).log_prob(z), rtol=0, atol=2e-3)


@pytest.mark.parametrize("law", [td.Gamma, td.LogNormal, td.Weibull], ids=lambda law: law.__name__)
def test_outside_of_a_support_the_density_is_zero(law, dtype):
    base = TorchBase.of(law(torch.full((2,), 1.5), torch.ones(2)), learnable=True).to(dtype)
    z = torch.tensor([[1.2, 2.0], [1.0, -2.0]], dtype=dtype, requires_grad=True)
    log_prob = base.log_prob(z)
    assert log_prob[0].isfinite()
    assert log_prob[1] == -math.inf
    log_prob[0].backward()
    assert z.grad.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in base.parameters())


def test_components_are_drawn_by_their_weights(dtype, device):
    base = MixtureOfGaussians(1, 3, learnable=False).to(device, dtype)
    weights = torch.tensor([0.6, 0.3, 0.1], dtype=dtype, device=device)
    base.logits.copy_(weights.log() + 2)
    base.loc.copy_(torch.tensor([[0.0], [100.0], [200.0]]))
    chosen = (base.sample((20_000,)).squeeze(-1) / 100).round().long()
    frequencies = torch.bincount(chosen, minlength=3).to(dtype) / 20_000
    torch.testing.assert_close(frequencies, weights, rtol=0, atol=0.02)


def test_wrapping_an_independent_or_its_scalars_is_the_same(dtype):
    z = torch.randn(6, D, dtype=dtype)
    scalars, joint = TorchBase.of(LAPLACE), TorchBase.of(td.Independent(LAPLACE, 1))
    by_name = TorchBase("Laplace", {"loc": LAPLACE.loc, "scale": LAPLACE.scale})
    expected = LAPLACE.log_prob(z).sum(-1)
    for base in (scalars, joint, by_name):
        torch.testing.assert_close(base.to(dtype).log_prob(z), expected)


def _mixture() -> td.Distribution:
    each = td.Independent(td.Normal(torch.zeros(2, D), torch.ones(2, D)), 1)
    return td.MixtureSameFamily(td.Categorical(torch.ones(2)), each)


class Own(td.Normal):
    pass


@pytest.mark.parametrize(
    "law",
    [
        _mixture(),
        td.TransformedDistribution(LAPLACE, [td.ExpTransform()]),
        Own(torch.zeros(D), torch.ones(D)),
        td.RelaxedBernoulli(torch.tensor(1.0), torch.full((D,), 0.3)),
        td.Dirichlet(torch.ones(D)),
        td.Bernoulli(torch.full((D,), 0.3)),
        td.VonMises(torch.zeros(D), torch.ones(D)),
    ],
    ids=lambda law: type(law).__name__,
)
def test_what_cannot_be_held_is_refused(law):
    with pytest.raises(TypeError, match=r"write a subclass of cflows\.Base") as caught:
        TorchBase.of(law)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("loc", [torch.zeros(()), torch.zeros(2, D)])
def test_other_shapes_are_refused(loc):
    with pytest.raises(TypeError, match=r"one dimension \(D,\) is needed") as caught:
        TorchBase.of(td.Normal(loc, 1.0))
    assert "\n" not in str(caught.value)


def test_names_and_arguments_are_checked():
    with pytest.raises(TypeError, match="no distribution 'kl_divergence'"):
        TorchBase("kl_divergence", {})
    with pytest.raises(TypeError, match="Laplace takes no"):
        TorchBase("Laplace", {"rate": torch.ones(2)})
    with pytest.raises(ValueError, match="scale"):
        TorchBase("Laplace", {"loc": torch.zeros(2), "scale": -torch.ones(2)})
    with pytest.raises(TypeError, match="use learnable=False"):
        TorchBase.of(td.Uniform(torch.zeros(2), torch.ones(2)), learnable=True)
    with pytest.raises(ValueError, match="components must be"):
        MixtureOfGaussians(2, 0)
    with pytest.raises(ValueError, match="df must be"):
        StudentT(2, df=0.0)
