from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters
from torch.func import functional_call, grad, jacrev, stack_module_state, vmap
from zoo import ForeignField, perturbed

from cflows import (
    FFJORD,
    MLP,
    Adaptive,
    FixedGrid,
    Flow,
    Lagged,
    ODEBijector,
    SolverError,
    fit,
    load,
    log_likelihood,
)
from cflows.continuous import divergence
from cflows.continuous.foreign import ModuleLocal
from cflows.continuous.solvers import solve
from cflows.continuous.tableaus import TABLEAUS

TIGHT = Adaptive("dopri5", rtol=1e-10, atol=1e-10)


class Linear(nn.Module):
    """f(t, x) = A x."""

    context_features = 0

    def __init__(self, matrix: torch.Tensor) -> None:
        super().__init__()
        self.features = len(matrix)
        self.matrix = nn.Parameter(matrix)

    def forward(self, t, x, context):
        return x @ self.matrix.T


def flow(**settings) -> FFJORD:
    settings = {"hidden": (8, 8), "evaluation_solver": TIGHT, **settings}
    return perturbed(FFJORD(3, **settings))


@pytest.mark.parametrize("end_time", [0.5, 1.0, 2.0])
def test_a_linear_field_is_its_closed_form_gaussian(end_time):
    # x = exp(TA) z, so x ~ N(0, exp(TA) exp(TA)'), and log|det dx/dz| = T tr A.
    matrix = 0.4 * torch.randn(3, 3, dtype=torch.float64)
    ode = ODEBijector(Linear(matrix), end_time=end_time, evaluation_solver=TIGHT)
    model = Flow(ode).double().eval()
    transport = torch.matrix_exp(end_time * matrix)
    z = torch.randn(5, 3, dtype=torch.float64)
    x, log_det = ode.forward_and_log_det(z)
    torch.testing.assert_close(x, z @ transport.T, rtol=0, atol=1e-8)
    torch.testing.assert_close(log_det, (end_time * matrix.trace()).expand(5), rtol=0, atol=1e-8)
    gaussian = torch.distributions.MultivariateNormal(
        torch.zeros(3, dtype=torch.float64), transport @ transport.T
    )
    torch.testing.assert_close(model.log_prob(x), gaussian.log_prob(x), rtol=0, atol=1e-7)


@pytest.mark.parametrize("method", TABLEAUS)
def test_fixed_grids_have_their_order(method):
    # Over many starts, since the errors of a single one may happen to cancel.
    def rhs(times):
        return [lambda x, rated=True, s=s: (4 * (x + s).cos(), x * x) for s in times]

    start = torch.linspace(-2, 2, 41, dtype=torch.float64)[:, None]
    exact, total, _ = solve(rhs, start, Adaptive("dopri8", 1e-13, 1e-13), integrals=1)
    errors = []
    for steps in (20, 40, 80):
        x, q, stats = solve(rhs, start, FixedGrid(method, steps), integrals=1)
        errors.append([(x - exact).norm().item(), (q - total).norm().item()])
        assert stats.nfe == steps * len(TABLEAUS[method].c)
    for kind in (0, 1):
        slope = math.log2(errors[0][kind] / errors[2][kind]) / 2
        assert slope == pytest.approx(TABLEAUS[method].order, abs=0.2)


@pytest.mark.parametrize("solver", [FixedGrid("rk4", 20), FixedGrid("midpoint", 200), TIGHT])
def test_solves_run_the_same_path_back(solver):
    def rhs(times):
        return [lambda x, rated=True, s=s: (x * s.cos(), x) for s in times]

    start = torch.ones(2, 1, dtype=torch.float64)
    x, q, _ = solve(rhs, start, solver, integrals=1)
    torch.testing.assert_close(x, start * math.exp(math.sin(1.0)), rtol=1e-4, atol=0)
    back, q_back, _ = solve(rhs, x, solver, integrals=1, span=(1.0, 0.0))
    torch.testing.assert_close(back, start, rtol=1e-5, atol=0)
    torch.testing.assert_close(q_back, -q, rtol=1e-5, atol=0)


def test_tighter_solvers_are_tighter():
    assert Adaptive("dopri5", 4.0, 8.0).tightened(4.0) == Adaptive("dopri5", 1.0, 2.0)
    assert FixedGrid("rk4", 10).tightened(16.0) == FixedGrid("rk4", 20)
    model = flow(evaluation_solver=Adaptive("dopri5", 1e-4, 1e-4))
    x = torch.randn(20, 3, dtype=torch.float64)
    with model.using(solver=TIGHT):
        exact = model.log_prob(x)
    loose = (model.log_prob(x) - exact).abs().max()
    with model.tightened(100.0):
        assert (model.log_prob(x) - exact).abs().max() < loose


def test_hutchinsons_log_density_is_unbiased():
    model = flow()
    row = torch.randn(1, 3, dtype=torch.float64)
    n = 20_000
    with torch.no_grad(), model.using(divergence="hutchinson", solver=FixedGrid("rk4", 10)):
        estimates = model.log_prob(row.expand(n, -1))
        with model.using(divergence="exact"):
            exact = model.log_prob(row)
    error = estimates.std() / math.sqrt(n)
    assert 0 < error < 0.05
    assert (estimates.mean() - exact).abs() < 4 * error


@pytest.mark.parametrize("foreign", [False, True])
def test_the_probe_is_fixed_for_a_solve(monkeypatch, foreign):
    drawn = []
    original = divergence.draw_probes

    def counted(*arguments):
        drawn.append(original(*arguments))
        return drawn[-1]

    monkeypatch.setattr(divergence, "draw_probes", counted)
    field = ForeignField(3, 0) if foreign else MLP(3, hidden=(8, 8))
    model = perturbed(Flow(ODEBijector(field, evaluation_solver=TIGHT)))
    x = torch.randn(5, 3, dtype=torch.float64)
    with model.using(divergence="hutchinson"):
        model.log_prob(x)
        assert model.evaluations > 10
        assert len(drawn) == 1
        model.log_prob(x)
    assert len(drawn) == 2
    assert not torch.equal(*drawn), "a new solve has a new probe"


def test_a_solve_with_a_probe_is_as_smooth_as_one_with_the_trace():
    # A probe drawn anew at each call would make the integrand noise and NFE explode.
    model = flow(evaluation_solver=Adaptive("dopri5", 1e-6, 1e-6))
    x = torch.randn(50, 3, dtype=torch.float64)
    model.log_prob(x)
    exact = model.evaluations
    with model.using(divergence="hutchinson"):
        model.log_prob(x)
    assert model.evaluations - exact < 2 * exact


def test_sampling_computes_no_divergence(monkeypatch):
    def refuse(*arguments):
        raise AssertionError("a divergence was computed")

    monkeypatch.setattr(divergence, "linearize", refuse)
    monkeypatch.setattr(divergence, "draw_probes", refuse)
    model = flow()
    model.sample(5)
    model.train().rsample((5,))
    foreign = perturbed(Flow(ODEBijector(ForeignField(3, 0))))
    foreign.sample(5)
    with pytest.raises(AssertionError):
        model.log_prob(torch.zeros(1, 3, dtype=torch.float64))


@pytest.mark.parametrize("foreign", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_no_graph_under_no_grad(foreign, training):
    field = ForeignField(3, 0) if foreign else MLP(3, hidden=(8, 8))
    model = perturbed(Flow(ODEBijector(field))).train(training)
    x = torch.randn(5, 3, dtype=torch.float64)
    with torch.no_grad():
        for value in (model.log_prob(x), *model.sample_and_log_prob(5)):
            assert value.grad_fn is None
            assert not value.requires_grad
    assert model.log_prob(x).requires_grad


def test_mode_picks_solver_and_divergence():
    model = flow(training_solver=FixedGrid("rk4", 3), divergence="hutchinson").train()
    x = torch.randn(5, 3, dtype=torch.float64)
    part = model.bijector.parts[0]
    first, second = model.log_prob(x), model.log_prob(x)
    assert part.stats.nfe == 12
    assert not torch.equal(first, second), "training estimates"
    model.eval()
    assert torch.equal(model.log_prob(x), model.log_prob(x)), "evaluation is exact"
    assert part.stats.nfe > 12
    with model.using(solver=FixedGrid("midpoint", 2)):
        model.log_prob(x)
        assert part.stats.nfe == 4
        with model.using(divergence="hutchinson"):
            assert not torch.equal(model.log_prob(x), model.log_prob(x))
            assert part.stats.nfe == 4, "an inner block keeps what the outer one set"
    model.log_prob(x)
    assert part.stats.nfe > 12


def test_using_works_with_gradients_and_on_a_loaded_flow(tmp_path):
    flow().save(tmp_path / "flow.pt")
    model = load(tmp_path / "flow.pt")
    x = torch.randn(5, 3, dtype=torch.float64)
    with model.using(divergence="hutchinson", solver=FixedGrid("rk4", 4)):
        model.log_prob(x).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    assert model.bijector.parts[0].stats.nfe == 16


def test_using_is_refused_where_it_means_nothing():
    from baselines import MAF

    with pytest.raises(TypeError, match="no continuous part"), MAF(2).using(divergence="exact"):
        pass
    with pytest.raises(ValueError, match="divergence must be one of"), flow().using(divergence="e"):
        pass


def test_trainable_end_time_has_the_gradient_of_finite_differences():
    model = flow(trainable_end_time=True, end_time=0.8)
    part = model.bijector.parts[0]
    x = torch.randn(5, 3, dtype=torch.float64)
    for solver in (TIGHT, FixedGrid("rk4", 20)):
        with model.using(solver=solver):
            model.zero_grad()
            model.log_prob(x).sum().backward()
            gradient = part.log_end_time.grad.item()
            step, values = 1e-5, []
            for sign in (1, -1):
                with torch.no_grad():
                    part.log_end_time += sign * step
                    values.append(model.log_prob(x).sum().item())
                    part.log_end_time -= sign * step
        assert gradient == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-4)
        assert abs(gradient) > 1e-3


def test_one_fast_row_among_slow_ones_keeps_its_tolerance():
    # dx_2/ds = cos(x_1 s): a mean over rows would dilute the one row's error two thousand times.
    def rhs(times):
        def stage(x, s):
            rate = torch.cos(x[:, :1] * s)
            return torch.cat([torch.zeros_like(rate), rate], dim=1), rate

        return [lambda x, rated=True, s=s: stage(x, s) for s in times]

    x = torch.zeros(2000, 2, dtype=torch.float64)
    x[7, 0] = 40.0
    end, total, _ = solve(rhs, x, Adaptive("dopri5", 1e-5, 1e-5), integrals=1)
    exact = math.sin(40.0) / 40.0
    assert abs(end[7, 1].item() - exact) < 5e-5
    assert abs(total[7, 0].item() - exact) < 5e-5


def test_autocast_keeps_the_state_exact():
    model = perturbed(FFJORD(3, hidden=(8, 8)), torch.float32)
    x = torch.randn(5, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        log_prob = model.log_prob(x)
    assert log_prob.dtype == torch.float32
    torch.testing.assert_close(log_prob, model.log_prob(x), rtol=0.1, atol=0.1)


class Stiff(nn.Module):
    features, context_features = 2, 0

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, t, x, context):
        return self.rate * (x - torch.sin(self.rate * t))


@pytest.mark.parametrize("rate", [1e6, float("nan"), float("inf")])
def test_a_field_that_cannot_be_solved_ends_in_one_clear_line(rate):
    solver = Adaptive("dopri5", 1e-6, 1e-6, max_nfe=500)
    ode = ODEBijector(Stiff(rate), evaluation_solver=solver).eval()
    with pytest.raises(SolverError, match=r"at s = .* of \[0, 1\] after \d+ evaluations") as caught:
        ode.inverse_and_log_det(torch.zeros(3, 2))
    assert "\n" not in str(caught.value)


def test_every_method_of_torchdiffeq_can_be_named():
    model = flow()
    x = torch.randn(2, 3, dtype=torch.float64)
    exact = model.log_prob(x)
    for method in ("dopri8", "bosh3", "fehlberg2", "adaptive_heun"):
        with model.using(solver=Adaptive(method, 1e-6, 1e-6)):
            torch.testing.assert_close(model.log_prob(x), exact, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"end_time": 0.0}, "end_time must be positive"),
        ({"end_time": float("inf")}, "end_time must be positive"),
        ({"divergence": "skilling"}, "divergence must be one of auto, exact, hutchinson"),
        ({"probe": "cauchy"}, "probe must be one of rademacher, gaussian"),
        ({"blocks": 0}, "blocks must be at least 1"),
    ],
)
def test_bad_arguments(arguments, words):
    with pytest.raises(ValueError, match=words):
        FFJORD(2, **arguments)


def test_bad_solvers():
    with pytest.raises(ValueError, match="method must be one of"):
        FixedGrid("rk45")
    with pytest.raises(ValueError, match="steps must be at least 1"):
        FixedGrid("rk4", 0)
    with pytest.raises(ValueError, match="dopri5"):
        Adaptive("dopri6")
    with pytest.raises(ValueError, match="positive"):
        Adaptive("dopri5", rtol=-1.0)
    with pytest.raises(TypeError, match="integer attribute"):
        ODEBijector(nn.Linear(2, 2))


@pytest.mark.parametrize("scheme", ["hutchinson", "hutch++"])
def test_evaluation_may_estimate(tmp_path, scheme):
    model = flow(
        evaluation_divergence=scheme, evaluation_probes=4, evaluation_solver=FixedGrid("rk4", 8)
    )
    n = 4000
    x = torch.randn(1, 3, dtype=torch.float64).expand(n, 3)
    found = log_likelihood(model, x)
    with model.using(divergence="exact"):
        exact = log_likelihood(model, x[:1])
    error = found.std() / math.sqrt(n)
    assert 0 < error < 0.05
    assert (found.mean() - exact).abs() < 4 * error
    model.save(tmp_path / "flow.pt")
    for evaluate in (model.log_prob, model.distribution().log_prob, load(tmp_path / "flow.pt")):
        torch.manual_seed(4)
        first = evaluate(x)
        torch.manual_seed(4)
        assert torch.equal(evaluate(x), first), "torch's seed decides"
        assert not torch.equal(evaluate(x), first)


def test_probes_of_evaluation_are_those_of_training_unless_told_otherwise(monkeypatch):
    counts = []
    original = divergence.draw_probes
    monkeypatch.setattr(divergence, "draw_probes", lambda *a: counts.append(a[2]) or original(*a))
    x = torch.randn(2, 3, dtype=torch.float64)
    for own, expected in ((None, 3), (5, 5)):
        model = flow(
            divergence="hutchinson",
            evaluation_divergence="hutchinson",
            evaluation_probes=own,
            evaluation_solver=FixedGrid("rk4", 2),
            ode={"probes": 3},
        )
        model.log_prob(x)
        model.train().log_prob(x)
        assert counts == [expected, 3]
        counts.clear()


def test_fit_validates_by_the_divergence_of_evaluation():
    model = Flow(ODEBijector(ForeignField(3, 0), evaluation_divergence="hutchinson"))
    calls = []
    model.bijector.field.register_forward_hook(lambda *_: calls.append(1))
    original = ModuleLocal.diagonal
    ModuleLocal.diagonal = None
    try:
        history = fit(model, torch.randn(40, 3), torch.randn(9, 3), steps=2, progress=False)
    finally:
        ModuleLocal.diagonal = original
    assert calls
    assert math.isfinite(history.best_validation)


FIELDS = {
    "closed form": lambda: MLP(3, hidden=(8,)),
    "tangents": lambda: MLP(3, hidden=(4, 8, 4)),
    "foreign": lambda: ForeignField(3, 0),
}
GRIDS = [FixedGrid("rk4", 3), Lagged("rk4", 1e-3)]


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("solver", GRIDS)
@pytest.mark.parametrize("training", [False, True])
def test_scores_by_row(name, solver, training):
    ode = ODEBijector(
        FIELDS[name](), divergence="exact", training_solver=solver, evaluation_solver=solver
    )
    model = perturbed(Flow(ode)).train(training)
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    found = vmap(grad(model.log_prob))(x)
    curved = vmap(jacrev(grad(model.log_prob)))(x)
    fixed = FixedGrid(solver.method, ode.steps if isinstance(solver, Lagged) else solver.steps)
    with model.using(solver=fixed):
        (expected,) = torch.autograd.grad(model.log_prob(x).sum(), x, create_graph=True)
    torch.testing.assert_close(found, expected)
    rows = [torch.autograd.grad(expected[:, k].sum(), x, retain_graph=True)[0] for k in range(3)]
    torch.testing.assert_close(curved, torch.stack(rows, dim=1))
    torch.testing.assert_close(jacrev(model.log_prob)(x).sum(1), expected)


@pytest.mark.parametrize("name", FIELDS)
def test_an_ensemble_by_vmap(name):
    models = [
        Flow(ODEBijector(FIELDS[name](), evaluation_solver=GRIDS[0])).double().eval()
        for _ in range(2)
    ]
    parameters, buffers = stack_module_state(models)
    x = torch.randn(4, 3, dtype=torch.float64)
    found = vmap(lambda p, b: functional_call(models[0], (p, b), (x,)))(parameters, buffers)
    torch.testing.assert_close(found, torch.stack([model.log_prob(x) for model in models]))


@pytest.mark.parametrize("transform", [grad, jacrev, lambda f: vmap(grad(f))])
def test_adaptive_solves_are_refused_by_transforms(transform):
    model = perturbed(Flow(ODEBijector(MLP(3, hidden=(8,)))))
    x = torch.randn(2, 3, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="FixedGrid") as caught:
        transform(lambda x: model.log_prob(x).sum())(x)
    assert "\n" not in str(caught.value)


class Score(nn.Module):
    def __init__(self, flow):
        super().__init__()
        self.flow = flow

    def forward(self, x):
        return self.flow.log_prob(x)


@pytest.mark.parametrize("name", ["closed form", "tangents"])
@pytest.mark.parametrize("training", [False, True])
def test_export_with_a_batch_of_any_size(name, training):
    ode = ODEBijector(FIELDS[name](), training_solver=GRIDS[0], evaluation_solver=GRIDS[0])
    ode.divergence = "exact" if name == "tangents" else "auto"
    model = perturbed(Flow(ode)).train(training)
    rows = torch.export.Dim("rows", min=2, max=4096)
    x = torch.randn(8, 3, dtype=torch.float64)
    program = torch.export.export(Score(model), (x,), dynamic_shapes=({0: rows},)).module()
    for n in (8, 40, 300):
        x = torch.randn(n, 3, dtype=torch.float64)
        torch.testing.assert_close(program(x), model.log_prob(x))
    with model.using(solver=TIGHT), pytest.raises(RuntimeError, match="FixedGrid"):
        torch.export.export(Score(model), (x,), strict=False)


@pytest.mark.parametrize(("name", "training"), [("closed form", True), ("foreign", False)])
def test_a_compiled_flow_on_a_fixed_grid_is_one_graph(name, training):
    ode = ODEBijector(
        FIELDS[name](), divergence="exact", training_solver=GRIDS[0], evaluation_solver=GRIDS[0]
    )
    model = perturbed(Flow(ode)).train(training)
    torch.compiler.reset()
    counters.clear()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for _ in range(4):
        x = torch.randn(6, 3, dtype=torch.float64)
        found = compiled(x)
        found.sum().backward()
    assert counters["stats"]["unique_graphs"] == 1
    torch.testing.assert_close(found, model.log_prob(x))
