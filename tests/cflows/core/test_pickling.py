"""Pickles of flows that ``torch.nn.utils.parametrize`` changed, in files and in other processes."""

from __future__ import annotations

import multiprocessing
import pickle

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from zoo import perturbed

from baselines import LULinear, RealNVP
from baselines.sklearn import DensityEstimator
from cflows import FFJORD, FixedGrid

joblib = pytest.importorskip("joblib")


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


@pytest.mark.parametrize("kind", ["weight_norm", "spectral_norm", "orthogonal"])
def test_layers_that_the_user_parametrised(kind):
    flow = perturbed(RealNVP(4, layers=2, hidden=(4,)))
    for part in [part for part in flow.modules() if isinstance(part, nn.Linear)]:
        getattr(parametrizations, kind)(part)
    flow.eval()
    again = pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(flow))))
    x = torch.randn(3, 4, dtype=torch.float64)
    assert torch.equal(again.log_prob(x), flow.log_prob(x))
    again.log_prob(x).sum().backward()
    assert all(value.grad is not None for value in again.parameters())
    again.load_state_dict(flow.state_dict())
    for part in list(again.modules()):
        if parametrize.is_parametrized(part):
            parametrize.remove_parametrizations(part, "weight")
    torch.testing.assert_close(again.log_prob(x), flow.log_prob(x))


def test_a_bijector_that_is_parametrised_itself():
    layer = perturbed(LULinear(3))
    name = next(name for name, _ in layer.named_parameters())
    parametrize.register_parametrization(layer, name, Doubled())
    again = pickle.loads(pickle.dumps(layer))
    z = torch.randn(3, 3, dtype=torch.float64)
    assert torch.equal(again(z), layer(z))
    assert parametrize.type_before_parametrizations(again) is LULinear


def test_a_flow_in_the_middle_of_an_override():
    flow = perturbed(FFJORD(2, hidden=(8,), field={"spectral": True}))
    x = torch.randn(3, 2, dtype=torch.float64)
    with flow.using(solver=FixedGrid("rk4", 2)):
        again = pickle.loads(pickle.dumps(flow))
        assert torch.equal(again.log_prob(x), flow.log_prob(x))


def spectral(features, depth):
    return FFJORD(features, hidden=(8,), field={"spectral": True})


def test_an_estimator_goes_to_a_file_and_to_another_process(tmp_path):
    rows = np.random.default_rng(0).normal(size=(60, 2))
    estimator = DensityEstimator(spectral, steps=2, learning_rate=1e-3).fit(rows)
    joblib.dump(estimator, tmp_path / "estimator.joblib")
    expected = estimator.score_samples(rows)
    again = joblib.load(tmp_path / "estimator.joblib")
    assert np.array_equal(again.score_samples(rows), expected)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        scored = pool.apply_async(log_prob, (estimator.flow_, torch.as_tensor(rows)))
        there = scored.get(timeout=300)  # a worker that dies leaves a pool waiting
    torch.testing.assert_close(there, torch.as_tensor(expected))


def log_prob(flow, x):
    torch.set_num_threads(1)
    with torch.no_grad():
        return flow.log_prob(x)
