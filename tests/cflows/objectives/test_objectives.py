from __future__ import annotations

import copy
import math

import pytest
import torch
from one_dimension import (
    NO_ROWS,
    assert_gradient,
    curved,
    gaussian,
    gradient,
    line,
    minimise,
    normal_of,
    perturbed,
)
from torch import nn

from baselines import IAF, MAF, PlanarFlow, RealNVP, ResidualFlow
from cflows import (
    FFJORD,
    Affine,
    AlphaDivergence,
    BatchNorm,
    FixedGrid,
    Flow,
    ForwardKL,
    Inverse,
    LoadError,
    MixtureOfGaussians,
    Normal,
    ReverseKL,
    fit,
)
from cflows.objectives import OBJECTIVES


@pytest.fixture(autouse=True)
def _float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def flows():
    return {
        "maf": lambda: MAF(2, layers=2, hidden=(8,)),
        "iaf": lambda: IAF(2, layers=2, hidden=(8,), batch_norm=True),
        "realnvp": lambda: RealNVP(2, layers=2, hidden=(8,), batch_norm=True),
        "planar": lambda: PlanarFlow(2, layers=2),
        "ffjord": lambda: FFJORD(
            2,
            hidden=(8,),
            divergence="exact",
            training_solver=FixedGrid("rk4", 16),
            evaluation_solver=FixedGrid("rk4", 16),
            batch_norm=True,
        ),
    }


def test_names_that_need_arguments_say_which():
    needed = {
        "reverse_kl": r"ReverseKL\(log_density\)",
        "alpha": r"AlphaDivergence\(log_density\), or AlphaDivergence\(critic=module\)",
        "jensen_shannon": r"JensenShannon\(log_density\)",
        "chi_square": r"ChiSquare\(log_density\)",
    }
    for name, words in needed.items():
        with pytest.raises(ValueError, match=words) as caught:
            OBJECTIVES[name]()
        assert "\n" not in str(caught.value)
        assert name in str(caught.value)

    for name in OBJECTIVES.keys() - needed.keys():
        assert OBJECTIVES[name]().needs_data


def test_which_need_rows():
    assert OBJECTIVES["forward_kl"].needs_data
    objective = ReverseKL(gaussian(0, 1), samples=10)
    assert not objective.needs_data
    assert objective.rows == 10


def test_forward_kl_finds_the_moments():
    rows = 3 + 0.5 * torch.randn(4000, 1)
    flow = minimise(line(), ForwardKL(), rows, n=4000, steps=200, rate=0.1)
    mean, std = normal_of(flow)
    assert mean == pytest.approx(rows.mean().item(), abs=2e-2)
    assert std == pytest.approx(rows.std().item(), abs=2e-2)


@pytest.mark.parametrize("path", [False, True])
def test_reverse_kl_finds_the_target_and_its_normaliser(path):
    objective = ReverseKL(lambda x: 5.0 + gaussian(3.0, 0.5)(x), path_gradient=path)
    flow = minimise(line(), objective)
    assert normal_of(flow) == pytest.approx((3.0, 0.5), abs=2e-2)
    assert objective(flow, NO_ROWS).item() == pytest.approx(-5.0, abs=1e-2)


def mixture(x):
    """Half N(-2, 0.5²), half N(2, 0.5²)."""
    parts = torch.stack([gaussian(-2.0, 0.5)(x), gaussian(2.0, 0.5)(x)])
    return parts.logsumexp(0) - math.log(2)


def test_reverse_kl_seeks_a_mode_and_forward_kl_covers_both():
    rows = torch.where(torch.rand(4000, 1) < 0.5, -2.0, 2.0) + 0.5 * torch.randn(4000, 1)
    seeking = minimise(line(1.0, 0.5), ReverseKL(mixture))
    assert normal_of(seeking) == pytest.approx((2.0, 0.5), abs=5e-2)
    covering = minimise(line(1.0, 0.5), ForwardKL(), rows, n=2000, steps=200)
    assert normal_of(covering) == pytest.approx((0.0, math.sqrt(4.25)), abs=0.1)


@pytest.mark.parametrize("path", [False, True])
def test_reverse_kl_is_the_closed_form_in_the_mean(path):
    m, s, a, b = 0.3, 0.8, 1.0, 1.5
    flow = line(m, s)
    loss = ReverseKL(gaussian(a, b), samples=400_000, path_gradient=path)(flow, NO_ROWS)
    expected = math.log(b / s) + (s**2 + (m - a) ** 2) / (2 * b**2) - 0.5
    assert loss.item() == pytest.approx(expected, abs=5e-3)
    by_mean, by_log_scale = (m - a) / b**2, s**2 / b**2 - 1
    got = dict(zip((n for n, _ in flow.named_parameters()), gradient(flow, loss), strict=True))
    assert got["bijector.shift"].item() == pytest.approx(by_mean, abs=1e-2)
    assert got["bijector.raw_log_scale"].item() == pytest.approx(by_log_scale, abs=1e-2)


def test_reverse_kl_has_the_gradient_of_its_loss():
    assert_gradient(curved(), ReverseKL(mixture, samples=50))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", list(flows()))
def test_the_path_gradient_leaves_out_the_score_and_nothing_else(name, training):
    flow = perturbed(flows()[name]())
    for part in flow.modules():
        if isinstance(part, BatchNorm):
            part.mean.normal_()
            part.variance.uniform_(0.5, 2.0)
    flow.train(training)
    target, state = gaussian(0.5, 0.7), {k: v.clone() for k, v in flow.state_dict().items()}
    losses, gradients = [], []
    for path in (False, True):
        torch.manual_seed(3)
        losses.append(ReverseKL(target, samples=64, path_gradient=path)(flow, NO_ROWS))
        gradients.append(gradient(flow, losses[-1]))
    assert flow.training == training
    assert all(part.training == training for part in flow.modules())
    for key, value in flow.state_dict().items():
        assert torch.equal(value, state[key]), f"{key}: draws change no statistics"
    torch.manual_seed(3)
    x = flow.sample(64)
    score = gradient(flow, flow.eval().log_prob(x).mean())
    near = 1e-4 if name == "ffjord" else 1e-7
    torch.testing.assert_close(losses[0], losses[1], rtol=near, atol=near)
    torch.testing.assert_close(gradients[1], gradients[0] - score, rtol=near, atol=near)
    assert score.abs().max() > 1e-2


@pytest.mark.parametrize("path", [False, True])
def test_only_the_path_gradient_is_zero_at_the_target(path):
    flow = curved()
    held = Flow(flow.bijector).requires_grad_(False)
    target = {name: value.detach().clone() for name, value in held.named_parameters()}
    flow.requires_grad_(True)

    def log_density(x):
        return torch.func.functional_call(flow, target, (x,))

    found = gradient(flow, ReverseKL(log_density, samples=20, path_gradient=path)(flow, NO_ROWS))
    assert (found.abs().max().item() < 1e-10) is path


def test_duality_forwards_in_x_is_backwards_in_u():
    """KL(p(x) || q(x)) = KL(p(u) || q(u)), and every draw's share of it is the same."""
    target = MixtureOfGaussians(1, 2, spread=2.0, learnable=False)
    flow, n = curved(), 4000
    torch.manual_seed(5)
    x = target.sample((n,))
    forward = ForwardKL()(flow, (x, None)) + target.log_prob(x).mean()
    seen_from_noise = Flow(Inverse(flow.bijector), base=target)
    torch.manual_seed(5)
    reverse = ReverseKL(flow.base.log_prob, samples=n)(seen_from_noise, NO_ROWS)
    torch.testing.assert_close(forward, reverse)
    torch.testing.assert_close(gradient(flow, forward), gradient(flow, reverse))
    grid = torch.linspace(-20, 20, 20_001).unsqueeze(1)
    p, q = target.log_prob(grid), flow.log_prob(grid)
    in_x = torch.trapezoid(p.exp() * (p - q), grid[:, 0])
    p, q = seen_from_noise.log_prob(grid), flow.base.log_prob(grid)
    in_u = torch.trapezoid(p.exp() * (p - q), grid[:, 0])
    torch.testing.assert_close(in_x, in_u, rtol=1e-4, atol=1e-5)
    assert forward.item() == pytest.approx(in_x.item(), abs=0.1)


def test_a_context_asks_for_one_draw_a_row():
    flow = MAF(1, context_features=1, layers=1, hidden=(8,)).double()
    context = torch.randn(2000, 1)

    def log_density(x, c):
        return gaussian(0.0, 0.5)(x - 2 * c)

    assert ReverseKL(log_density)(flow, (None, context)).shape == ()
    for path in (False, True):
        objective = ReverseKL(log_density, path_gradient=path)
        optimiser = torch.optim.Adam(flow.parameters(), lr=2e-2)
        for _ in range(150):
            optimiser.zero_grad()
            objective(flow, (None, context[torch.randint(2000, (256,))])).backward()
            optimiser.step()
    draws = flow.eval().sample(4000, torch.tensor([[1.0]]))
    assert draws.mean().item() == pytest.approx(2.0, abs=0.1)
    assert draws.std().item() == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("make", [ReverseKL, AlphaDivergence], ids=["reverse_kl", "alpha"])
def test_draws_of_contexts_count_by_their_rows_weights(make):
    flow = perturbed(MAF(1, context_features=1, layers=1, hidden=(8,)))
    context, weights = torch.randn(6, 1), torch.tensor([2.0, 0, 1, 0, 0, 3])

    def log_density(x, c):
        return gaussian(0.0, 0.5)(x - 2 * c)

    losses = []
    for given in (*torch.eye(6), weights):
        torch.manual_seed(0)
        losses.append(make(log_density)(flow, (None, context), given))
    torch.testing.assert_close(losses[-1], sum(w * v for w, v in zip(weights, losses)))  # noqa: B905
    history = fit(
        flow,
        (torch.zeros(6, 1), context),
        objective=make(log_density),
        weights=weights,
        steps=3,
        progress=False,
    )
    assert history.steps == 3
    with pytest.raises(ValueError, match="weighs no rows: leave weights out") as caught:
        make(log_density)(flow, NO_ROWS, weights)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "make",
    [
        lambda: PlanarFlow(2, layers=1),
        lambda: ResidualFlow(2, layers=1, hidden=(4,)),
        lambda: FFJORD(2, hidden=(4,), evaluation_solver=FixedGrid("rk4", 2)),
    ],
    ids=["planar", "residual", "ffjord"],
)
@pytest.mark.parametrize("used", [(True, False), (False, True)])
def test_a_target_that_was_used_is_the_same_target(tmp_path, make, used):
    def go(steps, used, target):
        if used:
            target.log_prob(torch.zeros(3, 2))
            target.sample(2)
        flow = MAF(2, layers=1, hidden=(4,))
        return fit(
            flow,
            None,
            objective=ReverseKL(target.log_prob, samples=8),
            steps=steps,
            seed=0,
            checkpoint=tmp_path / "run.pt",
            progress=False,
        )

    target = perturbed(make()).eval()
    first, second, other = copy.deepcopy(target), target, perturbed(make(), 0.1).eval()
    go(2, used[0], first)
    with pytest.raises(LoadError, match="another run"):
        go(4, used[1], other)
    assert go(4, used[1], second).steps == 4


def test_wrong_targets_are_named():
    flow = line()
    with pytest.raises(ValueError, match=r"shape \(512,\), got \(512, 1\)"):
        ReverseKL(lambda x: x)(flow, NO_ROWS)
    with pytest.raises(ValueError, match="samples must be at least 1"):
        ReverseKL(gaussian(0, 1), samples=0)
    trained = Flow(Affine([0.0], [1.0]), base=MixtureOfGaussians(1, 2))
    for path in (False, True):
        with pytest.raises(TypeError, match="carry no gradient"):
            ReverseKL(gaussian(0, 1), path_gradient=path)(trained, NO_ROWS)
    assert isinstance(Normal(1), nn.Module)
