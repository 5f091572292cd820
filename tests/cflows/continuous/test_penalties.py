"""Penalties, trajectories, batch normalization and the other options of a continuous flow."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn
from zoo import ForeignField, perturbed

from cflows import (
    FFJORD,
    MLP,
    Adaptive,
    Affine,
    BatchNorm,
    Chain,
    FixedGrid,
    Flow,
    Inverse,
    Lagged,
    ODEBijector,
    fit,
)
from cflows.continuous.penalties import PENALTIES

TIGHT = Adaptive("dopri5", rtol=1e-9, atol=1e-9)


class Turning(nn.Module):
    """f = A x, whose penalties along a path are integrals of known functions."""

    features, context_features = 2, 0

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.tensor([[0.3, -1.0], [0.5, -0.2]], dtype=torch.float64))

    def forward(self, t, x, context):
        return x @ self.matrix.T


def expected_rates(matrix, x):
    velocity = x @ matrix.T
    pushed = velocity @ matrix  # fᵀJ: a foreign module is differentiated backwards
    return {
        "kinetic": velocity.square().sum(-1),
        "l1": velocity.abs().sum(-1),
        "frobenius": matrix.square().sum().expand(len(x)),
        "directional": pushed.square().sum(-1),
        "diagonal_frobenius": matrix.diagonal().square().sum().expand(len(x)),
        "off_diagonal_frobenius": (matrix.square().sum() - matrix.diagonal().square().sum()).expand(
            len(x)
        ),
    }


@pytest.mark.parametrize("end_time", [1.0, 0.4])
@pytest.mark.parametrize("divergence", ["exact", "hutchinson"])
def test_values_of_penalties_along_a_linear_path(end_time, divergence):
    names = tuple(PENALTIES)
    ode = ODEBijector(
        Turning(), end_time=end_time, penalties=names, evaluation_solver=TIGHT
    ).double()
    flow = Flow(ode).eval()
    n = 4000
    x = torch.randn(2, dtype=torch.float64).expand(n, 2)
    with torch.no_grad(), flow.using(divergence=divergence):
        log_prob, found = flow.log_prob_and_penalties(x)
        with flow.using(divergence="exact"):
            exact = flow.log_prob(x)
    if divergence == "exact":
        torch.testing.assert_close(log_prob, exact, rtol=0, atol=1e-7)
    assert tuple(found) == names
    matrix = ode.field.matrix.detach()
    nodes = torch.linspace(0, end_time, 2001, dtype=torch.float64)
    path = torch.stack([torch.matrix_exp(-(end_time - t) * matrix) @ x[0] for t in nodes])
    for name, rate in expected_rates(matrix, path).items():
        integral = torch.trapezoid(rate, nodes)
        spread = found[name].std() / n**0.5
        assert (found[name].mean() - integral).abs() < 5 * spread + 1e-5, name
        assert found[name].shape == (n,)


@pytest.mark.parametrize("name", PENALTIES)
@pytest.mark.parametrize("foreign", [False, True])
@pytest.mark.parametrize("solver", [FixedGrid("rk4", 3), Lagged("dopri5", 1e-3)])
def test_penalties_have_gradients(name, foreign, solver):
    field = ForeignField(3, 0) if foreign else MLP(3, hidden=(6, 6))
    flow = perturbed(Flow(ODEBijector(field, penalties=(name,), training_solver=solver))).train()
    _, found = flow.log_prob_and_penalties(torch.randn(2, 5, 3, dtype=torch.float64))
    assert found[name].shape == (2, 5)
    assert (found[name] > 0).all() or name == "off_diagonal_frobenius"
    found[name].mean().backward()
    assert max(p.grad.abs().max() for p in flow.parameters() if p.grad is not None) > 0


def test_penalties_add_up_over_blocks_and_cost_nothing_unasked():
    flow = perturbed(FFJORD(2, hidden=(8,), blocks=2, penalties=("kinetic",)))
    x = torch.randn(4, 2, dtype=torch.float64)
    _, both = flow.log_prob_and_penalties(x)
    first, second = flow.bijector.parts
    values = []
    state = x
    for part in (second, first):
        found = {}
        with part.collecting(found):
            state, _ = part.inverse_and_log_det(state)
        values.append(found["kinetic"])
    torch.testing.assert_close(both["kinetic"], values[0] + values[1], rtol=1e-4, atol=1e-4)
    flow.log_prob(x)
    assert first.penalties == ("kinetic",)


def test_fit_takes_the_weights():
    torch.manual_seed(0)
    x = torch.randn(500, 2) @ torch.tensor([[1.0, 0.9], [0.0, 0.3]])
    energies = []
    for weight in (0.0, 10.0):
        torch.manual_seed(0)
        flow = FFJORD(2, hidden=(8, 8), penalties=("kinetic", "frobenius"))
        fit(
            flow,
            x,
            steps=60,
            learning_rate=1e-2,
            progress=False,
            penalties={"kinetic": weight, "frobenius": weight},
        )
        with torch.no_grad():
            energies.append(flow.log_prob_and_penalties(x)[1]["kinetic"].mean().item())
    assert energies[1] < 0.5 * energies[0]
    with pytest.raises(ValueError, match="build it with penalties"):
        fit(FFJORD(2), x, steps=1, progress=False, penalties={"kinetic": 1.0})
    with pytest.raises(ValueError, match="forward_kl"):
        fit(
            FFJORD(2), x, steps=1, progress=False, penalties={"kinetic": 1.0}, objective=nn.Module()
        )


def test_steer_stretches_the_end_time_in_training_alone():
    flow = perturbed(
        FFJORD(
            2,
            hidden=(8, 8),
            ode={"steer": 0.5},
            divergence="exact",
            training_solver=FixedGrid("rk4", 8),
        )
    )
    x = torch.randn(5, 2, dtype=torch.float64)
    assert torch.equal(flow.log_prob(x), flow.log_prob(x))
    flow.train()
    assert not torch.equal(flow.log_prob(x), flow.log_prob(x))
    torch.manual_seed(3)
    z = flow.bijector.inverse(x)
    torch.manual_seed(3)
    stretch = (2 * torch.rand((), dtype=torch.float64) - 1) * 0.5
    part = flow.bijector.parts[0]
    part.steer = 0.0
    part.log_end_time = torch.log(1 + stretch)
    torch.testing.assert_close(flow.bijector.inverse(x), z)


@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_trajectories_run_between_noise_and_data(blocks):
    flow = perturbed(FFJORD(2, hidden=(8,), blocks=blocks, evaluation_solver=TIGHT))
    flow = Flow(Chain(flow.bijector, Affine([1.0, 2.0], [3.0, 4.0]))).double().eval()
    z = torch.randn(5, 2, dtype=torch.float64)
    x = flow.bijector.forward(z)
    times = [0.0, 0.2, 0.5, 0.7, 1.0]
    path = flow.trajectory(z, times)
    assert path.shape == (5, 5, 2)
    torch.testing.assert_close(path[-1], x, rtol=0, atol=1e-6)
    torch.testing.assert_close(path[0], flow.bijector.parts[1].forward(z))
    back = flow.trajectory(x, times[::-1])
    torch.testing.assert_close(back, path.flip(0), rtol=0, atol=1e-6)
    assert flow.trajectory(z, [0.0, 0.3]).shape == (2, 5, 2)


def test_trajectories_refuse_what_means_nothing():
    flow = FFJORD(2)
    z = torch.zeros(1, 2)
    for times in ([0.0], [0.1, 1.0], [0.0, 0.5, 0.4], [0.0, 2.0], [1.0, 1.0], [0.0, -1.0]):
        with pytest.raises(ValueError, match="times must run"):
            flow.trajectory(z, times)
    with pytest.raises(TypeError, match="no continuous part"):
        Flow(Affine([0.0], [1.0])).trajectory(torch.zeros(1, 1), [0.0, 1.0])


@pytest.mark.parametrize("moving", [False, True])
def test_batch_norm_normalises_while_training_and_then_stays(moving):
    layer = BatchNorm(2, moving=moving, momentum=0.0 if moving else 0.9).double().train()
    x = 3 + 2 * torch.randn(400, 2, dtype=torch.float64)
    z, log_det = layer.inverse_and_log_det(x)
    torch.testing.assert_close(z.mean(0), torch.zeros(2).double(), rtol=0, atol=1e-10)
    torch.testing.assert_close(z.var(0, correction=0), torch.ones(2).double(), rtol=1e-4, atol=0)
    expected = -0.5 * torch.log(x.var(0, correction=0) + layer.eps).sum()
    torch.testing.assert_close(log_det, expected.expand(400))
    layer.eval()
    again, _ = layer.inverse_and_log_det(x)
    torch.testing.assert_close(again, z), "the first batch counts whole"
    torch.testing.assert_close(layer.forward(again), x)
    before = layer.mean.clone()
    layer.inverse(x + 5)
    assert torch.equal(layer.mean, before), "evaluation changes nothing"


def test_batch_norm_mixes_its_batches():
    layer = BatchNorm(1, momentum=0.75).train()
    layer.inverse(torch.tensor([[1.0], [3.0]]))
    layer.inverse(torch.tensor([[5.0], [7.0]]))
    assert layer.mean.item() == pytest.approx(0.75 * 2 + 0.25 * 6)
    assert BatchNorm(1).forward(torch.ones(1, 1)).isfinite().all(), "forward before any inverse"


def test_batch_norm_between_blocks_trains():
    torch.manual_seed(0)
    x = 5 + torch.randn(800, 2) @ torch.tensor([[2.0, 0.5], [0.0, 0.3]])
    flow = FFJORD(2, hidden=(8,), blocks=2, batch_norm=True)
    kinds = [type(part).__name__ for part in flow.bijector.parts]
    assert kinds == ["ODEBijector", "BatchNorm"] * 2
    before = flow.eval().log_prob(x).mean()
    fit(flow, x, x[:200], steps=60, learning_rate=1e-2, progress=False)
    assert flow.log_prob(x).mean() > before + 5
    y, log_prob = flow.sample_and_log_prob(50)
    torch.testing.assert_close(flow.log_prob(y), log_prob, rtol=1e-3, atol=1e-3)


def test_bfloat16_products_leave_the_state_alone():
    flow = perturbed(FFJORD(3, hidden=(16, 16), ode={"bfloat16": True}), torch.float32)
    x = torch.randn(20, 3)
    with flow.using(solver=FixedGrid("rk4", 8)):
        low = flow.log_prob(x)
        flow.bijector.parts[0].low_precision = False
        full = flow.log_prob(x)
    assert low.dtype == torch.float32
    assert not torch.equal(low, full)
    torch.testing.assert_close(low, full, rtol=0.05, atol=0.2)
    with pytest.raises(TypeError, match="float32 or float64"):
        flow.half().log_prob(x.half())


def test_a_continuous_layer_inside_somebodys_autoencoder():
    """Ten lines: the field and the bijector are modules like any other."""

    class VAE(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.decoder = nn.Linear(6, 4), nn.Linear(2, 6)
            self.flow = ODEBijector(MLP(2, context_features=4, hidden=(16,)))

        def forward(self, x):
            h = self.encoder(x)
            z0 = h[:, :2] + torch.randn_like(h[:, :2]) * h[:, 2:].exp()
            z, log_det = self.flow.forward_and_log_det(z0, h)
            prior = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(-1)
            return (self.decoder(z) - x).square().sum(-1) - prior - log_det - h[:, 2:].sum(-1)

    torch.manual_seed(0)
    vae, x = VAE(), torch.randn(64, 6)
    optimizer = torch.optim.Adam(vae.parameters(), 1e-2)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = vae(x).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.5
    assert all(p.grad is not None for p in vae.parameters())


def test_inverse_of_an_ode_reviews_too():
    ode = ODEBijector(MLP(2, hidden=(8,)))
    flow = Flow(Inverse(ode)).train()
    flow.log_prob(torch.randn(8, 2))
    assert ode.stats.error is not None
    assert flow.review()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch.compile is tried on a GPU")
def test_compiled_field_agrees(device):
    x = torch.randn(20, 3, device=device)
    plain = perturbed(FFJORD(3, hidden=(8, 8)), torch.float32, device)
    compiled = perturbed(FFJORD(3, hidden=(8, 8), ode={"compiled": True}), torch.float32, device)
    compiled.load_state_dict(plain.state_dict())
    torch.testing.assert_close(compiled.log_prob(x), plain.log_prob(x), rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")
def test_the_adjoint_of_a_compiled_field_takes_batches_of_several_sizes(monkeypatch):
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    torch.compiler.reset()
    settings = {"training_solver": Adaptive("dopri5", 1e-3, 1e-3), "gradient": "adjoint"}
    flows = [
        perturbed(FFJORD(3, hidden=(8, 8), ode={"compiled": compiled}, **settings)).train()
        for compiled in (True, False)
    ]
    flows[0].load_state_dict(flows[1].state_dict())
    for rows in (6, 9):
        x = torch.randn(rows, 3, dtype=torch.float64)
        for flow in flows:
            flow.zero_grad()
            flow.log_prob(x).sum().backward()
        for compiled, plain in zip(*(flow.parameters() for flow in flows), strict=True):
            torch.testing.assert_close(compiled.grad, plain.grad)
