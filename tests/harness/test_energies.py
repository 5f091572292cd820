from __future__ import annotations

import math

import pytest
import torch

from baselines import PlanarFlow
from baselines.harness.data import DataError
from baselines.harness.data.energies import ENERGIES, Energy, energy, grid_kl
from cflows import Affine, Flow, ReverseKL


def test_names():
    assert list(ENERGIES)[:4] == ["u1", "u2", "u3", "u4"]
    with pytest.raises(DataError, match="no energy is called 'u5'; the energies are u1, u2"):
        energy("u5")


@pytest.mark.parametrize("name", ["gaussian", "mixture", "banana", "funnel"])
def test_known_normalisers_are_those_of_quadrature(name):
    target = energy(name)
    assert target.known_log_normaliser is not None
    assert target.quadrature() == pytest.approx(target.log_normaliser, abs=1e-5)


@pytest.mark.parametrize("name", ENERGIES)
def test_quadrature_has_converged_and_the_box_holds_the_mass(name):
    target = energy(name)
    fine = target.quadrature(1600)
    assert target.quadrature(800) == pytest.approx(fine, abs=1e-5)
    wider = tuple((1.25 * low, 1.25 * high) for low, high in target.box)
    assert Energy(name, target.potential, wider).quadrature(1600) == pytest.approx(fine, abs=1e-5)


@pytest.mark.parametrize(
    ("name", "z", "expected"),
    [
        ("u1", (2.0, 0.0), -math.log(1 + math.exp(-0.5 * (4 / 0.6) ** 2))),
        ("u1", (0.0, 2.0), 0.5 * (2 / 0.6) ** 2 - math.log(2)),
        ("u2", (1.0, 1.0), 0.0),
        ("u2", (1.0, 1.4), 0.5),
        ("u2", (-4.4, -1.0), 0.5 * ((-1 - math.sin(-2.2 * math.pi)) / 0.4) ** 2 + 0.5),
        ("u3", (1.0, -2.0), -math.log(1 + math.exp(-0.5 * (3 / 0.35) ** 2))),
        ("u3", (1.0, 1.0), -math.log(1 + math.exp(-0.5 * (3 / 0.35) ** 2))),
        ("u4", (1.0, 1.0), -math.log(1 + math.exp(-0.5 * (1.5 / 0.35) ** 2))),
        ("u4", (1.0, -0.5), -math.log(1 + math.exp(-0.5 * (1.5 / 0.4) ** 2))),
    ],
)
def test_energies_are_those_of_the_table(name, z, expected):
    found = energy(name).potential(torch.tensor(z, dtype=torch.float64)).item()
    assert found == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", ENERGIES)
def test_gradients_are_finite(name):
    z = (5 * torch.randn(200, 2)).requires_grad_()
    (gradient,) = torch.autograd.grad(energy(name).log_density(z).sum(), z)
    assert gradient.shape == (200, 2)
    assert gradient.isfinite().all()


def test_grid_kl_is_the_closed_form():
    target, q = energy("gaussian"), Flow(Affine([0.3, 0.0], [0.5, 0.5]))
    inverse = torch.tensor([[1.0, -0.8], [-0.8, 1.0]]) / 0.36
    mean = torch.tensor([0.3, 0.0])
    trace = 0.25 * inverse.diagonal().sum() + mean @ inverse @ mean
    expected = 0.5 * (trace - 2 + math.log(0.36) - math.log(0.25**2)).item()
    found = grid_kl(q.log_prob, target)
    assert found.kl == pytest.approx(expected, abs=1e-5)
    assert found.mass == pytest.approx(1.0, abs=1e-5)
    half = grid_kl(q.log_prob, target, box=((0.3, 7.0), (-7.0, 7.0)))
    assert half.mass == pytest.approx(0.5, abs=1e-5)


def test_reverse_kl_lowers_the_kl_on_the_grid():
    target, flow = energy("u2"), PlanarFlow(2, layers=4)
    objective = ReverseKL(target.log_density, samples=256)
    before = objective(flow).item()
    optimiser = torch.optim.Adam(flow.parameters(), lr=1e-2)
    for _ in range(200):
        optimiser.zero_grad()
        objective(flow).backward()
        optimiser.step()
    after = ReverseKL(target.log_density, samples=10_000)(flow.eval()).item()
    assert after < before - 1
    found = grid_kl(flow.log_prob, target, box=((-9.0, 9.0), (-9.0, 9.0)), cells=200)
    assert found.mass == pytest.approx(1.0, abs=0.01)
    assert found.kl == pytest.approx(after + target.log_normaliser, abs=0.05)
