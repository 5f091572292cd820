from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import data
import matching


def test_the_run_trains_scores_its_best_state_and_reports(tmp_path, monkeypatch, capsys):
    rows = np.random.default_rng(0).normal(0, (1, 5, 1, 1, 3, 1, 2, 1), (600, 8))
    (tmp_path / "gas_30k").mkdir()
    np.save(tmp_path / "gas_30k" / "gas_30k.npy", rows.round(2))
    monkeypatch.setenv("CFLOWS_DATA", str(tmp_path))
    monkeypatch.setattr("common.pin", lambda core: True)
    monkeypatch.setattr(
        sys,
        "argv",
        ["matching.py", "--data", "gas_30k", "--seconds", "1", "--validate-seconds", "0.5"],
    )
    matching.main()
    text = capsys.readouterr().out
    assert "| gas_30k | 0 " in text
    assert text.count("validation") >= 2


def test_gas_is_dequantised_within_its_grid_and_split(tmp_path):
    raw = np.arange(800.0).reshape(100, 8) / 100
    (tmp_path / "gas_30k").mkdir()
    np.save(tmp_path / "gas_30k" / "gas_30k.npy", raw)
    parts = data.gas(tmp_path)
    assert [len(part) for part in parts] == [80, 10, 10]
    np.testing.assert_allclose(parts[0].mean(0), 0, atol=1e-9)
    np.testing.assert_allclose(parts[0].std(0), 1)
    joined = np.concatenate(parts)
    joined = joined[joined[:, 0].argsort()]
    for column, stored in zip(joined.T, raw.T, strict=True):
        slope, start = np.polyfit(stored, column, 1)
        noise = (column - start) / slope - stored
        assert 0.008 < np.ptp(noise) < 0.0105


def test_data_are_asked_for(monkeypatch):
    monkeypatch.delenv("CFLOWS_DATA", raising=False)
    with pytest.raises(SystemExit, match="CFLOWS_DATA"):
        matching.rows_of("power")


def test_the_flow_ends_in_the_whitening_of_the_training_rows():
    train = torch.randn(500, 6) @ torch.randn(6, 6) + 3
    flow = matching.build("power", train)
    x = flow.sample(4000)
    torch.testing.assert_close(x.mean(0), train.mean(0), rtol=0, atol=1.0)
    z = flow.bijector.parts[-1].inverse(train)
    torch.testing.assert_close(torch.cov(z.T), torch.eye(6), rtol=0, atol=1e-2)
