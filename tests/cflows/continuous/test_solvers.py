"""Lagged control, gradients through a solve, and what a solve does to the host."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import warnings

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from zoo import ForeignField, perturbed

from cflows import FFJORD, MLP, Adaptive, FixedGrid, Lagged, ODEBijector, SolverError, fit
from cflows.continuous.adaptive import ADAPTIVE, FIXED_STEP
from cflows.continuous.solvers import SIZES, solve
from cflows.continuous.tableaus import TABLEAUS

TIGHT = Adaptive("dopri5", rtol=1e-10, atol=1e-10)
LAGGED = [name for name, tableau in TABLEAUS.items() if tableau.e]


def oscillator(times):
    return [lambda x, rated=True, s=s: (4 * (x + s).cos(), x * x) for s in times]


def starts(n=41):
    return torch.linspace(-2, 2, n, dtype=torch.float64)[:, None]


def stiff(rate):
    """Relaxation towards a moving target at a large rate: dx/ds = -rate (x - cos 3s)."""
    return lambda times: [
        lambda x, rated=True, s=s: (-rate * (x - (3 * s).cos()), x.square()) for s in times
    ]


@pytest.mark.parametrize("method", TABLEAUS)
def test_tableaus_are_consistent(method):
    tableau = TABLEAUS[method]
    assert sum(tableau.b) == pytest.approx(1, abs=1e-15)
    for c, row in zip(tableau.c, tableau.a, strict=True):
        assert sum(row) == pytest.approx(c, abs=1e-14)
    if tableau.e:
        assert len(tableau.e) == len(tableau.b) + 1
        assert sum(tableau.e) == pytest.approx(0, abs=1e-15)
        lower = [b - e for b, e in zip((*tableau.b, 0.0), tableau.e, strict=True)]
        nodes = (*tableau.c, 1.0)
        for power in range(1, tableau.estimate):
            moment = sum(w * c**power for w, c in zip(lower, nodes, strict=True))
            assert moment == pytest.approx(1 / (power + 1), abs=1e-14)


@pytest.mark.parametrize("method", LAGGED)
def test_lagged_solves_are_the_grids_and_their_estimates_have_an_order(method):
    errors = []
    for steps in (8, 16, 32):
        x, q, stats = solve(oscillator, starts(), Lagged(method), integrals=1, steps=steps)
        x_grid, q_grid, _ = solve(oscillator, starts(), FixedGrid(method, steps), integrals=1)
        assert torch.equal(x, x_grid)
        assert torch.equal(q, q_grid)
        assert stats.nfe == steps * len(TABLEAUS[method].c) + 1
        errors.append(stats.error.item())
    slope = math.log2(errors[0] / errors[2]) / 2
    assert slope == pytest.approx(TABLEAUS[method].estimate, abs=0.6)


@pytest.mark.parametrize("method", LAGGED)
def test_the_estimate_bounds_the_error(method):
    exact, total, _ = solve(oscillator, starts(), TIGHT, integrals=1)
    x, q, stats = solve(oscillator, starts(), Lagged(method), integrals=1, steps=16)
    error = torch.maximum((x - exact).abs() / (1 + x.abs()), (q - total).abs() / (1 + q.abs()))
    assert error.max() < 3 * stats.error


def test_steps_follow_the_error():
    solver = Lagged("dopri5", 1e-3)
    assert solver.steps_for(1e-9, 8) == 2
    assert solver.steps_for(5e-4, 8) == 8
    assert solver.steps_for(6e-4, 8) == 12
    assert solver.steps_for(1e-2, 8) == 24
    assert solver.steps_for(9e-4, 32) == 32, "the largest grid may use all of the tolerance"
    assert solver.steps_for(1.1e-3, 32) == 0
    assert solver.steps_for(1e9, 8) == 0
    assert solver.steps_for(math.nan, 8) == 0
    assert solver.steps_for(0.0, 0) == SIZES[-1]


class Relaxing(nn.Module):
    """A stiff field: relaxation at a rate of 60, which four blind steps cannot follow."""

    features, context_features = 1, 0

    def __init__(self) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(60.0, dtype=torch.float64))

    def forward(self, t, x, context):
        return -self.rate * (x - torch.cos(3 * t))


def test_lagged_keeps_its_tolerance_where_a_blind_grid_fails():
    solver = Lagged("dopri5", 1e-4)
    ode = ODEBijector(Relaxing(), training_solver=solver).train()
    z = starts()
    with ode.override(solver=TIGHT):
        exact, exact_log_det = ode.forward_and_log_det(z)

    def error(x, log_det):
        return torch.maximum((x - exact).abs().amax(1), (log_det - exact_log_det).abs()).max()

    # The first solve knows nothing of the field; review says so, and the next one follows.
    first = error(*ode.forward_and_log_det(z))
    errors = []
    for _ in range(4):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            ode.review()
        errors.append(error(*ode.forward_and_log_det(z)))
    with ode.override(solver=FixedGrid("dopri5", 4)):
        blind = error(*ode.forward_and_log_det(z))
    tolerance = 1e-4 * (1 + exact_log_det.abs().max())
    assert max(errors) < tolerance
    assert not blind < 100 * tolerance
    assert not first < tolerance


def test_review_asks_for_a_second_solve_and_goes_adaptive_with_a_warning():
    ode = ODEBijector(Relaxing(), training_solver=Lagged("dopri5", 1e-9)).train()
    ode.forward_and_log_det(starts())
    assert ode.stats.error is not None
    with pytest.warns(UserWarning, match="such solves are adaptive"):
        assert not ode.review()
    assert ode.steps == 0
    ode.forward_and_log_det(starts())
    assert ode.stats.status == "adaptive"
    assert ode.stats.error is None
    assert ode.review()
    assert ode.steps == SIZES[-1], "and comes back to the largest grid"


def test_an_evaluation_between_two_steps_leaves_the_control_alone():
    model = FFJORD(2, hidden=(8, 8), training_solver=Lagged("rk4", 1e-3)).train()
    part, x = model.bijector.parts[0], torch.randn(8, 2)
    model.log_prob(x)
    model.review()
    chosen = part.steps
    assert chosen == SIZES[0]
    model.eval().log_prob(x)
    assert model.review()
    model.train().log_prob(x)
    assert part.stats.accepted == chosen


def test_a_batch_without_rows_leaves_the_control_alone():
    model = FFJORD(2, hidden=(8, 8), training_solver=Lagged("rk4", 1e-3)).train()
    part = model.bijector.parts[0]
    before = part.steps
    model.log_prob(torch.randn(0, 2))
    assert model.review()
    assert part.steps == before


def test_steps_are_part_of_the_state(tmp_path):
    import cflows

    model = perturbed(FFJORD(2, hidden=(8, 8), training_solver=Lagged("rk4", 1e-5)))
    part = model.bijector.parts[0]
    model.train().log_prob(torch.randn(50, 2, dtype=torch.float64))
    model.review()
    assert part.steps != SIZES[3]
    model.save(tmp_path / "flow.pt")
    assert cflows.load(tmp_path / "flow.pt").bijector.parts[0].steps == part.steps


def test_fit_solves_a_batch_again_when_its_error_is_far_off():
    model = FFJORD(2, hidden=(8, 8), training_solver=Lagged("rk4", 1e-3))
    solved = []
    part = model.bijector.parts[0]
    original = part.review

    def review():
        if not part._reviewed:
            solved.append(part.steps)
            if len(solved) == 1:
                part.stats.error = torch.tensor(0.02)  # 20 times the tolerance
        return original()

    part.review = review
    fit(model, torch.randn(64, 2), steps=2, batch_size=64, progress=False)
    assert solved[:2] == [8, 32], "the first batch twice"
    assert len(solved) == 3


class Synchronisations(TorchDispatchMode):
    """Counts the operators that make the host wait for the device."""

    names = ("_local_scalar_dense", "equal", "nonzero", "is_nonzero", "item")

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in self.names:
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("solver", [FixedGrid("rk4", 4), Lagged("dopri5", 1e-3), Lagged("rk4")])
@pytest.mark.parametrize("divergence", ["exact", "hutchinson", "hutch++"])
@pytest.mark.parametrize("gradient", ["backprop", "checkpoint"])
def test_no_host_synchronisation_in_a_training_solve(solver, divergence, gradient, device):
    model = (
        FFJORD(
            3,
            hidden=(8, 8),
            training_solver=solver,
            divergence=divergence,
            gradient=gradient,
            penalties=("kinetic", "frobenius"),
            trainable_end_time=True,
            ode={"steer": 0.1},
            field={"time_frequencies": 1},
        )
        .to(device)
        .train()
    )
    x = torch.randn(16, 3, device=device)
    with Synchronisations() as counted:
        log_prob, found = model.log_prob_and_penalties(x)
        (log_prob.mean() + found["kinetic"].mean()).backward()
    assert counted.found == []


def test_the_counter_counts():
    with Synchronisations() as counted:
        float(torch.ones(()))
        bool(torch.ones(()) > 0)
        torch.ones(3).nonzero()
    assert len(counted.found) == 3
    model = FFJORD(3, training_solver=Adaptive("dopri5", 1e-3, 1e-3)).train()
    with Synchronisations() as counted:
        model.log_prob(torch.randn(4, 3))
    assert len(counted.found) > 10, "an adaptive solve asks at every step"


@pytest.mark.parametrize("solver", [FixedGrid("rk4", 2), Lagged("dopri5", 1e-3)])
@pytest.mark.parametrize("divergence", ["exact", "hutchinson"])
def test_a_training_solve_makes_no_tensor_on_another_device(solver, divergence):
    """On the meta device, .cpu() and .tolist() raise, and so do operations that mix devices."""
    model = FFJORD(3, hidden=(8, 8), training_solver=solver, divergence=divergence).to("meta")
    x = torch.randn(16, 3, device="meta")
    log_prob = model.train().log_prob(x)
    assert log_prob.device.type == "meta"
    log_prob.sum().backward()
    assert all(p.grad is not None and p.grad.device.type == "meta" for p in model.parameters())


@pytest.mark.parametrize("solver", [FixedGrid("rk4", 2), Lagged("dopri5", 1e-3)])
def test_a_training_solve_reads_no_value(solver):
    """Fake tensors have none: what a dispatch mode does not see, .tolist() say, raises there."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        model = FFJORD(3, hidden=(8, 8), training_solver=solver).train()
        model.log_prob(torch.randn(16, 3)).sum().backward()
        with pytest.raises(Exception, match="_local_scalar_dense"):
            torch.ones(3).tolist()


GRADIENT_SETTINGS = {
    "backprop": {"training_solver": FixedGrid("rk4", 40), "gradient": "backprop"},
    "checkpoint": {"training_solver": FixedGrid("rk4", 40), "gradient": "checkpoint"},
    "lagged checkpoint": {"training_solver": Lagged("dopri5", 1e-10), "gradient": "checkpoint"},
    "adaptive": {"training_solver": TIGHT, "gradient": "backprop"},
    "adjoint": {"training_solver": TIGHT, "gradient": "adjoint"},
}


@pytest.mark.parametrize("foreign", [False, True])
def test_all_gradients_agree(foreign):
    x = torch.randn(6, 3, dtype=torch.float64)
    context = torch.randn(6, 2, dtype=torch.float64)
    found = {}
    for name, settings in GRADIENT_SETTINGS.items():
        torch.manual_seed(0)
        field = ForeignField(3, 2) if foreign else MLP(3, context_features=2, hidden=(8, 8))
        ode = perturbed(
            ODEBijector(
                field, trainable_end_time=True, end_time=0.7, divergence="hutchinson", **settings
            )
        ).train()
        ode.steps = 32
        given, c = x.clone().requires_grad_(), context.clone().requires_grad_()
        torch.manual_seed(1)
        z, log_det = ode.inverse_and_log_det(given, c)
        (z.square().sum() + log_det.sum()).backward()
        found[name] = [given.grad, c.grad, *(p.grad for p in ode.parameters())]
        assert all(gradient is not None for gradient in found[name])
        assert (ode.stats.nfe_backward > 10) == (settings["gradient"] == "adjoint")
    for name, gradients in found.items():
        for gradient, expected in zip(gradients, found["adaptive"], strict=True):
            torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-6, msg=name)
    for gradient, expected in zip(found["checkpoint"], found["backprop"], strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("foreign", [False, True])
@pytest.mark.parametrize("solver", [TIGHT, FixedGrid("rk4", 40)])
def test_gradients_agree_where_state_and_context_depend_on_the_field(foreign, solver):
    found = []
    for gradient in ("backprop", "adjoint"):
        torch.manual_seed(0)
        field = ForeignField(3, 2) if foreign else MLP(3, context_features=2, hidden=(8, 8))
        ode = perturbed(ODEBijector(field, training_solver=TIGHT, gradient=gradient)).train()
        weight = next(p for p in field.parameters() if p.dim() == 2)
        torch.manual_seed(1)
        x = torch.randn(6, len(weight), dtype=torch.float64) @ weight[:, :3]
        context = torch.randn(6, len(weight), dtype=torch.float64) @ weight[:, 1:3]
        with ode.override(solver=solver, divergence="exact"):
            z, log_det = ode.inverse_and_log_det(x, context)
        (z.square().sum() + log_det.sum()).backward()
        found.append([p.grad for p in ode.parameters()])
    for gradient, expected in zip(*found, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-6)


# The kernel's ru_maxrss would count the parent, whose memory a child has until it is replaced.
PEAK = """
import re, torch
from cflows import MLP, FixedGrid, ODEBijector
torch.set_num_threads(1)
ode = ODEBijector(MLP(8, hidden=(128, 128)), training_solver=FixedGrid("rk4", {steps}),
                  gradient="{gradient}", divergence="hutchinson").train()
_, log_det = ode.inverse_and_log_det(torch.randn(800, 8))
log_det.sum().backward()
print(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_checkpointed_memory_is_flat():
    """The process' peak, Python and torch included, from 8 to 64 steps.

    Measured with large tensors in mappings of their own: glibc's heap, left to itself, keeps the
    holes between the states that each step leaves behind.
    """
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}

    def growth(gradient):
        few, many = (
            int(
                subprocess.run(
                    [sys.executable, "-c", PEAK.format(steps=steps, gradient=gradient)],
                    check=True,
                    capture_output=True,
                    text=True,
                    env=environment,
                ).stdout
            )
            for steps in (8, 64)
        )
        return many / few

    assert growth("checkpoint") < 1.3
    assert growth("backprop") > 2


def test_stats_of_adaptive_solves():
    _, _, stats = solve(stiff(40.0), starts(), Adaptive("dopri5", 1e-6, 1e-6), integrals=1)
    assert stats.accepted > 5
    assert stats.rejected >= 1
    assert stats.nfe >= 6 * (stats.accepted + stats.rejected)
    assert stats.status == "ok"


@pytest.mark.parametrize("method", [*ADAPTIVE, *FIXED_STEP, "scipy_solver"])
def test_every_method_of_torchdiffeq(method):
    from torchdiffeq._impl.odeint import SOLVERS

    assert set(SOLVERS) == {*ADAPTIVE, *FIXED_STEP, "scipy_solver"}
    step_size = 1e-3 if method in FIXED_STEP else None
    solver = Adaptive(method, 1e-7, 1e-7, step_size=step_size)
    x, q, stats = solve(oscillator, starts(5), solver, integrals=1)
    exact, total, _ = solve(oscillator, starts(5), TIGHT, integrals=1)
    near = 2e-2 if method == "euler" else 1e-4
    torch.testing.assert_close(x, exact, rtol=0, atol=near)
    torch.testing.assert_close(q, total, rtol=0, atol=near)
    assert stats.nfe >= (1000 if step_size else 8), "a step size is heeded"


@pytest.mark.parametrize("rate", [1e6, math.nan, math.inf])
@pytest.mark.parametrize("solver", [Adaptive("dopri5", 1e-6, 1e-6, max_nfe=300), Lagged("rk4")])
def test_a_hopeless_field_ends_in_an_error_and_leaves_the_parameters(rate, solver):
    class Hopeless(nn.Module):
        features, context_features = 2, 0

        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2))

        def forward(self, t, x, context):
            return rate * (x * self.weight - torch.sin(1e3 * t))

    from cflows import Flow

    model = Flow(ODEBijector(Hopeless(), training_solver=solver))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        with pytest.raises(SolverError, match="after") as caught:
            fit(model, torch.randn(32, 2), steps=5, progress=False)
    assert "\n" not in str(caught.value)
    assert torch.equal(model.bijector.field.weight, torch.ones(2))
    assert model.bijector.stats.status != "ok"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Lagged("midpoint"), "method must be one of bosh3, rk4, dopri5"),
        (lambda: Lagged("rk4", 0.0), "tolerance must be positive"),
        (lambda: Adaptive("euler"), "step_size is needed"),
        (lambda: Adaptive("dopri5", step_size=0.1), "step_size is needed"),
        (lambda: Adaptive("euler", step_size=2.0), "step_size must lie"),
        (lambda: FFJORD(2, gradient="adjoint"), "needs training_solver=Adaptive"),
        (lambda: FFJORD(2, gradient="magic"), "gradient must be one of"),
        (lambda: FFJORD(2, penalties=("l7",)), "penalties must be one of"),
        (lambda: FFJORD(2, ode={"steer": 1.0}), "steer must lie"),
        (lambda: FFJORD(2, ode={"probes": 0}), "probes must be at least 1"),
    ],
)
def test_bad_specifications(make, words):
    with pytest.raises(ValueError, match=words):
        make()
