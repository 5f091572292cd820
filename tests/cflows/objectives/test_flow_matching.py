from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from baselines import MAF
from cflows import (
    FFJORD,
    ActNorm,
    Affine,
    Chain,
    FixedGrid,
    Flow,
    FlowMatching,
    ForwardKL,
    Inverse,
    Lagged,
    MixtureOfGaussians,
    Normal,
    ODEBijector,
    behind,
    fit,
    gaussianise,
    log_likelihood,
    standardise,
    whiten,
)
from cflows.objectives import OBJECTIVES
from cflows.objectives.flow_matching import optimal_coupling

GRID = FixedGrid("rk4", 16)


class Line(nn.Module):
    """f(t, x) = a + b x: no time."""

    features = 1
    context_features = 0

    def __init__(self, a=0.0, b=0.0):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.tensor(a)), nn.Parameter(torch.tensor(b))

    def forward(self, t, x, context=None):
        return self.a + self.b * x


class Gaussian(nn.Module):
    """E[x₁ - x₀ | x_s] for x₀ ~ N(0, 1) and x₁ ~ N(mean, std²), independent."""

    features = 1
    context_features = 0

    def __init__(self, mean, std, end_time=1.0):
        super().__init__()
        self.mean, self.variance, self.end_time = mean, std**2, end_time

    def forward(self, t, x, context=None):
        s = (t / self.end_time).unsqueeze(-1)
        slope = (s * self.variance - (1 - s)) / (s**2 * self.variance + (1 - s) ** 2)
        return (self.mean + slope * (x - s * self.mean)) / self.end_time


def solved(field, *, end_time=1.0, **options):
    return ODEBijector(
        field, end_time=end_time, training_solver=GRID, evaluation_solver=GRID, **options
    )


def film(features=2, **options):
    return FFJORD(
        features,
        hidden=(32, 32),
        layer="film",
        activation="silu",
        field={"time_frequencies": 4},
        training_solver=GRID,
        evaluation_solver=GRID,
        **options,
    )


LOG = math.log(1.1 / 0.1)


def rows(n=4000, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 2, generator=generator) @ torch.tensor([[20.0, 5.0], [0.0, 0.3]]) + 10.0


def test_by_name():
    assert isinstance(OBJECTIVES["flow_matching"](), FlowMatching)
    with pytest.raises(ValueError, match="independent, optimal"):
        FlowMatching("best")
    with pytest.raises(ValueError, match="likelihood, uniform"):
        FlowMatching(times="late")


@pytest.mark.parametrize("times", ["uniform", "likelihood"])
@pytest.mark.parametrize("end_time", [1.0, 2.5])
def test_the_conditional_mean_velocity_is_the_minimiser_and_its_flow_is_the_data(
    end_time, times, dtype
):
    mean, std = 3.0, 0.5
    flow = Flow(solved(Gaussian(mean, std, end_time), end_time=end_time)).to(dtype)
    x = torch.linspace(0.0, 6.0, 50, dtype=dtype).unsqueeze(1)
    with flow.using(solver=FixedGrid("dopri5", 64)):
        got = flow.eval().log_prob(x)
    expected = torch.distributions.Normal(mean, std).log_prob(x[:, 0])
    torch.testing.assert_close(got, expected.to(dtype), rtol=0, atol=1e-4)
    data = mean + std * torch.randn(200_000, 1, dtype=dtype)
    # The least loss is the variance of x₁ - x₀ given x_s, v / (s² v + (1 - s)²), averaged over s.
    s = torch.linspace(0, 1, 10_001)
    weight = torch.ones_like(s) if times == "uniform" else 1 / (1.1 - s)
    weight = weight / torch.trapezoid(weight, s)
    least = torch.trapezoid(weight * std**2 / (s**2 * std**2 + (1 - s) ** 2), s).item()
    found = {}
    for shift in (-0.2, 0.0, 0.2):
        flow.bijector.field.mean = mean + shift
        torch.manual_seed(1)
        found[shift] = FlowMatching(times=times)(flow, (data, None)).item()
    assert found[0.0] == pytest.approx(least, abs=0.02)
    assert found[0.0] < min(found[-0.2], found[0.2])


def test_minimiser_in_closed_form():
    """Of a + b x: b = cov(x_s, x₁ - x₀) / var x_s and a the rest, for x₁ ~ N(m, v)."""
    m, v = 2.0, 0.25
    flow = Flow(solved(Line()))
    data = m + math.sqrt(v) * torch.randn(20_000, 1)
    goal = FlowMatching(times="uniform")
    fit(flow, data, objective=goal, steps=600, learning_rate=5e-2, ema=0, progress=False)
    # s uniform, so E s² = 1/3: var x_s = E[(1-s)² + s² v] + m² var s, cov = E[s v - (1-s)].
    b = (v / 2 - 1 / 2) / ((1 + v) / 3 + m**2 / 12)
    a = m - b * m / 2
    assert flow.bijector.field.b.item() == pytest.approx(b, abs=0.04)
    assert flow.bijector.field.a.item() == pytest.approx(a, abs=0.06)


@pytest.mark.parametrize("coupling", ["independent", "optimal"])
def test_gradient_is_that_of_the_loss(coupling):
    flow = Flow(solved(Line(0.3, -0.4), end_time=1.5, trainable_end_time=True)).double()
    data = 1 + torch.randn(30, 1).double()

    def loss():
        torch.manual_seed(2)
        return FlowMatching(coupling)(flow, (data, None))

    parameters = list(flow.parameters())
    got = torch.autograd.grad(loss(), parameters)
    assert len(got) == 3
    for parameter, gradient in zip(parameters, got, strict=True):
        ends, middle = [], parameter.detach().clone()
        for step in (-1e-6, 1e-6):
            parameter.data = middle + step
            ends.append(loss().item())
        parameter.data = middle
        assert gradient.item() == pytest.approx((ends[1] - ends[0]) / 2e-6, rel=1e-6, abs=1e-7)


def test_fixed_maps_are_undone_before_and_behind_the_field():
    torch.manual_seed(0)
    inner, data = film().double(), rows(100).double()
    with torch.no_grad():
        for parameter in inner.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    behind, before = whiten(rows().double()), Affine([1.0, 0.0], [2.0, 1.0]).double()
    losses = []
    for flow, seen in (
        (inner, behind.inverse(data)),
        (Flow(Chain(inner.bijector, Chain(behind))), data),
        (Flow(Chain(Chain(before, inner.bijector), behind), Shrunk(2)), data),
    ):
        torch.manual_seed(4)
        losses.append(FlowMatching()(flow.double(), (seen, None)))
    torch.testing.assert_close(losses[0], losses[1])
    torch.testing.assert_close(losses[0], losses[2])


class Shrunk(Normal):
    """The standard normal seen through the inverse of ``before`` above."""

    def sample(self, shape=(), context=None):
        return (super().sample(shape, context) - torch.tensor([1.0, 0.0])) / torch.tensor([2.0, 1])


def test_fit_reaches_the_likelihood_of_the_data():
    flow = Flow(Chain(film().bijector, standardise(rows())))
    before = log_likelihood(flow, rows(2000, seed=1)).mean()
    history = fit(
        flow,
        rows(),
        rows(500, seed=2),
        objective="flow_matching",
        steps=600,
        learning_rate=5e-3,
        progress=False,
    )
    best = log_likelihood(Flow(whiten(rows())), rows(2000, seed=1)).mean()
    after = log_likelihood(flow, rows(2000, seed=1)).mean()
    assert after > best - 0.1
    assert after > before + 1
    assert history.records[1].nfe == 1, "one evaluation a step and no solve"


def waves(n, seed):
    """A skewed column and one that follows its logarithm on a wave; their log-density."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(n, 2, generator=generator)
    x = torch.stack([(0.6 * z[:, 0]).exp(), torch.cos(2 * z[:, 0]) + 0.3 * z[:, 1]], dim=1)
    return x, Normal(2).log_prob(z) - 0.6 * z[:, 0] - math.log(0.6 * 0.3)


def test_three_lines_come_near_the_truth():
    """The usual field behind a Gaussianising map, and what matching is usually trained with."""
    (train, _), (test, exact) = waves(8000, 0), waves(2000, 1)
    torch.manual_seed(0)

    flow = behind(FFJORD(2), gaussianise(train))
    fit(flow, train, objective="flow_matching", steps=300, progress=False)

    gap = (exact - log_likelihood(flow, test)).mean()
    closed_form = (exact - log_likelihood(Flow(gaussianise(train)), test)).mean()
    assert gap < 0.1
    assert closed_form > 0.4


@pytest.fixture(scope="module")
def matched():
    """A flow that matching has trained, what it was trained on, and how well."""
    torch.manual_seed(0)
    flow = FFJORD(
        2,
        hidden=(16, 16),
        layer="film",
        activation="silu",
        field={"time_frequencies": 2},
        training_solver=Lagged("rk4", 1e-2),
        evaluation_solver=FixedGrid("rk4", 8),
    )
    data = {"train": two_modes(2000, 0), "validation": two_modes(500, 1), "progress": False}
    history = fit(flow, objective="flow_matching", steps=60, learning_rate=1e-2, **data)
    return flow, data, history.best_validation


def two_modes(n, seed):
    generator = torch.Generator().manual_seed(seed)
    side = 3 * torch.randint(2, (n, 1), generator=generator) - 1.5
    return 0.5 * torch.randn(n, 2, generator=generator) + side


def test_maximum_likelihood_finishes_what_matching_began(matched):
    flow, data, reached = copy.deepcopy(matched[0]), matched[1], matched[2]
    fresh = two_modes(2000, 2)
    before = log_likelihood(flow, fresh).mean()
    history = fit(flow, steps=10, learning_rate=2e-3, warmup=5, validate_every=5, **data)
    assert history.records[0].validation == pytest.approx(reached, abs=1e-5)
    assert history.best_validation > reached
    assert log_likelihood(flow, fresh).mean() > before


class Destroying(ForwardKL):
    """Steps that lower the likelihood, as too large ones do."""

    def forward(self, flow, batch):
        return -super().forward(flow, batch)


def test_a_finish_that_destroys_what_matching_gained_is_undone(matched):
    flow, data, reached = copy.deepcopy(matched[0]), matched[1], matched[2]
    history = fit(
        flow,
        objective=Destroying(),
        steps=2,
        learning_rate=3e-2,
        validate_every=1,
        schedule="constant",
        **data,
    )
    assert max(record.validation for record in history.records[1:]) < reached
    assert history.best_step == 0
    for value, kept in zip(flow.parameters(), matched[0].parameters(), strict=True):
        assert torch.equal(value, kept)


def test_with_context():
    c = torch.randn(4000, 1)
    x = 3 * c + 0.3 * torch.randn(4000, 1)
    flow = film(1, context_features=1)
    fit(flow, (x, c), objective="flow_matching", steps=400, learning_rate=5e-3, progress=False)
    draws = flow.sample(2000, torch.tensor([[1.0]]))
    assert draws.mean().item() == pytest.approx(3.0, abs=0.2)
    assert draws.std().item() == pytest.approx(0.3, abs=0.15)


def test_bases_without_a_gradient_will_do():
    flow = Flow(film().bijector, MixtureOfGaussians(2, 3, learnable=False))
    FlowMatching()(flow, (rows(50), None)).backward()


def test_optimal_coupling_is_the_sorted_one_on_a_line():
    start, end = torch.randn(50, 1), torch.randn(50, 1)
    paired = start[optimal_coupling(start, end)]
    assert torch.equal(paired[end[:, 0].argsort()], start.sort(0).values)


def test_optimal_coupling_in_parts():
    """Each part is paired with itself, at the least cost; a part of one row is left alone."""
    torch.manual_seed(0)
    start, end = torch.randn(21, 2), torch.randn(21, 2)
    taken = optimal_coupling(start, end, rows=5)
    for first in range(0, 21, 5):
        part = slice(first, first + 5)
        own = optimal_coupling(start[part], end[part])
        assert torch.equal(taken[part], own + first)
    assert optimal_coupling(start[:0], end[:0]).shape == (0,)


def test_optimal_coupling_keeps_to_the_class():
    """The noise of each class stays what the base says, whatever the class does to the rows."""
    torch.manual_seed(0)
    n = 4000
    label = torch.randint(2, (n,))
    context = torch.nn.functional.one_hot(label, 2).float()
    end = torch.randn(n, 2) + 4.0 * label.unsqueeze(1)
    start = torch.randn(n, 2)
    blind = start[optimal_coupling(start, end)]
    assert blind[label == 1].mean() > 0.5
    paired = start[optimal_coupling(start, end, context)]
    for own in (0, 1):
        assert abs(paired[label == own].mean()) < 0.05
        torch.testing.assert_close(paired[label == own].std(0), torch.ones(2), atol=0.06, rtol=0)
    # Class 0 lies where the noise does, and needs to go nowhere.
    assert (end - paired)[label == 0].square().sum(1).mean() < 0.5


def test_optimal_coupling_with_near_contexts():
    torch.manual_seed(0)
    c = torch.rand(2000, 1)
    x = 4 * c + 0.2 * torch.randn(2000, 1)
    start = torch.randn(2000, 1)
    taken = optimal_coupling(start, x, c)
    assert (c[taken] - c).abs().mean() < 0.05
    correlation = torch.corrcoef(torch.cat([start[taken], c], dim=1).mT)[0, 1]
    assert abs(correlation) < 0.2
    flow = film(1, context_features=1)
    settings = {"objective": FlowMatching("optimal"), "learning_rate": 5e-3, "progress": False}
    fit(flow, (x, c), steps=300, **settings)
    draws = flow.sample(2000, torch.tensor([[0.5]]))
    assert draws.mean().item() == pytest.approx(2.0, abs=0.15)
    assert draws.std().item() == pytest.approx(0.2, abs=0.1)


def test_optimal_coupling_makes_paths_straighter():
    flow, data = Flow(solved(Line())), 2 + 0.1 * torch.randn(200, 1)
    losses = []
    for coupling in ("independent", "optimal"):
        flow.bijector.field.a.data.fill_(2.0)
        flow.bijector.field.b.data.fill_(-0.9)
        losses.append(FlowMatching(coupling)(flow, (data, None)).item())
    assert losses[1] < losses[0]


@pytest.mark.parametrize(
    ("flow", "error", "words"),
    [
        (lambda: MAF(2), TypeError, "has none"),
        (lambda: film(blocks=2), ValueError, "this flow has 2"),
        (lambda: Flow(Inverse(film().bijector)), ValueError, "within another map"),
        (lambda: film(batch_norm=True), ValueError, "log_gamma would stay as it is"),
        (lambda: Flow(Chain(film().bijector, ActNorm(2))), ValueError, "shift would stay"),
        (lambda: film(base=Normal(2, learnable=True)), ValueError, "base.loc would stay"),
    ],
)
def test_flows_that_cannot_be_matched_are_refused(flow, error, words):
    with pytest.raises(error, match=words) as caught:
        FlowMatching()(flow(), (rows(10), None))
    assert "\n" not in str(caught.value)


def test_bfloat16_keeps_the_losss_dtype():
    flow = film(ode={"bfloat16": True})
    loss = FlowMatching()(flow, (rows(50), None))
    assert loss.dtype == torch.float32
    exact = FlowMatching()(film(), (rows(50), None))
    assert exact.dtype == torch.float32


class Scalar(nn.Module):
    """A field written for the time of a solve, a scalar; what it saw is kept."""

    def __init__(self, features, way, context_features=0):
        super().__init__()
        self.features, self.context_features, self.way = features, context_features, way
        self.rate = nn.Parameter(torch.ones(()))
        self.seen = []

    def forward(self, t, x, context=None):
        self.seen.append((t, x, context))
        n = len(x)
        time = {
            "product": lambda: t * x,
            "column": lambda: t.expand(n, 1) * x,
            "joined": lambda: torch.cat([x, t * torch.ones_like(x[:, :1])], 1)[:, -1:] * x,
            "image": lambda: (x.view(n, 1, 2, 2) * t.expand(n, 1, 2, 2)).flatten(1),
            "set": lambda: (x.view(n, 4, 1) * t.expand(n, 4, 1)).flatten(1),
            "branch": lambda: t * x if t >= 0 else x,
        }[self.way]()
        return self.rate * time


@pytest.mark.parametrize("way", ["product", "column", "joined", "image", "set", "branch"])
@pytest.mark.parametrize("n", [4, 7, 40])
def test_fields_that_take_a_scalar_time(way, n):
    flow = Flow(solved(Scalar(4, way), end_time=1.5)).double()
    x = torch.randn(n, 4).double()
    torch.manual_seed(5)
    loss = FlowMatching(times="uniform")(flow, (x, None))
    seen = flow.bijector.field.seen
    assert len(seen) == min(n, 16)
    assert all(t.dim() == 0 for t, *_ in seen)
    assert flow.evaluations == 1
    s = torch.cat([(t / 1.5).expand(len(part)) for t, part, _ in seen])
    # Strata in the order of the rows, each as wide as its part of them.
    low = torch.cat([torch.full((len(part),), 1.0) for _, part, _ in seen]).cumsum(0) - 1
    assert ((n * s - low).abs() <= max(len(part) for _, part, _ in seen)).all()
    torch.manual_seed(5)
    z = flow.base.sample((n,))
    place = torch.lerp(z, x, s[:, None])
    torch.testing.assert_close(torch.cat([part for _, part, _ in seen]), place)
    error = 1.5 * (1.5 * s[:, None] * place) - (x - z)
    torch.testing.assert_close(loss, error.square().sum(1).mean())
    loss.backward()
    assert flow.bijector.field.rate.grad != 0


@pytest.mark.parametrize(
    ("times", "mean", "square"),
    [
        ("uniform", 1 / 2, 1 / 3),
        # Of the density 1 / (1 + δ - s) / L, L = log((1 + δ) / δ): by s = (1 + δ) - (1 + δ - s).
        ("likelihood", 1.1 - 1 / LOG, 1.1**2 - (2 * 1.1 - (1.1**2 - 0.1**2) / 2) / LOG),
    ],
)
def test_times_of_a_batch_have_no_bias(times, mean, square):
    flow = Flow(solved(Scalar(1, "product")))
    x, field = torch.randn(37, 1), flow.bijector.field
    for _ in range(300):
        FlowMatching(times=times)(flow, (x, None))
    s = torch.cat([t.expand(len(part)) for t, part, _ in field.seen])
    assert s.mean().item() == pytest.approx(mean, abs=2e-3)
    assert s.square().mean().item() == pytest.approx(square, abs=2e-3)
    assert s.amin() >= 0
    assert s.amax() <= 1


def test_a_field_that_says_so_takes_a_time_of_each_rows_own():
    class ByRow(Scalar):
        time_by_row = True

        def forward(self, t, x, context=None):
            self.seen.append((t, x, context))
            return self.rate * t.unsqueeze(-1) * x

    flow = Flow(solved(ByRow(3, "")))
    FlowMatching()(flow, (torch.randn(50, 3), None))
    ((t, _, _),) = flow.bijector.field.seen
    assert t.shape == (50,)


def test_each_part_of_the_rows_has_its_context():
    field = Scalar(2, "column", context_features=1)
    flow, c = Flow(solved(field)), torch.arange(40.0)[:, None]
    FlowMatching()(flow, (torch.randn(40, 2), c))
    assert torch.equal(torch.cat([context for *_, context in field.seen]), c)


def test_reflow_takes_the_pairs_of_a_trained_flow():
    """Pairs of an affine flow lie on straight paths: the field that runs them has no loss."""
    shift, scale = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 3.0])
    first = Flow(Affine(shift, scale))
    x = first.sample(300)
    goal = FlowMatching(first).train()
    assert not any(parameter.requires_grad for parameter in goal.parameters())
    assert not goal.first.training
    assert goal.additive

    class Straight(nn.Module):
        features, context_features, time_by_row = 2, 0, True

        def forward(self, t, x, context=None):
            t = t.unsqueeze(-1)
            return (x - t * shift) / (1 + t * (scale - 1)) * (scale - 1) + shift

    flow = Flow(ODEBijector(Straight()))
    assert goal(flow, (x, None)).item() < 1e-8
    assert FlowMatching()(flow, (x, None)).item() > 0.1
