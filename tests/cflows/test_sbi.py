"""Flows as density estimators of sbi."""

from __future__ import annotations

import pytest
import torch
from torch import nn

pytest.importorskip("sbi", reason="sbi is not installed: pip install 'cflows[sbi]'")

from sbi.inference import NPE, DirectPosterior
from torch.distributions import MultivariateNormal

from baselines import MAF, NSF
from cflows import FFJORD, Flow, fit, load, tune_solver, whiten
from cflows.sbi import FlowEstimator, estimator

pytestmark = pytest.mark.filterwarnings("ignore")  # what sbi says of epochs, and its own imports
NEAR = {"atol": 1e-4, "rtol": 0}
PRIOR = MultivariateNormal(torch.zeros(2), torch.eye(2))


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """sbi writes logs where it runs."""
    monkeypatch.chdir(tmp_path)


def simulated(n, seed=0):
    """θ ~ N(0, I), x = 10 + 5 (θ + noise): the posterior is N((x - 10) / 10, I / 2)."""
    torch.manual_seed(seed)
    theta = torch.randn(n, 2)
    return theta, 10 + 5 * (theta + torch.randn(n, 2))


def maf(features, context):
    return MAF(features, context_features=context, hidden=(32,), layers=2)


def ffjord(features, context):
    return FFJORD(features, hidden=(32, 32), layer="film", context_features=context)


@pytest.mark.parametrize("build", [maf, ffjord])
def test_an_estimator_is_its_flow(build):
    theta, x = simulated(300)
    made = estimator(build)(theta, x).eval()
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.2)
    assert (made.input_shape, made.condition_shape) == ((2,), (2,))
    flow, some = made.net, x[:5]
    inputs = torch.randn(7, 5, 2)
    told = made.log_prob(inputs, some)
    assert told.shape == (7, 5)
    torch.testing.assert_close(told, torch.stack([flow.log_prob(t, some) for t in inputs]), **NEAR)
    torch.testing.assert_close(made.log_prob(inputs[0], some), told[:1], **NEAR)
    torch.testing.assert_close(made.loss(inputs[0], some), -told[0], **NEAR)
    assert made.log_prob(inputs[:, :1], some).shape == (7, 5)
    assert made.sample((3, 4), some).shape == (3, 4, 5, 2)
    draws, log_prob = made.sample_and_log_prob((3,), some)
    torch.testing.assert_close(made.log_prob(draws, some), log_prob, atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("build", "objective", "rate", "epochs"),
    [(maf, "forward_kl", 5e-3, 30), (ffjord, "flow_matching", 2e-3, 80)],
)
def test_neural_posterior_estimation(build, objective, rate, epochs, tmp_path):
    theta, x = simulated(3000)
    npe = NPE(PRIOR, density_estimator=estimator(build, objective=objective, theta_map=whiten))
    npe.append_simulations(theta, x)
    trained = npe.train(learning_rate=rate, max_num_epochs=epochs, training_batch_size=200)
    if build is ffjord:
        assert tune_solver(trained.net, theta, x).kept
    seen = torch.tensor([[12.0, 5.0]])
    draws = npe.build_posterior(trained).sample((4000,), x=seen, show_progress_bars=False)
    torch.testing.assert_close(draws.mean(0), torch.tensor([0.2, -0.5]), atol=0.15, rtol=0)
    torch.testing.assert_close(draws.std(0), torch.full((2,), 0.5**0.5), atol=0.15, rtol=0)
    trained.net.save(tmp_path / "posterior.flow")
    again = FlowEstimator(load(tmp_path / "posterior.flow"))
    kept = DirectPosterior(again, PRIOR)
    value = torch.zeros(1, 2)
    torch.testing.assert_close(
        kept.log_prob(value, x=seen), npe.build_posterior(trained).log_prob(value, x=seen)
    )


def test_a_flow_that_fit_trained_is_a_posterior():
    theta, x = simulated(1000)
    made = estimator(ffjord)(theta, x)
    fit(made.net, (theta, x), objective="flow_matching", steps=100, progress=False)
    seen = torch.tensor([[10.0, 10.0]])
    draws = DirectPosterior(made, PRIOR).sample((2000,), x=seen, show_progress_bars=False)
    torch.testing.assert_close(draws.mean(0), torch.zeros(2), atol=0.2, rtol=0)


def test_strange_conditions_are_summarised():
    torch.manual_seed(0)
    theta = torch.randn(400, 2)
    x = theta[:, :1, None] + torch.randn(400, 3, 5)
    build = estimator(
        lambda d, c: NSF(d, context_features=c, hidden=(8,), layers=1), summary=4, hidden=(16,)
    )
    made = build(theta, x)
    assert made.condition_shape == (3, 5)
    assert made.net.context_network.features == 4
    assert made.log_prob(torch.zeros(6, 1, 2), x[:1]).shape == (6, 1)
    own = estimator(maf, summary=2, network=nn.Linear(15, 2))(theta, x)
    assert own.loss(theta, x).shape == (400,)
    npe = NPE(PRIOR, density_estimator=build)
    npe.append_simulations(theta, x)
    npe.train(max_num_epochs=2)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="forward_kl, flow_matching"):
        estimator(maf, objective="magic")
    with pytest.raises(ValueError, match=r"has 3 numbers, an x of shape \(2, 2\) 4"):
        FlowEstimator(maf(2, 3), (2, 2))
    assert isinstance(FlowEstimator(maf(2, 4), (2, 2)).net, Flow)
