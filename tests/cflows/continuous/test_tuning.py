"""Solvers that are chosen for, or fitted to, the paths of one field."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import nn

from cflows import (
    FFJORD,
    MLP,
    Adaptive,
    Bespoke,
    Chain,
    FixedGrid,
    Flow,
    Lagged,
    Normal,
    ODEBijector,
    ResidualField,
    fit,
    load,
    register,
    tune_solver,
    whiten,
)
from cflows.continuous import tuning
from cflows.continuous.bespoke import Scheme
from cflows.continuous.schemes import FINE, Paths, best_nodes, fit_scheme
from cflows.continuous.solvers import solve
from cflows.continuous.tableaus import TABLEAUS
from cflows.continuous.trials import Bench
from cflows.continuous.tuned import fingerprint


@register
class Linear(nn.Module):
    """f = x A: x(1) = x(0) exp(A)."""

    features = 2
    context_features = 0

    def __init__(self):
        super().__init__()
        self.matrix = nn.Parameter(torch.tensor([[0.8, -0.5], [0.5, 0.3]]))

    def forward(self, t, x, context=None):
        return x @ self.matrix


def linear():
    return Flow(ODEBijector(Linear()), Normal(2)).eval()


def bent(seed=0, size=0.15, **settings):
    """A field with random weights, whose size says how curved its paths are."""
    torch.manual_seed(seed)
    flow = FFJORD(2, hidden=(32, 32), activation="silu", **settings).eval()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(size * torch.randn_like(parameter))
    return flow


def apart(one, other):
    """Mean distance."""
    return float((one - other).detach().abs().mean())


def block_of(flow):
    return next(part for part in flow.modules() if isinstance(part, ODEBijector))


@pytest.mark.parametrize(("method", "steps"), [("midpoint", 3), ("rk4", 2), ("dopri5", 2)])
def test_a_grid_is_a_scheme_of_one_step(method, steps):
    flow, x = bent(), torch.randn(20, 2)
    block, scheme = block_of(flow), Scheme.of(method, steps)
    with flow.using(solver=FixedGrid(method, steps)):
        log_prob, sample = flow.log_prob(x), block(x)
    with flow.using(solver=Bespoke(scheme, scheme, fingerprint(block))):
        torch.testing.assert_close(flow.log_prob(x), log_prob)
        torch.testing.assert_close(block(x), sample)
        assert block.stats.nfe == len(scheme.c)


def test_the_tuned_solver_of_a_linear_field_keeps_to_its_closed_form():
    flow, rows = linear(), torch.randn(600, 2)
    tuning = tune_solver(flow, rows, tolerance=1e-3)
    assert tuning.kept
    matrix, x = block_of(flow).field.matrix.detach(), torch.randn(500, 2)
    z = torch.linalg.solve(torch.linalg.matrix_exp(matrix).mT, x.mT).mT
    assert apart(flow.log_prob(x), Normal(2).log_prob(z) - matrix.trace()) < 3e-3
    assert apart(flow.bijector(z), x) < 3e-3
    assert max(tuning.density.evaluations, tuning.sampling.evaluations) <= 12


def test_a_fitted_scheme_needs_fewer_evaluations_than_a_grid():
    flow, rows = bent(1, size=0.45), torch.randn(800, 2)
    grids = tune_solver(flow, rows, tolerance=1e-3, fitted=False)
    tuning = tune_solver(flow, rows, tolerance=1e-3)
    assert grids.kept
    assert tuning.kept
    assert tuning.density.evaluations < grids.density.evaluations
    assert tuning.sampling.evaluations < grids.sampling.evaluations
    assert isinstance(tuning.solver, Bespoke)
    assert block_of(flow).solver == tuning.solver

    fresh, log_prob = torch.randn(400, 2), flow.log_prob
    with flow.using(solver=Adaptive(rtol=1e-7, atol=1e-7)):
        fine = log_prob(fresh)
    assert apart(log_prob(fresh), fine) < 3e-3


def test_samples_are_told_the_density_that_they_have():
    flow = bent(2)
    tuning = tune_solver(flow, torch.randn(600, 2), tolerance=1e-3)
    x, told = flow.sample_and_log_prob(500)
    assert tuning.sampling.gap <= 1e-3
    assert apart(flow.log_prob(x), told) < 3e-3


@pytest.mark.parametrize("kind", ["mlp", "residual"])
def test_traces_in_bfloat16_leave_the_paths_as_they_are(kind, tmp_path):
    torch.manual_seed(0)
    field = ResidualField(3, width=32) if kind == "residual" else MLP(3, hidden=(32, 32))
    for parameter in field.parameters():
        nn.init.normal_(parameter, std=0.2)
    flow, x = Flow(ODEBijector(field)).eval(), torch.randn(300, 3)
    scheme, weights = Scheme.of("rk4", 4), fingerprint(block_of(flow))
    exact, low = (Bespoke(scheme, scheme, weights, bfloat16) for bfloat16 in (False, True))
    assert "bfloat16" in str(low)
    with torch.no_grad(), flow.using(solver=exact):
        z, log_prob = flow.bijector.inverse(x), flow.log_prob(x)
    block_of(flow).tune(low)
    with torch.no_grad():
        told = flow.log_prob(x)
        assert torch.equal(flow.bijector.inverse(x), z)
        assert 0 < apart(told, log_prob) < 0.01
        torch.testing.assert_close(flow.log_prob(x[:1]), told[:1], atol=1e-3, rtol=0)
    torch.testing.assert_close(flow.log_prob(x.requires_grad_()), log_prob)
    flow.save(tmp_path / "low.flow")
    with torch.no_grad():
        assert torch.equal(load(tmp_path / "low.flow").log_prob(x), told)


@pytest.mark.parametrize("faster", [True, False])
def test_traces_in_bfloat16_are_taken_where_they_are_faster(faster, monkeypatch):
    price = {True: 1.0 if faster else 3.0, False: 2.0}
    monkeypatch.setattr(Bench, "seconds", lambda self, solver, bfloat16=False: price[bfloat16])
    flow, rows = bent(), torch.randn(300, 2)
    tuning = tune_solver(flow, rows, tolerance=0.01)
    assert tuning.kept
    assert tuning.density.bfloat16 is tuning.sampling.bfloat16 is faster
    assert ("bf16 " in str(tuning)) is faster
    assert getattr(block_of(flow).solver, "bfloat16", False) is faster
    double = bent().double()
    assert not tune_solver(double, rows.double(), tolerance=0.01).density.bfloat16


def test_samples_without_their_density_need_the_end_alone(tmp_path):
    flow, rows = bent(1, size=0.6), torch.randn(600, 2)
    result = tune_solver(flow, rows, tolerance=0.003)
    block, z = block_of(flow), torch.randn(500, 2)
    assert result.kept
    assert result.drawing is not None
    assert result.drawing.evaluations < result.sampling.evaluations
    assert "without their density" in str(block.solver)
    assert "drawing" in str(result)
    flow.save(tmp_path / "flow")
    for own in (flow, load(tmp_path / "flow")):
        x = own.bijector(z)
        assert block_of(own).stats.nfe == result.drawing.evaluations
        with own.using(solver=Adaptive(rtol=1e-7, atol=1e-7)):
            exact = own.bijector(z)
        off = ((x - exact) / exact.std(0)).square().mean().sqrt()
        assert off.item() < 0.01
        own.bijector.forward_and_log_det(z)
        assert block_of(own).stats.nfe == result.sampling.evaluations


def test_where_nothing_cheap_will_do_the_fine_solve_is_taken(monkeypatch):
    """A likelihood is right, whatever it costs."""
    monkeypatch.setattr(tuning, "FITTED", ())
    monkeypatch.setattr(tuning, "MOST", 4)
    flow, rows = bent(1, size=0.45), torch.randn(200, 2)
    result = tune_solver(flow, rows, tolerance=1e-3)
    assert result.kept
    assert result.density.evaluations >= 48
    fresh = torch.randn(200, 2)
    told = flow.log_prob(fresh)
    with flow.using(solver=Adaptive(rtol=1e-7, atol=1e-7)):
        assert apart(flow.log_prob(fresh), told) < 1e-3


def test_it_is_saved_with_the_flow(tmp_path):
    flow, rows = bent(), torch.randn(100, 2)
    tune_solver(flow, rows, evaluations=6)
    flow.save(tmp_path / "tuned.flow")
    again = load(tmp_path / "tuned.flow")
    assert block_of(again).solver == block_of(flow).solver
    assert torch.equal(again.log_prob(rows), flow.log_prob(rows))
    copied = copy.deepcopy(flow)
    assert torch.equal(copied.log_prob(rows), flow.log_prob(rows))


def test_a_retrained_flow_drops_it_with_a_warning():
    flow, rows = bent(), torch.randn(200, 2)
    built = block_of(flow).solver
    tune_solver(flow, rows, tolerance=0.01)
    flow.log_prob(rows)
    fit(flow, rows, steps=2, progress=False)
    with pytest.warns(UserWarning, match="tuned for other weights"):
        flow.log_prob(rows)
    assert block_of(flow).solver == built


def test_another_fields_solver_is_refused():
    flow, other = bent(0), bent(1)
    scheme = Scheme.of("rk4", 1)
    solver = Bespoke(scheme, scheme, fingerprint(block_of(flow)))
    block_of(flow).tune(solver)
    with pytest.raises(ValueError, match="fitted to other weights"), other.using(solver=solver):
        pass
    with pytest.raises(ValueError, match="fitted to other weights"):
        block_of(other).tune(solver)
    with pytest.raises(ValueError, match="belongs to trained weights"):
        FFJORD(2, evaluation_solver=solver)
    with pytest.raises(ValueError, match="the whole way"):
        solver.scheme((0.0, 0.5))


def test_another_solver_overrides_it_and_paths_are_shown_by_the_one_it_was_built_with():
    flow, rows = bent(evaluation_solver=FixedGrid("dopri5", 16)), torch.randn(100, 2)
    fine = flow.log_prob(rows)
    tune_solver(flow, rows, evaluations=4, fitted=False)
    assert not torch.equal(flow.log_prob(rows), fine)
    with flow.using(solver=FixedGrid("dopri5", 16)):
        assert torch.equal(flow.log_prob(rows), fine)
    assert flow.trajectory(rows, [0.0, 0.3, 1.0]).shape == (3, 100, 2)


def test_what_cannot_be_kept_is_told():
    flow, rows = bent(), torch.randn(100, 2)
    with pytest.warns(UserWarning, match="no solver that was tried keeps"):
        tuning = tune_solver(flow, rows, evaluations=2, tolerance=1e-9, fitted=False)
    assert not tuning.kept
    assert "midpoint × 1" in str(tuning)


def test_contexts_blocks_and_maps_in_front():
    torch.manual_seed(0)
    rows, context = torch.randn(300, 2), torch.randn(300, 1)
    conditional = bent(context_features=1)
    assert tune_solver(conditional, rows, context, tolerance=0.01).kept
    two = bent(blocks=2)
    tuning = tune_solver(two, rows, tolerance=0.01)
    assert tuning.kept
    assert all(trial.label != "fitted" for trial in tuning.trials)
    core = bent(3)
    inner = Flow(Chain(whiten(rows), core.bijector, whiten(2 * rows + 1)), Normal(2)).eval()
    assert tune_solver(inner, 2 * rows + 1, tolerance=1e-3).kept


def test_wrong_arguments():
    flow = bent()
    with pytest.raises(TypeError, match="no continuous part"):
        tune_solver(Flow(whiten(torch.randn(50, 2)), Normal(2)), torch.randn(50, 2))
    with pytest.raises(ValueError, match="20 rows"):
        tune_solver(flow, torch.randn(5, 2))
    with pytest.raises(ValueError, match="tolerance must be positive"):
        tune_solver(flow, torch.randn(50, 2), tolerance=0.0)
    with pytest.raises(ValueError, match="finite"):
        Scheme((0.0,), ((),), (float("nan"),), (1.0,))
    with pytest.raises(ValueError, match="S stages"):
        Scheme((0.0, 0.5), ((), ()), (1.0, 0.0), (1.0, 0.0))


def test_the_first_numbers_of_a_scheme_are_those_of_least_squares():
    """On straight paths one slope is the whole way, wherever the nodes stand."""
    start = torch.randn(50, 3, dtype=torch.float64)
    states = torch.stack([start + s * (2 - start) for s in torch.linspace(0, 1, 65).double()])

    def field(times):
        for t in times:
            left = (1 - t).clamp(min=0.01)
            yield lambda x, rated=True, left=left: (
                (2 - x) / left,
                -3 / left * torch.ones(len(x), 1),
            )

    scheme = fit_scheme(Paths(field, states, (0.0, 1.0), lambda end: -3 * end[:, 0]), 1)
    assert scheme.b[0] == pytest.approx(1.0, abs=1e-6)


def test_the_parts_of_a_sum_that_are_missed_least_are_left_out():
    """Against all choices of two parts."""
    generator = torch.Generator().manual_seed(1)
    parts, weights = torch.randn(201, FINE + 1, dtype=torch.float64, generator=generator).split(200)
    target = parts @ weights[0]

    def missed(choice):
        kept = parts[:, list(choice)]
        return (kept @ torch.linalg.lstsq(kept, target).solution - target).square().sum()

    best = best_nodes(parts.mT @ parts, parts.mT @ target, 2)
    assert best == list(min(itertools.combinations(range(FINE + 1), 2), key=missed))


def test_a_scheme_with_few_traces_keeps_the_tolerance():
    flow, fresh = bent(2), torch.randn(400, 2)
    tuning = tune_solver(flow, torch.randn(600, 2), tolerance=1e-3)
    assert tuning.density.traces < tuning.density.evaluations
    block, traces = block_of(flow), []
    slope = block._slope
    block._slope = lambda field, x, traced, *others: (
        traces.append(traced) or slope(field, x, traced, *others)
    )
    with torch.no_grad():
        told = flow.log_prob(fresh)
    assert (len(traces), sum(traces)) == (tuning.density.evaluations, tuning.density.traces)
    with flow.using(solver=Adaptive(rtol=1e-7, atol=1e-7)):
        assert apart(told, flow.log_prob(fresh)) < 3e-3


@pytest.mark.parametrize(
    ("method", "estimates"),
    [(name, kind) for name, method in TABLEAUS.items() for kind in {False, bool(method.e)}],
)
def test_rates_are_asked_for_where_they_have_a_weight(method, estimates):
    asked = []

    def rhs(times):
        def stage(x, rated=True):
            asked.append(rated)
            return x, x if rated else None

        return [stage] * len(times)

    tableau = TABLEAUS[method]
    solver = Lagged(method) if estimates else FixedGrid(method, 3)
    solve(rhs, torch.ones(2, 1), solver, integrals=1, steps=3)
    weights = zip(tableau.b, tableau.e, strict=False) if estimates else zip(tableau.b)
    wanted = 3 * [any(pair) for pair in weights] + [True] * estimates
    assert asked == wanted
    assert method not in ("midpoint", "dopri5") or not all(asked)


def test_a_scheme_whose_weights_are_zero_has_integrals_of_zero():
    scheme = Scheme((0.0,), ((),), (1.0,), (0.0,))
    rhs = lambda times: [lambda x, rated=True: (x, x)]  # noqa: E731
    _, total, _ = solve(rhs, torch.ones(2, 1), Bespoke(scheme, scheme), integrals=1)
    assert torch.equal(total, torch.zeros(2, 1))


def test_a_bound_on_the_evaluations_holds_with_few_traces_too():
    flow, rows = bent(2), torch.randn(600, 2)
    free = tune_solver(flow, rows, tolerance=1e-3)
    bound = max(free.density.evaluations, free.sampling.evaluations)
    tuning = tune_solver(flow, rows, tolerance=1e-3, evaluations=bound)
    assert all(trial.evaluations <= bound for trial in tuning.trials)
