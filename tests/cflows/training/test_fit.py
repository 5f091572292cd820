from __future__ import annotations

import json
import math
import time

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from baselines import MAF, RealNVP
from cflows import (
    FFJORD,
    Affine,
    Flow,
    ForwardKL,
    Lagged,
    LoadError,
    TrainingError,
    fit,
    log_likelihood,
    standardise,
    whiten,
)

QUIET = {"progress": False}


def rows(n=512, d=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator) @ torch.tensor([[2.0, 0.5], [0.0, 0.3]]) + 1.0


def weights(flow):
    return torch.cat([p.detach().flatten() for p in flow.parameters()])


def small(kind="maf"):
    torch.manual_seed(0)
    if kind == "ffjord":
        return FFJORD(
            2, hidden=(8,), divergence="hutchinson", training_solver=Lagged("bosh3", 1e-4)
        )
    return MAF(2, layers=2, hidden=(16,)) if kind == "maf" else RealNVP(2, layers=2, hidden=(16,))


@pytest.mark.parametrize("kind", ["maf", "realnvp", "ffjord"])
def test_training_reaches_the_gaussian_it_is_shown(kind):
    flow, train, test = small(kind), rows(2048), rows(2048, seed=1)
    before = log_likelihood(flow, test).mean()
    history = fit(flow, train, rows(256, seed=2), steps=200, learning_rate=1e-2, **QUIET)
    after = log_likelihood(flow, test).mean()
    best = log_likelihood(Flow(whiten(train)), test).mean()
    assert after > best - 0.1
    assert after > before + 1
    assert history.stopped == "steps"
    assert history.steps == 200
    assert not flow.training
    assert history.records[-1].nfe > 0


@pytest.mark.parametrize("kind", ["maf", "ffjord"])
def test_a_seed_repeats_bit_for_bit(kind):
    results = []
    for seed, noise in ((3, 1), (3, 2), (4, 1)):
        flow = small(kind)
        torch.manual_seed(noise)
        before = torch.get_rng_state()
        fit(flow, rows(), steps=20, seed=seed, **QUIET)
        assert torch.equal(before, torch.get_rng_state()), "the caller's numbers are left alone"
        results.append(weights(flow))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


@pytest.mark.parametrize("kind", ["maf", "ffjord"])
def test_an_interrupted_run_goes_on_with_the_same_bits(kind, tmp_path):
    settings = {"steps": 60, "validate_every": 10, "schedule": "cosine", **QUIET}
    whole = small(kind)
    expected = fit(whole, rows(), rows(64, seed=1), **settings)

    class Stop(Exception):
        pass

    class Failing(ForwardKL):
        def __init__(self, after):
            super().__init__()
            self._left = after

        def forward(self, flow, batch):
            self._left -= 1
            if self._left < 0:
                raise Stop
            return super().forward(flow, batch)

    Failing.__qualname__ = "ForwardKL"  # what it was asked for is the same
    flow, path = small(kind), tmp_path / "checkpoint.pt"
    for after in (13, 25, 7):
        with pytest.raises(Stop):
            fit(
                small(kind),
                rows(),
                rows(64, seed=1),
                objective=Failing(after),
                checkpoint=path,
                **settings,
            )
    got = fit(flow, rows(), rows(64, seed=1), checkpoint=path, **settings)
    assert torch.equal(weights(flow), weights(whole))
    assert [(r.step, r.loss, r.validation) for r in got.records] == [
        (r.step, r.loss, r.validation) for r in expected.records
    ]
    untouched = path.stat().st_mtime_ns
    again = fit(small(kind), rows(), rows(64, seed=1), checkpoint=path, **settings)
    assert again.records == got.records
    assert path.stat().st_mtime_ns == untouched, "a finished run takes no step"


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    path = tmp_path / "checkpoint.pt"
    fit(small(), rows(), steps=5, checkpoint=path, **QUIET)
    for changes in ({"seed": 1}, {"batch_size": 100}, {"learning_rate": 1.0}):
        with pytest.raises(LoadError, match="another run") as caught:
            fit(small(), rows(), steps=5, checkpoint=path, **{**QUIET, **changes})
        assert "\n" not in str(caught.value)
    with pytest.raises(LoadError, match="another run"):
        fit(small(), rows(seed=5), steps=5, checkpoint=path, **QUIET)
    path.write_bytes(b"damaged")
    with pytest.raises(LoadError, match="damaged"):
        fit(small(), rows(), steps=5, checkpoint=path, **QUIET)


def test_the_best_state_is_the_one_that_is_left():
    flow = small()
    history = fit(
        flow,
        rows(64),
        rows(256, seed=1),
        steps=600,
        validate_every=20,
        learning_rate=3e-2,
        schedule="constant",
        patience=5,
        **QUIET,
    )
    scores = [record.validation for record in history.records]
    assert history.stopped == "patience"
    assert history.best_validation == max(scores)
    assert history.best_step == history.records[scores.index(max(scores))].step
    assert len(scores) - 1 - scores.index(max(scores)) == 5
    got = log_likelihood(flow, rows(256, seed=1)).double().mean().item()
    assert got == pytest.approx(max(scores), abs=1e-6)


def test_few_rows_are_validated_early_and_use_up_no_patience():
    """At its best long before the first regular validation, which is a hundred epochs off."""
    flow, few = small(), rows(60)
    history = fit(
        flow,
        few,
        rows(256, seed=1),
        steps=300,
        learning_rate=3e-2,
        patience=2,
        validate_every=100,
        schedule="constant",
        **QUIET,
    )
    scores = {record.step: record.validation for record in history.records}
    assert list(scores) == [0, 1, 2, 3, 5, 7, 10, 20, 30, 50, 70, 100, 200]
    assert history.best_step in (20, 30, 50, 70)
    assert history.stopped == "patience", "after 100 and 200, the early ones do not count"
    assert history.gain == history.best_validation - scores[0] > 0
    got = log_likelihood(flow, rows(256, seed=1)).double().mean().item()
    assert got == pytest.approx(max(scores.values()), abs=1e-6)


@pytest.mark.parametrize(
    ("n", "changes", "steps"),
    [
        (320, {"validate_every": 100}, [0, 100]),  # ten passes are enough
        (310, {"validate_every": 100}, [0, 1, 2, 3, 5, 7, 10, 20, 30, 50, 70, 100]),
        (64, {"validate_every": 5}, [0, *range(5, 101, 5)]),
        (31, {"validate_every": 25}, [0, 1, 2, 3, 5, 7, 10, 20, 25, 50, 75, 100]),
        (31, {"validate_every": 10}, [0, 1, 2, 3, 5, 7, *range(10, 101, 10)]),  # an epoch a step
        (20, {"validate_every": 3}, [0, 1, 2, *range(3, 101, 3), 100]),
    ],
)
def test_what_counts_as_few_rows(n, changes, steps):
    history = fit(small(), rows(n), rows(32, seed=1), steps=100, batch_size=32, **changes, **QUIET)
    assert [record.step for record in history.records] == steps


def test_early_validations_leave_the_training_alone(tmp_path):
    settings = {"steps": 12, "validate_every": 12, "batch_size": 8, "patience": None, **QUIET}
    plain, seen, parted = small(), small(), small()
    fit(plain, rows(8), **settings)
    expected = fit(seen, rows(8), 10 + rows(8), **settings, checkpoint=tmp_path / "whole")
    assert expected.best_step == 12
    assert torch.equal(weights(plain), weights(seen))
    for steps in (4, 12):
        got = fit(
            parted,
            rows(8),
            10 + rows(8),
            **{**settings, "schedule": "constant", "steps": steps},
            checkpoint=tmp_path / "parts",
        )
    whole = small()
    expected = fit(whole, rows(8), 10 + rows(8), **{**settings, "schedule": "constant"})
    assert torch.equal(weights(parted), weights(whole))
    assert [r.step for r in got.records] == [0, 1, 2, 3, 4, 5, 7, 10, 12]
    assert [r.step for r in expected.records] == [0, 1, 2, 3, 5, 7, 10, 12]


def test_dear_validations_leave_the_seconds_to_training():
    flow = small()
    plain = flow.log_prob

    def dear(*given):
        time.sleep(0.0 if torch.is_grad_enabled() else 0.1)
        return plain(*given)

    flow.log_prob = dear
    history = fit(flow, rows(), rows(), seconds=1.0, **QUIET)
    # Every twentieth second, one for its own 0.1 s: there would be seven.
    assert 2 <= len(history.records) <= 4


def test_seconds_end_a_run():
    history = fit(small(), rows(), seconds=0.3, **QUIET)
    assert history.stopped == "seconds"
    assert 0.3 <= history.seconds < 5
    assert history.steps > 1


def test_cosine_ends_at_zero():
    history = fit(small(), rows(), steps=10, validate_every=1, learning_rate=1.0, **QUIET)
    rates = [record.learning_rate for record in history.records]
    assert rates[4] == pytest.approx(0.5)
    assert rates[-1] == pytest.approx(0.0)


def test_a_loss_that_leaves_the_numbers_is_named_and_the_best_state_kept():
    class Exploding(nn.Module):
        calls = 0

        def forward(self, flow, batch):
            self.calls += 1
            loss = -flow(*batch).mean()
            return loss * (float("nan") if self.calls > 25 else 1.0)

    flow = small()
    with pytest.raises(TrainingError, match="loss left the numbers between steps 20 and 30") as e:
        fit(
            flow,
            rows(),
            rows(64, seed=1),
            steps=100,
            validate_every=10,
            objective=Exploding(),
            **QUIET,
        )
    assert "\n" not in str(e.value)
    assert weights(flow).isfinite().all()
    assert not flow.training


def test_ways_to_give_rows():
    x, c = rows(), torch.randn(512, 1)
    fit(small(), x.double(), steps=2, **QUIET)
    fit(small(), TensorDataset(x), steps=2, **QUIET)
    conditional = MAF(2, context_features=1, layers=1, hidden=(8,))
    fit(conditional, (x, c), (x, c), steps=2, **QUIET)
    fit(conditional, TensorDataset(x, c), steps=2, **QUIET)
    fit(small(), x[:3], steps=2, batch_size=512, **QUIET)


def test_conditional_fit_learns_the_condition():
    c = torch.randn(2000, 1)
    x = 3 * c + 0.1 * torch.randn(2000, 1)
    flow = MAF(1, context_features=1, layers=1, hidden=(16,))
    fit(flow, (x, c), steps=500, learning_rate=1e-2, **QUIET)
    mean = flow.sample(500, torch.tensor([[1.0]])).mean()
    assert mean.item() == pytest.approx(3.0, abs=0.3)


@pytest.mark.parametrize(
    ("train", "words"),
    [
        (torch.zeros(0, 2), "N at least 1"),
        (torch.zeros(3), "shape"),
        (torch.zeros(4, 3), r"shape \(\*B, 2\)"),
        (torch.tensor([[0.0, 1.0], [2.0, math.nan]]), "first in row 1"),
        ((torch.zeros(4, 2), torch.zeros(3, 1)), "context must have shape"),
        ((torch.zeros(4, 2), torch.zeros(4, 1)), "takes no context"),
    ],
)
def test_bad_rows(train, words):
    with pytest.raises(ValueError, match=words) as caught:
        fit(small(), train, steps=1, **QUIET)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"objective": "backward"}, "objective must be one of"),
        ({"schedule": "linear"}, "schedule must be"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"validate_every": 0}, "validate_every must be at least 1"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"seconds": 0.0}, "seconds must be positive"),
        ({"learning_rate": -1.0}, "learning_rate must be positive"),
    ],
)
def test_bad_settings(settings, words):
    with pytest.raises(ValueError, match=words):
        fit(small(), rows(), **{"steps": 1, **QUIET, **settings})


def test_history_is_written_as_json_lines(tmp_path):
    settings = {"steps": 20, "batch_size": 64, "validate_every": 10, **QUIET}
    history = fit(small(), rows(), rows(64, seed=1), **settings)
    history.write(tmp_path / "history.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 10, 20]
    assert lines[0]["validation"] == history.records[0].validation


def test_progress_goes_to_the_terminal(capsys):
    fit(small(), rows(), rows(64, seed=1), steps=40, progress=True)
    assert "40/40" in capsys.readouterr().err


def test_a_bar_counts_the_steps_of_a_longer_training(capsys):
    fit(small(), rows(), steps=2, progress=range(30, 40))
    shown = capsys.readouterr().err
    assert "30/40" in shown
    assert "32/40" in shown


def test_preprocessing_maps():
    train = rows(4000).double()
    for fitted in (standardise(train), whiten(train)):
        z = fitted.inverse(train)
        torch.testing.assert_close(z.mean(0), torch.zeros(2).double(), rtol=0, atol=1e-10)
        torch.testing.assert_close(z.std(0, correction=0), torch.ones(2).double())
    covariance = torch.cov(whiten(train).inverse(train).T, correction=0)
    torch.testing.assert_close(covariance, torch.eye(2).double(), rtol=0, atol=1e-10)
    gaussian = torch.distributions.MultivariateNormal(
        train.mean(0), torch.cov(train.T, correction=0)
    )
    torch.testing.assert_close(Flow(whiten(train)).log_prob(train), gaussian.log_prob(train))
    assert isinstance(standardise(train), Affine)
    constant = train.clone()
    constant[:, 1] = 2.0
    for fit_map in (standardise, whiten):
        with pytest.raises(ValueError, match="column 1 of the rows is constant"):
            fit_map(constant)
    with pytest.raises(ValueError, match="linearly dependent"):
        whiten(torch.stack([train[:, 0], 2 * train[:, 0]], 1))
    with pytest.raises(ValueError, match="positive"):
        Affine([0.0], [0.0])
