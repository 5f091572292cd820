from __future__ import annotations

import math

import pytest
import torch
from one_dimension import NO_ROWS, assert_gradient, curved, gaussian, line, minimise, normal_of
from torch import nn

from baselines import MAF
from cflows import MMD, AlphaDivergence, ChiSquare, JensenShannon, SlicedWasserstein, fit
from cflows.objectives.ipm import median_distance, mmd, sliced_wasserstein

DIVERGENCES = {
    "alpha 0": lambda *a, **k: AlphaDivergence(*a, alpha=0.0, **k),
    "alpha 1/2": AlphaDivergence,
    "alpha 1": lambda *a, **k: AlphaDivergence(*a, alpha=1.0, **k),
    "alpha 2": lambda *a, **k: AlphaDivergence(*a, alpha=2.0, **k),
    "chi_square": ChiSquare,
    "jensen_shannon": JensenShannon,
}
METRICS = {
    "mmd": MMD,
    "mmd of given widths": lambda: MMD([0.5, 2.0]),
    "sliced_wasserstein": SlicedWasserstein,
    "sliced_wasserstein of order 1": lambda: SlicedWasserstein(order=1.0),
}


@pytest.fixture(autouse=True)
def _float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def critic():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 1))


class LogRatio(nn.Module):
    """log p / q of two normals: the critic that makes the bound tight."""

    def __init__(self, p, q):
        super().__init__()
        self.p, self.q = p, q

    def forward(self, x):
        return self.p(x) - self.q(x)


def by_quadrature(f, p, q):
    """∫ q f(p / q)."""
    x = torch.linspace(-12, 12, 20_001).unsqueeze(1)
    log_p, log_q = p(x), q(x)
    return torch.trapezoid(log_q.exp() * f(torch.exp(log_p - log_q)), x[:, 0]).item()


F = {
    "alpha 0": lambda r: -r.log(),
    "alpha 1/2": lambda r: 4 * (1 - r.sqrt()),
    "alpha 1": lambda r: r * r.log(),
    "alpha 2": lambda r: (r**2 - 1) / 2,
    "chi_square": lambda r: (r - 1) ** 2,
    "jensen_shannon": lambda r: 0.5 * (r * r.log() - (1 + r) * torch.log((1 + r) / 2)),
}


@pytest.mark.parametrize("name", DIVERGENCES)
def test_value_by_draws_and_by_the_best_critic_is_the_integral(name):
    p, (mean, std) = gaussian(0.3, 0.9), (0.0, 1.2)
    q, flow = gaussian(mean, std), line(mean, std)
    expected = by_quadrature(F[name], p, q)
    assert expected > 0.01
    rows = 0.3 + 0.9 * torch.randn(200_000, 1)
    known = DIVERGENCES[name](p, samples=200_000)(flow)
    shifted = DIVERGENCES[name](lambda x: 7 + p(x), samples=200_000, normalised=False)(flow)
    learnt = DIVERGENCES[name](critic=LogRatio(p, q))(flow, (rows, None))
    worse = DIVERGENCES[name](critic=LogRatio(p, gaussian(0.3, 1.0)))(flow, (rows, None))
    for found in (known, shifted, learnt):
        assert found.item() == pytest.approx(expected, abs=0.01)
    assert worse < learnt - 0.01


@pytest.mark.parametrize("name", DIVERGENCES)
def test_slope_and_conjugate_belong_to_f(name):
    objective = DIVERGENCES[name](gaussian(0, 1))
    u = torch.linspace(-3, 3, 41).requires_grad_()
    r, f = u.exp(), objective.value(u)
    (by_u,) = torch.autograd.grad(f.sum(), u)
    torch.testing.assert_close(objective.slope(u), by_u / r)
    torch.testing.assert_close(objective.conjugate(u), by_u - f)
    assert (f > -1e-15).all()
    middle = torch.stack([f[20], objective.slope(u)[20], objective.conjugate(u)[20]])
    torch.testing.assert_close(middle, torch.zeros(3), rtol=0, atol=1e-15)


def test_js_is_at_most_log_two_and_finite_far_away():
    flow = line(0.0, 1.0)
    js = JensenShannon(gaussian(30.0, 1.0))(flow)
    assert js.item() == pytest.approx(0.5 * math.log(2)), "q's half; p's half has no draws"
    rows = 30 + torch.randn(1000, 1)
    ratio = LogRatio(gaussian(30.0, 1.0), gaussian(0.0, 1.0))
    assert JensenShannon(critic=ratio)(flow, (rows, None)).item() == pytest.approx(math.log(2))


@pytest.mark.parametrize("normalised", [True, False])
@pytest.mark.parametrize("name", DIVERGENCES)
def test_minimiser_is_the_target(name, normalised):
    def target(x):
        return gaussian(1.0, 0.7)(x) + (0.0 if normalised else 4.0)

    objective = DIVERGENCES[name](target, normalised=normalised, samples=256)
    flow = minimise(line(0.5, 1.2), objective, steps=200)
    assert normal_of(flow) == pytest.approx((1.0, 0.7), abs=3e-2)


@pytest.mark.parametrize("name", ["alpha 1/2", "alpha 1", "chi_square", "jensen_shannon"])
def test_minimiser_with_a_critic_is_the_data(name):
    rows = 1 + 0.7 * torch.randn(4000, 1)
    flow = line(0.5, 1.2)
    minimise(flow, DIVERGENCES[name](critic=critic()), rows, steps=600, rate=1e-2, n=512)
    assert normal_of(flow) == pytest.approx((1.0, 0.7), abs=0.15)


def test_fit_trains_flow_and_critic_together():
    rows = 1 + 0.7 * torch.randn(2000, 1)
    flow, objective = line(0.0, 1.2), JensenShannon(critic=critic())
    before = objective.critic[0].weight.detach().clone()
    fit(flow, rows, objective=objective, steps=300, learning_rate=2e-2, progress=False)
    assert normal_of(flow) == pytest.approx((1.0, 0.7), abs=0.25)
    assert not torch.equal(before, objective.critic[0].weight)


@pytest.mark.parametrize("normalised", [True, False])
@pytest.mark.parametrize("name", DIVERGENCES)
def test_gradient_with_a_density(name, normalised):
    objective = DIVERGENCES[name](gaussian(0.3, 1.2), samples=40, normalised=normalised)
    assert_gradient(curved(), objective, near=1e-5)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_gradient_with_a_critic_falls_in_the_flow_and_rises_in_the_critic(name):
    flow, batch = curved(), (torch.randn(30, 1), None)
    objective = DIVERGENCES[name](critic=critic())
    assert_gradient(flow, objective, batch)
    assert_gradient(flow, objective, batch, of=objective, sign=-1.0)


@pytest.mark.parametrize("name", METRICS)
def test_gradient_of_metrics(name):
    assert_gradient(curved(), METRICS[name](), (torch.randn(30, 1), None))


@pytest.mark.parametrize("name", METRICS)
def test_minimiser_of_metrics_is_the_data(name):
    rows = 3 + 0.7 * torch.randn(4000, 1)
    flow = minimise(line(0.5, 1.5), METRICS[name](), rows, steps=200, n=256)
    assert normal_of(flow) == pytest.approx((3.0, 0.7), abs=5e-2)


@pytest.mark.parametrize("paired", [False, True])
def test_mmd_is_unbiased(paired):
    """Between N(0, 1) and N(m, 1), k of width σ: E k(x, y) = σ / √(σ² + 2) exp(-m² / 2(σ² + 2))."""
    width, mean = 0.8, 1.0
    estimates = torch.stack(
        [
            mmd(torch.randn(10, 1), mean + torch.randn(10, 1), [width], paired=paired)
            for _ in range(4000)
        ]
    )
    spread = width**2 + 2
    expected = 2 * width / math.sqrt(spread) * (1 - math.exp(-(mean**2) / (2 * spread)))
    error = estimates.std().item() / math.sqrt(len(estimates))
    assert estimates.mean().item() == pytest.approx(expected, abs=4 * error)
    assert error < 0.05 * expected


@pytest.mark.parametrize("rest", [0.0, 3.0])
def test_the_median_of_copies_is_still_a_width(rest):
    rows = torch.zeros(20, 1, dtype=torch.float32)
    rows[:3] += rest
    widths = median_distance(rows) * torch.tensor([0.25, 4.0])
    assert mmd(rows + 1, rows, widths).isfinite()
    assert mmd(rows + 1, rows, widths) > 0


def test_mmd_is_the_mean_over_its_kernels():
    x, y = torch.randn(20, 3), 1 + torch.randn(15, 3)
    parts = [mmd(x, y, [width]) for width in (0.5, 2.0)]
    torch.testing.assert_close(mmd(x, y, [0.5, 2.0]), sum(parts) / 2)


def test_sliced_wasserstein_of_a_shift_is_known():
    x, shift = torch.randn(50, 3), torch.tensor([1.0, -2.0, 0.5])
    directions = nn.functional.normalize(torch.randn(20_000, 3), dim=1)
    found = sliced_wasserstein(x, x[torch.randperm(50)] + shift, directions)
    assert found.item() == pytest.approx(shift.square().sum().item() / 3, rel=0.03)
    assert sliced_wasserstein(x, x, directions) == 0


@pytest.mark.parametrize("objective", [MMD(), SlicedWasserstein()])
def test_with_context_the_joint_samples_are_compared(objective):
    c = torch.randn(4000, 1)
    x = 2 * c + 0.5 * torch.randn(4000, 1)
    flow = MAF(1, context_features=1, layers=1, hidden=(16,)).double()
    fit(
        flow,
        (x, c),
        objective=objective,
        steps=300,
        batch_size=128,
        learning_rate=2e-2,
        progress=False,
    )
    for value in (-1.0, 1.0):
        draws = flow.sample(2000, torch.tensor([[value]]))
        assert draws.mean().item() == pytest.approx(2 * value, abs=0.35)


def test_a_critic_sees_the_context():
    """Of rows with their own context the joint ratio is that of p(x | c) and q(x | c)."""

    class Joint(nn.Module):
        def forward(self, joined):
            x, c = joined.split(1, dim=1)
            return gaussian(0.0, 0.5)(x - c) - gaussian(0.0, 1.0)(x)

    c = torch.randn(100_000, 1)
    flow = MAF(1, context_features=1, layers=1, hidden=(4,)).double()
    for parameter in flow.parameters():
        nn.init.zeros_(parameter)
    found = JensenShannon(critic=Joint())(flow, (c + 0.5 * torch.randn_like(c), c))
    values = [
        by_quadrature(F["jensen_shannon"], gaussian(shift, 0.5), gaussian(0.0, 1.0))
        for shift in c[:500, 0].tolist()
    ]
    assert found.item() == pytest.approx(sum(values) / 500, abs=0.02)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: JensenShannon(gaussian(0, 1), critic=nn.Linear(1, 1)), "one target"),
        (lambda: AlphaDivergence(gaussian(0, 1), alpha=math.inf), "alpha must be finite"),
        (lambda: ChiSquare(gaussian(0, 1), samples=0), "samples must be at least 1"),
        (lambda: MMD([0.0]), "widths must list positive"),
        (lambda: MMD(factors=()), "factors must list positive"),
        (lambda: SlicedWasserstein(0), "projections and order"),
        (lambda: MMD()(line(), (torch.zeros(1, 1), None)), "two rows"),
        (lambda: ChiSquare(critic=nn.Linear(1, 1))(line(), NO_ROWS), "give fit training rows"),
    ],
)
def test_bad_settings(build, words):
    with pytest.raises(ValueError, match=words) as caught:
        build()
    assert "\n" not in str(caught.value)


def test_each_context_has_a_normaliser_of_its_own():
    flow = MAF(1, context_features=1).double()
    objective = ChiSquare(lambda x, c: gaussian(0, 1)(x), normalised=False)
    with pytest.raises(ValueError, match="each context has its own"):
        objective(flow, (None, torch.zeros(3, 1)))
