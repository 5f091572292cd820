"""What fit can be asked beyond its defaults: schedules, decay, averages, callbacks, failures."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from baselines import MAF
from cflows import FFJORD, History, LoadError, SolverError, TrainingError, fit
from cflows.objectives import ForwardKL
from cflows.training.history import Record
from cflows.training.schedules import Constant, Cosine, Plateau

QUIET = {"progress": False}


def rows(n=256, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 2, generator=generator) @ torch.tensor([[2.0, 0.5], [0.0, 0.3]]) + 1.0


def small():
    torch.manual_seed(0)
    return MAF(2, layers=1, hidden=(8,))


def weights(flow):
    return torch.cat([p.detach().flatten() for p in flow.parameters()])


def test_factors_of_the_schedules():
    assert [Constant().factor(done, 3) for done in (0.0, 0.5, 1.0)] == [1, 1, 1]
    assert [Cosine().factor(done, 3) for done in (0.0, 0.5, 1.0)] == pytest.approx([1, 0.5, 0])
    assert Plateau(decay=0.1).factor(0.9, 2) == pytest.approx(0.01)
    assert not Cosine().decays_after(10**6)
    assert [Plateau(3).decays_after(stale) for stale in (2, 3)] == [False, True]
    for settings in ({"checks": 0}, {"decay": 1.0}, {"decay": 0.0}):
        with pytest.raises(ValueError, match="must"):
            Plateau(**settings)


def test_a_plateau_lowers_the_rate_and_survives_an_interruption(tmp_path):
    settings = {
        "steps": 14,
        "validate_every": 1,
        "learning_rate": 4.0,
        "clip_norm": None,
        "schedule": Plateau(2, 0.5),
        "patience": None,
        **QUIET,
    }
    whole = fit(small(), rows(), rows(seed=1), **settings).columns()
    expected, waiting, best = [4.0], 0, whole["validation"][0]
    for score in whole["validation"][1:]:
        better = score > best
        best, waiting = max(best, score), 0 if better else waiting + 1
        decays = waiting == 2
        waiting = 0 if decays else waiting
        expected.append(expected[-1] * (0.5 if decays else 1))
    assert whole["learning_rate"] == expected
    assert len(set(expected)) > 2, "it has met two plateaus at least"
    path = tmp_path / "checkpoint.pt"
    for steps in (5, 14):
        parted = fit(small(), rows(), rows(seed=1), checkpoint=path, **{**settings, "steps": steps})
    for name in ("validation", "learning_rate", "loss"):
        assert parted.columns()[name] == whole[name]


def test_a_warm_up_rises_linearly_in_front_of_the_schedule():
    history = fit(
        small(),
        rows(),
        steps=6,
        validate_every=1,
        schedule="constant",
        learning_rate=1.0,
        warmup=4,
        **QUIET,
    )
    assert history.columns()["learning_rate"] == [0.5, 0.75, 1.0, 1.0, 1.0, 1.0]


def test_a_warm_up_ends_with_a_tenth_of_the_seconds():
    settings = {"schedule": "constant", "learning_rate": 1e-3, "warmup": 10**9}
    assert fit(small(), rows(), seconds=0.5, **settings, **QUIET).records[-1].learning_rate == 1e-3
    few = fit(small(), rows(), steps=2, seconds=1e9, **settings, **QUIET)
    assert few.records[-1].learning_rate < 1e-9


def test_weight_decay_decays_weights_and_none_is_adam(monkeypatch):
    class Silent(nn.Module):
        def forward(self, flow, batch):
            return sum(p.sum() for p in flow.parameters()) * 0.0

    before, after = small(), small()
    fit(
        after,
        rows(),
        objective=Silent(),
        steps=5,
        schedule="constant",
        learning_rate=0.1,
        weight_decay=0.5,
        **QUIET,
    )
    for old, new in zip(before.parameters(), after.parameters(), strict=True):
        kept = (1 - 0.1 * 0.5) ** 5 if old.dim() > 1 else 1.0
        torch.testing.assert_close(new, old * kept)
    undecayed, decayed, adam = small(), small(), small()
    fit(undecayed, rows(), steps=8, **QUIET)
    fit(decayed, rows(), steps=8, weight_decay=0.1, **QUIET)
    monkeypatch.setattr(torch.optim, "AdamW", torch.optim.Adam)
    fit(adam, rows(), steps=8, **QUIET)
    assert torch.equal(weights(undecayed), weights(adam))
    assert not torch.equal(weights(undecayed), weights(decayed))


def test_averaged_weights_are_what_is_validated_and_returned(tmp_path):
    settings = {"steps": 30, "validate_every": 10, "learning_rate": 1e-2, **QUIET}
    seen = []

    class Watching(ForwardKL):
        def forward(self, flow, batch):
            seen.append(weights(flow))
            return super().forward(flow, batch)

    flow = small()
    fit(flow, rows(), ema=0.9, objective=Watching(), **settings)
    plain = small()
    fit(plain, rows(), **settings)
    # seen[k] is the state after k steps; the last one is the plain run's.
    average = seen[0]
    for step, state in enumerate([*seen[1:], weights(plain)]):
        keep = min(0.9, step / (step + 10))
        average = keep * average + (1 - keep) * state
    torch.testing.assert_close(weights(flow), average)
    assert not torch.equal(weights(flow), weights(plain))
    path = tmp_path / "checkpoint.pt"
    for steps in (17, 30):
        # The cosine knows its end: constant, so that a shorter run is the longer one's beginning.
        constant = {**settings, "schedule": "constant", "ema": 0.9}
        parted = small()
        fit(parted, rows(), checkpoint=path, **{**constant, "steps": steps})
    whole = small()
    fit(whole, rows(), **constant)
    assert torch.equal(weights(parted), weights(whole))


def test_a_callback_sees_every_record_and_may_stop_for_good(tmp_path):
    seen = []

    def stop(record):
        seen.append(record)
        return record.step >= 20

    settings = {"steps": 100, "validate_every": 10, "checkpoint": tmp_path / "c.pt", **QUIET}
    history = fit(small(), rows(), rows(seed=1), callbacks=[lambda _: "go on", stop], **settings)
    assert history.stopped == "callback"
    assert history.steps == 20
    assert seen == history.records
    again = fit(small(), rows(), rows(seed=1), **settings)
    assert again == history


def test_history_reads_what_it_wrote(tmp_path):
    settings = {"steps": 30, "batch_size": 64, "validate_every": 10, **QUIET}
    history = fit(small(), rows(), rows(seed=1), **settings)
    history.write(tmp_path / "history.jsonl")
    again = History.read(tmp_path / "history.jsonl")
    assert again.records == history.records
    assert (again.best_step, again.best_validation) == (history.best_step, history.best_validation)
    assert again.columns()["step"] == [0, 10, 20, 30]
    (tmp_path / "history.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(LoadError, match="line 1 is no record"):
        History.read(tmp_path / "history.jsonl")
    assert History().columns()["loss"] == []
    assert Record(1, 0.0, None, None, 0.0, 1.0).skipped == 0


class Failing(ForwardKL):
    """Solves that fail at some calls."""

    def __init__(self, *calls):
        super().__init__()
        self.at, self.calls = calls, 0

    def forward(self, flow, batch):
        self.calls += 1
        if self.calls in self.at:
            raise SolverError("the steps vanished")
        return super().forward(flow, batch)


def test_a_failing_solve_skips_its_batch_and_is_counted():
    flow = small()
    history = fit(
        flow,
        rows(),
        steps=8,
        validate_every=4,
        batch_size=64,
        max_failures=2,
        objective=Failing(2, 3),
        **QUIET,
    )
    assert history.columns()["skipped"] == [2, 2]
    assert history.skipped == 2
    assert history.steps == 8
    with pytest.raises(TrainingError, match=r"2 solves have failed by step 3.*vanished") as caught:
        fit(flow, rows(), steps=8, objective=Failing(2, 3), max_failures=1, **QUIET)
    assert "\n" not in str(caught.value)
    assert weights(flow).isfinite().all()
    with pytest.raises(SolverError, match="vanished"):  # the first: it is not the batch
        fit(small(), rows(), steps=8, objective=Failing(1), **QUIET)


def test_a_loss_out_of_range_names_its_step():
    class Exploding(ForwardKL):
        calls = 0

        def forward(self, flow, batch):
            self.calls += 1
            return super().forward(flow, batch) * (float("inf") if self.calls == 6 else 1.0)

    with pytest.raises(TrainingError, match=r"between steps 0 and \d+, first at step 6: lower"):
        fit(small(), rows(), steps=8, objective=Exploding(), **QUIET)


def test_weights_that_leave_the_numbers_at_the_last_step_are_not_the_best():
    class Poison(ForwardKL):
        calls = 0

        def forward(self, flow, batch):
            self.calls += 1
            loss = super().forward(flow, batch)
            return loss + (loss - loss.detach()).sqrt() if self.calls == 8 else loss

    flow = small()
    with pytest.raises(TrainingError, match="the weights left the numbers"):
        fit(flow, rows(), steps=8, validate_every=4, objective=Poison(), **QUIET)
    assert weights(flow).isfinite().all()


class ToAGaussian(nn.Module):
    """Reverse KL to a Gaussian, without data."""

    needs_data = False
    rows = 32

    def forward(self, flow, batch):
        assert batch[0].shape == (32, 2)
        x, log_prob = flow.sample_and_log_prob(self.rows)
        return (log_prob + 0.5 * (x - 3).square().sum(-1)).mean()


def test_an_objective_without_data():
    flow = small()
    fit(flow, None, objective=ToAGaussian(), steps=300, learning_rate=5e-2, **QUIET)
    assert flow.sample(2000).mean(0).tolist() == pytest.approx([3, 3], abs=0.4)
    history = fit(flow, None, 3 + torch.randn(100, 2), objective=ToAGaussian(), steps=2, **QUIET)
    assert history.best_validation is not None
    with pytest.raises(ValueError, match="ForwardKL needs training rows"):
        fit(flow, None, steps=1, **QUIET)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"ema": 1.0}, "ema must lie in"),
        ({"warmup": -1}, "warmup must be at least 0"),
        ({"weight_decay": -0.1}, "weight_decay must be at least 0"),
        ({"max_failures": -1}, "max_failures must be at least 0"),
        ({"checkpoint_every": 0}, "checkpoint_every must be at least 1"),
        ({"schedule": "plateau"}, "needs validation rows"),
    ],
)
def test_settings_out_of_range(settings, words):
    with pytest.raises(ValueError, match=words):
        fit(small(), rows(), **{"steps": 1, **QUIET, **settings})


def test_the_bar_shows_loss_evaluations_validation_and_time_left(capsys):
    flow = FFJORD(2, hidden=(4,))
    fit(flow, rows(64), rows(32, seed=1), steps=25, seconds=1e6, validate_every=21, progress=True)
    shown = capsys.readouterr().err
    for word in ("25/25", "loss=", "val=", "nfe=", "left="):
        assert word in shown


def test_gradients_are_clipped_to_their_norm():
    norms = []

    class Scaled(ForwardKL):
        def forward(self, flow, batch):
            return 1e3 * super().forward(flow, batch)

    def norm(optimizer, *_):
        grads = [p.grad.flatten() for group in optimizer.param_groups for p in group["params"]]
        norms.append(torch.cat(grads).norm().item())

    handle = register_optimizer_step_pre_hook(norm)
    try:
        fit(small(), rows(), steps=3, objective=Scaled(), clip_norm=0.5, **QUIET)
    finally:
        handle.remove()
    assert norms == pytest.approx([0.5] * 3, rel=1e-4)
