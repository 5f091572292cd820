from __future__ import annotations

import pytest
import torch
from zoo import perturbed

import cflows
from baselines import InversionError, Residual, ResidualFlow
from baselines.flows.residual import exact_log_det, series_log_det

D, C = 3, 2


def draws(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64)


def strong(**settings) -> Residual:
    """A layer whose Jacobian at 0 is as large as it may be: all its eigenvalues are 0.81."""
    layer = Residual(D, hidden=(D,), activation="tanh", coefficient=0.9, **settings).double()
    with torch.no_grad():
        rotation = 3 * torch.linalg.qr(draws(D, D))[0]
        for part, weight in zip(layer.network.layers, (rotation, rotation.T), strict=True):
            part.weight.copy_(weight)
            part.bias.zero_()
    return layer


def layer_with_context(**settings) -> Residual:
    return perturbed(Residual(D, context_features=C, hidden=(8, 8), **settings))


def test_flows_start_at_the_base():
    x = torch.randn(7, D)
    flow = ResidualFlow(D)
    torch.testing.assert_close(flow.log_prob(x), flow.base.log_prob(x))
    assert len(flow.bijector.parts) == 8


def test_inverse_is_the_direction_of_one_pass():
    flow = perturbed(ResidualFlow(D, layers=2, hidden=(8,)))
    flow.log_prob(draws(10, D))
    assert flow.evaluations == 2
    flow.sample(10)
    assert flow.evaluations > 10
    turned = cflows.Inverse(flow.bijector)
    z = draws(4, D)
    torch.testing.assert_close(turned(z), flow.bijector.inverse(z))


def test_forward_solves_and_says_so():
    layer = layer_with_context()
    z, c = draws(50, D), draws(50, C)
    assert layer.inversion_status is None
    x = layer(z, c)
    status = layer.inversion_status
    assert status.converged
    assert status.residual <= 1e-12
    assert 2 < status.iterations < 500
    torch.testing.assert_close(layer.inverse(x, c), z, rtol=0, atol=1e-11)


def test_rows_of_any_size_are_solved():
    layer = strong()
    z = draws(4, D) * torch.tensor([1e-9, 1.0, 1e3, 1e9])[:, None]
    assert (layer.inverse(layer(z)) - z).abs().amax(-1).le(1e-10 * (1 + z.abs().amax(-1))).all()


def test_an_iteration_that_does_not_converge_is_an_error():
    layer = strong(max_iterations=5)
    with pytest.raises(InversionError, match=r"after 5 iterations.*raise max_iterations") as caught:
        layer(draws(4, D))
    assert "\n" not in str(caught.value)
    assert not layer.inversion_status.converged
    assert layer.inversion_status.iterations == 5
    with pytest.raises(InversionError, match="check the inputs for NaN"):
        strong()(torch.full((2, D), float("nan"), dtype=torch.float64))


def test_a_gradient_that_does_not_converge_is_an_error():
    layer = strong()
    x = layer(draws(4, D))
    layer.max_iterations = 3
    with pytest.raises(InversionError, match="the gradient's"):
        x.sum().backward()


def test_a_loose_tolerance_takes_fewer_iterations():
    z = draws(10, D)
    counts = []
    for tolerance in (1e-3, 1e-6, None):
        torch.manual_seed(0)
        layer = strong(tolerance=tolerance)
        layer(z)
        counts.append(layer.inversion_status.iterations)
    assert counts[0] < counts[1] < counts[2]


@pytest.mark.parametrize("with_log_det", [False, True])
def test_gradients_of_the_solution(with_log_det):
    layer = layer_with_context()
    names = [name for name, _ in layer.named_parameters()]

    def solved(z, c, *parameters):
        state = dict(zip(names, parameters, strict=True))
        function = torch.func.functional_call
        if with_log_det:
            return function(_Both(layer), {f"layer.{k}": v for k, v in state.items()}, (z, c))
        return function(layer, state, (z, c))

    values = [parameter.detach().clone().requires_grad_() for parameter in layer.parameters()]
    inputs = (draws(2, D).requires_grad_(), draws(2, C).requires_grad_(), *values)
    assert torch.autograd.gradcheck(solved, inputs, eps=1e-6, atol=1e-6)


class _Both(torch.nn.Module):
    def __init__(self, layer: Residual) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, z, c):
        return self.layer.forward_and_log_det(z, c)


def test_a_second_derivative_of_the_solution_is_refused():
    z = draws(2, D).requires_grad_()
    (gradient,) = torch.autograd.grad(strong()(z).square().sum(), z, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        gradient.sum().backward()


@pytest.mark.parametrize("hidden", [(8, 8), (2,), (8, 2, 8)])
def test_exact_log_det_turns_round_at_the_narrowest_layer(hidden):
    layer = perturbed(Residual(D, hidden=hidden))
    x = draws(2, 3, D)
    log_det = layer.inverse_and_log_det(x)[1]
    for i in range(2):
        for j in range(3):
            jacobian = torch.autograd.functional.jacobian(layer.inverse, x[i, j])
            torch.testing.assert_close(log_det[i, j], torch.linalg.slogdet(jacobian)[1])


def estimates(layer: Residual, x: torch.Tensor, count: int):
    """The mean of ``count`` draws of value and gradients, and its standard errors.

    A draw is the mean of 100 rows, which have their own probes and share the length of the series.
    """
    kept = []
    for _ in range(count):
        layer.zero_grad()
        point = x.clone().requires_grad_()
        value = layer.inverse_and_log_det(point.expand(100, D))[1].mean(0, keepdim=True)
        value.sum().backward()
        weight = layer.network.layers[0].weight.grad
        kept.append(torch.cat([value.detach(), point.grad.flatten(), weight.flatten()]))
    found = torch.stack(kept)
    return found.mean(0), found.std(0) / count**0.5


@pytest.mark.parametrize("probe", ["rademacher", "gaussian"])
def test_the_series_and_its_gradient_are_unbiased(probe):
    settings = {"probe": probe, "exact_terms": 1, "continuation": 0.85}
    layer = strong(log_det="unbiased", **settings)
    x = 0.3 * draws(1, D)
    mean, error = estimates(layer, x, 600)
    layer.log_det = "exact"
    exact, none = estimates(layer, x, 2)
    assert none.abs().max() < 1e-12
    assert ((mean - exact).abs() < 4.5 * error).all()
    assert error[0] < 0.1 * exact[0].abs()
    # What is lost by cutting the series at its typical length would show.
    local = layer.network.frozen().linearize(x)
    probes = torch.eye(D, dtype=torch.float64).unsqueeze(1)  # the traces themselves
    torch.testing.assert_close(
        series_log_det(local, probes, [1.0] * 400), exact_log_det(local, x), rtol=1e-6, atol=0
    )
    short = series_log_det(local, probes, [1.0] * 4)
    assert (short - exact[:1]).abs() > 4.5 * error[0]


def test_training_estimates_and_evaluation_is_exact():
    layer = Residual(12, hidden=(16,))  # more tangents than "auto" takes in training
    perturbed(layer).train()
    x = draws(5, 12)
    first, second = (layer.inverse_and_log_det(x)[1] for _ in range(2))
    assert not torch.equal(first, second)
    layer.eval()
    first, second = (layer.inverse_and_log_det(x)[1] for _ in range(2))
    assert torch.equal(first, second)
    small = perturbed(Residual(D, hidden=(16,))).train()
    first, second = (small.inverse_and_log_det(x[:, :D])[1] for _ in range(2))
    assert torch.equal(first, second)
    small.log_det = "unbiased"
    small.eval()
    first, second = (small.inverse_and_log_det(x[:, :D])[1] for _ in range(2))
    assert not torch.equal(first, second)


def test_the_series_is_long_enough_for_a_finite_variance():
    assert Residual(D, coefficient=0.99).continuation == pytest.approx(0.99**6)
    assert Residual(D, coefficient=0.6).continuation == 0.5
    assert Residual(D, continuation=0.2).continuation == 0.2


def test_more_probes_have_less_variance():
    x = draws(1, D).expand(4000, D)
    spread = []
    for probes in (1, 16):
        torch.manual_seed(0)
        layer = strong(log_det="unbiased", exact_terms=6, continuation=1e-9, probes=probes)
        with torch.no_grad():
            spread.append(layer.inverse_and_log_det(x)[1].std())
    assert 3 < spread[0] / spread[1] < 5


def test_a_residual_flow_learns():
    torch.manual_seed(0)
    x = torch.randn(500, 2) * torch.tensor([0.5, 2.0]) + torch.tensor([1.0, -1.0])
    flow = ResidualFlow(2, layers=2, hidden=(16,))
    before = flow.log_prob(x).mean()
    cflows.fit(flow, x, steps=60, batch_size=500, learning_rate=1e-2, device="cpu", progress=False)
    assert flow.log_prob(x).mean() > before + 0.5
    z = flow.bijector.inverse(x)
    torch.testing.assert_close(flow.bijector(z), x, atol=1e-4, rtol=1e-4)


def test_autocast_changes_nothing():
    layer = perturbed(Residual(D, hidden=(8,)), torch.float32)
    z = torch.randn(5, D)
    expected = (*layer.forward_and_log_det(z), *layer.inverse_and_log_det(z))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = (*layer.forward_and_log_det(z), *layer.inverse_and_log_det(z))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"log_det": "power"}, "log_det must be one of auto, exact, unbiased"),
        ({"probe": "cauchy"}, "probe must be one of"),
        ({"probes": 0}, "at least 1"),
        ({"exact_terms": -1}, "at least 0"),
        ({"continuation": 1.0}, "continuation must lie"),
        ({"tolerance": 0.0}, "tolerance must be positive"),
        ({"max_iterations": 0}, "at least 1"),
    ],
)
def test_bad_arguments(arguments, words):
    with pytest.raises(ValueError, match=words) as caught:
        Residual(3, **arguments)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="layers must be at least 1"):
        ResidualFlow(3, layers=0)


def test_a_backward_pass_within_autocast_solves_in_full_precision():
    layer = perturbed(Residual(3, hidden=(8, 8)), torch.float32)
    z = torch.randn(20, 3, requires_grad=True)
    expected = torch.autograd.grad(layer(z).square().sum(), z)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = torch.autograd.grad(layer(z).square().sum(), z)[0]
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)
