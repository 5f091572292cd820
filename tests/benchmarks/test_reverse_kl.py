from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import reverse_kl

from baselines import PlanarFlow
from baselines.harness.data.energies import energy
from cflows import Normal, ReverseKL


def test_the_target_is_annealed_from_a_hundredth_to_itself():
    target, flow = energy("u2"), PlanarFlow(2, layers=2)
    objective = reverse_kl.Annealed(target, samples=64, steps=2)
    betas, losses = [], []
    for _ in range(4):
        betas.append(objective.beta)
        torch.manual_seed(0)
        losses.append(objective(flow).item())
    assert betas == [0.01, 0.51, 1.0, 1.0]
    torch.manual_seed(0)
    assert losses[-1] == ReverseKL(target.log_density, samples=64)(flow).item()
    assert losses[0] < losses[1] < losses[2], "the energy is positive and counts more and more"


def test_the_run_trains_scores_draws_and_reports(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("common.pin", lambda core: True)
    monkeypatch.setattr("common.RESULTS", tmp_path)
    arguments = "--energies u1 --families planar-2 --scale 0.01 --cells 50 --samples 16 --write"
    monkeypatch.setattr(sys, "argv", ["reverse_kl.py", *arguments.split()])
    reverse_kl.main()
    assert "| planar, K = 2 |" in capsys.readouterr().out
    assert "KL to U1" in (tmp_path / "reverse_kl.md").read_text()
    assert (tmp_path / "reverse_kl.png").read_bytes().startswith(b"\x89PNG")


def test_a_density_is_drawn_with_the_second_coordinate_upwards():
    base = Normal(2)
    base.loc.copy_(torch.tensor([0.0, 3.0]))
    drawn = reverse_kl.density(base.log_prob, cells=41)
    row, column = divmod(int(drawn.argmax()), 41)
    assert (row, column) == (35, 20)
    assert drawn.max().item() == pytest.approx(1 / (2 * torch.pi), rel=1e-3)
