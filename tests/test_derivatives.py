"""Every derivative of every part is right or refused, judged by differences and by each other."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor
from zoo import ALL, BIJECTORS, FLOWS, Case, cases, draws, perturbed

from baselines import AffineScale, AffineSpline, Residual
from baselines.networks.lipschitz import spectral_bound
from cflows import MLP, Adaptive, Bijector, Chain, FixedGrid, ODEBijector

D, C = 4, 2
DIRECTIONS = ("forward", "inverse")
# Two steps: a solve of any accuracy has derivatives, and a short one has them soon.
GRID = FixedGrid("rk4", 2)
ROWS = 3


class Direction:
    """One direction of a bijector, as a function of the values, the context and the parameters."""

    def __init__(self, case: Case, direction: str, device, f: Bijector | None = None) -> None:
        where = {"dtype": torch.float64, "device": device}
        context = C if case.context and f is None else 0
        self.f = case.bijector(D, context, **where) if f is None else f
        for part in self.f.modules():
            if isinstance(part, ODEBijector):
                part.training_solver = part.evaluation_solver = GRID
        self.method = getattr(self.f, f"{direction}_and_log_det")
        shape = (ROWS, D)
        start = (
            case.noise(*shape, **where) if direction == "forward"
            else case.data(self.f, *shape, **where)
        )  # fmt: skip
        self.weight = draws(D, **where)
        self.inputs = [start.detach()]
        if context:
            self.inputs.append(draws(ROWS, context, **where))
        self.parameters = [p for p in self.f.parameters() if p.requires_grad]

    def leaves(self) -> list[Tensor]:
        return [value.clone().requires_grad_() for value in self.inputs]

    def total(self, value: Tensor, context: Tensor | None = None) -> Tensor:
        out, log_det = self.method(value, context)
        return (out.square() * self.weight).sum() + 1.3 * log_det.sum()

    def gradients(self, create_graph: bool) -> tuple[Tensor, ...]:
        leaves = self.leaves()
        return torch.autograd.grad(
            self.total(*leaves), [*leaves, *self.parameters], create_graph=create_graph,
            allow_unused=True, materialize_grads=True,
        )  # fmt: skip

    def score(self) -> Tensor:
        """|∂total/∂value|², by first derivatives alone."""
        leaves = self.leaves()
        return torch.autograd.grad(self.total(*leaves), leaves[0])[0].square().sum()

    def penalty(self, leaves: list[Tensor]) -> Tensor:
        (score,) = torch.autograd.grad(self.total(*leaves), leaves[0], create_graph=True)
        return score.square().sum()

    @contextmanager
    def moved(self, shifts: list[Tensor], step: float) -> Iterator[None]:
        """Inputs and parameters a step along a direction."""
        everything = [*self.inputs, *self.parameters]
        kept = [value.detach().clone() for value in everything]
        with torch.no_grad():
            for value, shift in zip(everything, shifts, strict=True):
                value += step * shift
        try:
            yield
        finally:
            with torch.no_grad():
                for value, before in zip(everything, kept, strict=True):
                    value.copy_(before)


BOTH_WAYS = pytest.mark.parametrize(
    ("case", "direction"),
    [
        pytest.param(case, direction, id=f"{name}-{direction}")
        for name, case in ALL.items()
        for direction in DIRECTIONS
    ],
)


@BOTH_WAYS
def test_create_graph_changes_no_gradient(case, direction, device):
    way = Direction(case, direction, device)
    for plain, graph in zip(way.gradients(False), way.gradients(True), strict=True):
        torch.testing.assert_close(graph.detach(), plain, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("direction", DIRECTIONS)
@cases(BIJECTORS, lambda case: case.domain is None and case.surjective)
def test_a_layer_used_twice(case, direction, device):
    layer = case.bijector(D, device=device)
    between = BIJECTORS["sinh-arcsinh"].bijector(D, device=device)
    way = Direction(case, direction, device, Chain(layer, between, layer))
    plain = way.gradients(False)
    for one, graph in zip(plain, way.gradients(True), strict=True):
        torch.testing.assert_close(graph.detach(), one, rtol=1e-10, atol=1e-10)
    shifts = [torch.randn_like(value) for value in plain]
    slope = sum((g * s).sum() for g, s in zip(plain, shifts, strict=True))
    values = []
    for step in (1e-6, -1e-6):
        with way.moved(shifts, step):
            values.append(way.total(*way.inputs).detach())
    expected = (values[0] - values[1]) / 2e-6
    torch.testing.assert_close(slope, expected, rtol=1e-5, atol=1e-5)


@BOTH_WAYS
def test_second_derivatives_are_differences_or_refused(case, direction, device):
    way = Direction(case, direction, device)

    def of_all() -> list[Tensor]:
        leaves = way.leaves()
        return torch.autograd.grad(
            way.penalty(leaves), [*leaves, *way.parameters],
            allow_unused=True, materialize_grads=True,
        )  # fmt: skip

    def backward() -> None:
        way.penalty(way.leaves()).backward()

    def hessian() -> Tensor:
        rest = way.inputs[1:]
        point = way.inputs[0]
        return torch.autograd.functional.hessian(lambda v: way.total(v, *rest), point)

    if direction == case.first_order:
        asks: list[Callable[[], object]] = [of_all, backward, hessian]
        for one in way.parameters[:1] + way.parameters[-1:]:
            asks.append(lambda one=one: torch.autograd.grad(
                way.penalty(way.leaves()), one, allow_unused=True))  # fmt: skip
        for ask in asks:
            with pytest.raises(RuntimeError, match="differentiate") as caught:
                ask()
            assert "\n" not in str(caught.value)
        return
    found = of_all()
    shifts = [torch.randn_like(value) / value.numel() ** 0.5 for value in found]
    slope = sum((g * s).sum() for g, s in zip(found, shifts, strict=True))
    values = []
    for step in (1e-6, -1e-6):
        with way.moved(shifts, step):
            values.append(way.score())
    expected = (values[0] - values[1]) / 2e-6
    torch.testing.assert_close(slope, expected, rtol=1e-4, atol=1e-5)

    matrix = hessian()
    columns = matrix.reshape(ROWS * D, ROWS * D)
    torch.testing.assert_close(columns, columns.mT, rtol=1e-8, atol=1e-8)
    shift = torch.randn_like(way.inputs[0])
    still = [torch.zeros_like(value) for value in [*way.inputs[1:], *way.parameters]]
    slopes = []
    for step in (1e-6, -1e-6):
        with way.moved([shift, *still], step):
            slopes.append(way.gradients(False)[0])
    expected = (slopes[0] - slopes[1]) / 2e-6
    product = (columns @ shift.flatten()).view_as(shift)
    torch.testing.assert_close(product, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("gradient", ["backprop", "checkpoint", "adjoint"])
@pytest.mark.parametrize("method", ["dopri5", "midpoint", "rk4"])
def test_ways_of_a_solves_gradient(gradient, method, device):
    adjoint = gradient == "adjoint"
    solver = Adaptive("dopri5", 1e-9, 1e-9) if adjoint else FixedGrid("rk4", 3)
    if method != "dopri5":
        solver = Adaptive(method, step_size=0.25) if adjoint else FixedGrid(method, 3)
    f = ODEBijector(
        MLP(D, hidden=(8, 8)), gradient=gradient, training_solver=solver, divergence="exact"
    )
    perturbed(f, device=device).train()
    way = Direction(BIJECTORS["ode-concat"], "inverse", device, f)
    f.training_solver = solver
    for plain, graph in zip(way.gradients(False), way.gradients(True), strict=True):
        torch.testing.assert_close(graph.detach(), plain, rtol=1e-10, atol=1e-10)
    if adjoint:
        for one in (way.inputs[0], *way.parameters):
            leaves = [one.requires_grad_()] if one is way.inputs[0] else way.leaves()
            with pytest.raises(RuntimeError, match='gradient="backprop"'):
                torch.autograd.grad(way.penalty(leaves), one, allow_unused=True)
        return
    found = torch.autograd.grad(
        way.penalty(way.leaves()), way.parameters, allow_unused=True, materialize_grads=True
    )
    shifts = [torch.randn_like(value) for value in found]
    values = []
    for step in (1e-6, -1e-6):
        with way.moved([torch.zeros_like(way.inputs[0]), *shifts], step):
            values.append(way.score())
    slope = sum((g * s).sum() for g, s in zip(found, shifts, strict=True))
    torch.testing.assert_close(slope, (values[0] - values[1]) / 2e-6, rtol=1e-4, atol=1e-5)


def test_a_solve_without_a_gradient_says_so():
    f = ODEBijector(MLP(2, hidden=(4,)), evaluation_solver=Adaptive("scipy_solver")).eval()
    x = torch.zeros(3, 2, requires_grad=True)
    z, log_det = f.inverse_and_log_det(x)
    with pytest.raises(RuntimeError, match="scipy_solver cannot be differentiated") as caught:
        torch.autograd.grad(z.sum() + log_det.sum(), list(f.parameters()), allow_unused=True)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shape", [(4, 3), (3, 4), (1, 1), (5, 5)])
def test_a_spectral_bound_has_second_derivatives(shape):
    weight = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(spectral_bound, weight)
    assert torch.autograd.gradgradcheck(spectral_bound, weight)
    plain = torch.func.jacrev(torch.func.jacrev(spectral_bound))(weight.detach())
    torch.testing.assert_close(
        torch.autograd.functional.hessian(spectral_bound, weight.detach()), plain
    )
    zero = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(spectral_bound(zero), zero, create_graph=True)
    assert slope.isfinite().all()


def test_an_unbiased_log_determinant_is_differentiated_once():
    f = perturbed(Residual(D, hidden=(8,), log_det="unbiased"))
    x = draws(ROWS, D, dtype=torch.float64, device="cpu").requires_grad_()
    (score,) = torch.autograd.grad(f.inverse_and_log_det(x)[1].sum(), x, create_graph=True)
    for asked in (x, *list(f.parameters())[:2]):
        with pytest.raises(RuntimeError, match='log_det="exact"'):
            torch.autograd.grad(score.square().sum(), asked, retain_graph=True, allow_unused=True)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("transformer", [AffineScale(), AffineSpline(3, 1.0)], ids=repr)
def test_transformers_of_parameters_that_are_made_of_the_value(transformer, direction):
    torch.manual_seed(1)
    z = draws(ROWS, 2, dtype=torch.float64, device="cpu").requires_grad_()
    weight = draws(2, 2 * transformer.size, dtype=torch.float64, device="cpu").requires_grad_()

    def function(z: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        parameters = torch.tanh(z @ weight).unflatten(-1, (2, transformer.size))
        return getattr(transformer, direction)(z, parameters)

    assert torch.autograd.gradcheck(function, (z, weight))
    assert torch.autograd.gradgradcheck(function, (z, weight))


@cases(FLOWS)
def test_weights_exchanged_through_data_are_seen(case, device):
    """The way of averages: swap the mean in, evaluate, swap it out again."""
    flow = case.make(D, device=device)
    x = draws(ROWS, D, dtype=torch.float64, device=device)
    shadow = [0.9 * parameter.detach().clone() for parameter in flow.parameters()]
    expected = copy.deepcopy(flow)
    with torch.no_grad():
        for parameter, value in zip(expected.parameters(), shadow, strict=True):
            parameter.copy_(value)
        first = flow.log_prob(x)
        kept = [parameter.data.clone() for parameter in flow.parameters()]
        for parameter, value in zip(flow.parameters(), shadow, strict=True):
            parameter.data.copy_(value)
        assert torch.equal(flow.log_prob(x), expected.log_prob(x))
        assert torch.equal(flow.bijector(x), expected.bijector(x))
        for parameter, value in zip(flow.parameters(), kept, strict=True):
            parameter.data.copy_(value)
        assert torch.equal(flow.log_prob(x), first)


@pytest.mark.parametrize(
    ("case", "training"),
    [
        pytest.param(case, training, id=f"{name}-{training}")
        for name, case in FLOWS.items()
        for training in (False, True)
        if case.apart_in_training or not training
    ],
)
def test_scores_by_row(case, training, device):
    flow = case.make(D, device=device)
    for part in flow.modules():
        if isinstance(part, ODEBijector):
            part.training_solver = part.evaluation_solver = GRID
            part.divergence = "exact"
        if isinstance(part, Residual):
            part.log_det = "exact"
    flow.train(training)
    x = draws(ROWS, D, dtype=torch.float64, device=device)
    by_row = torch.func.vmap(torch.func.grad(flow.log_prob))(x)
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(flow.log_prob(leaf).sum(), leaf)
    torch.testing.assert_close(by_row, expected)
