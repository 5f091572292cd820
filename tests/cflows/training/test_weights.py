"""A weight k is a row that was seen k times; equal weights are none."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from baselines import MAF
from cflows import (
    FFJORD,
    MMD,
    ActNorm,
    Bounded,
    Chain,
    ChiSquare,
    FixedGrid,
    Flow,
    FlowMatching,
    ForwardKL,
    LoadError,
    ReverseKL,
    SlicedWasserstein,
    behind,
    fit,
    log_likelihood,
)
from cflows.objectives import Objective
from cflows.objectives.ipm import mmd, sliced_wasserstein, weighted_sliced_wasserstein
from cflows.training.rows import rows_for, weights_for

QUIET = {"steps": 8, "batch_size": 16, "progress": False}


def rows(n=64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 2, generator=generator).double()


def counts(n=64):
    return torch.randint(0, 4, (n,), generator=torch.Generator().manual_seed(1))


def small(**settings):
    torch.manual_seed(0)
    return MAF(2, layers=1, hidden=(8,), **settings).double()


def continuous(**settings):
    torch.manual_seed(0)
    return FFJORD(2, hidden=(8,), **settings).double()


def critic():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1)).double()


def state(flow):
    return torch.cat([p.detach().flatten() for p in flow.parameters()])


def seeded(goal, *arguments):
    torch.manual_seed(3)
    return goal(*arguments)


GOALS = {
    "forward_kl": (ForwardKL, small),
    "penalties": (lambda: ForwardKL({"kinetic": 0.1}), lambda: continuous(penalties=("kinetic",))),
    "matching": (FlowMatching, continuous),
    "chi square": (lambda: ChiSquare(critic=critic()), small),
    "mmd": (MMD, small),
    "sliced": (SlicedWasserstein, small),
}


@pytest.mark.parametrize(("goal", "build"), GOALS.values(), ids=GOALS)
def test_equal_weights_are_none(goal, build):
    flow, batch = build(), (rows(), None)
    plain, ones = seeded(goal(), flow, batch), seeded(goal(), flow, batch, torch.ones(64).double())
    torch.testing.assert_close(ones, plain, rtol=1e-12, atol=1e-12)
    for given in (torch.full((64,), 0.1), np.full(64, 7), [3e200] * 64):
        assert torch.equal(weights_for(given, 64), torch.ones(64).double())


@pytest.mark.parametrize("goal", ["forward_kl", "flow_matching", "mmd"])
def test_a_run_with_equal_weights_has_the_bits_of_one_without(goal):
    build = continuous if goal == "flow_matching" else small
    plain, weighted = build(), build()
    fit(plain, rows(), rows(20, 1), objective=goal, **QUIET)
    fit(
        weighted,
        rows(),
        rows(20, 1),
        objective=goal,
        weights=torch.full((64,), 0.3),
        validation_weights=np.full(20, 2),
        **QUIET,
    )
    assert torch.equal(state(plain), state(weighted))


@pytest.mark.parametrize("penalties", [(), ("kinetic",)])
def test_a_whole_weight_is_a_row_repeated(penalties):
    grid = FixedGrid("rk4", 4)
    flow = continuous(penalties=penalties, training_solver=grid) if penalties else small()
    goal = ForwardKL(dict.fromkeys(penalties, 0.1))
    x, k = rows(), counts()
    weights = weights_for(k, 64)
    found = []
    for arguments in (((x, None), weights), ((x.repeat_interleave(k, 0), None),)):
        flow.zero_grad()
        loss = goal(flow, *arguments)
        loss.backward()
        found.append((loss.detach(), torch.cat([p.grad.flatten() for p in flow.parameters()])))
    torch.testing.assert_close(found[0], found[1], rtol=1e-10, atol=1e-12)


def test_a_critics_bound_counts_the_rows():
    goal, x, k = ChiSquare(critic=critic()), rows(), counts()
    u = goal._log_ratio(x, None)
    weighted = (weights_for(k, 64) * goal.slope(u)).mean()
    torch.testing.assert_close(weighted, goal.slope(u.repeat_interleave(k)).mean())


def test_the_weighted_sliced_distance_is_that_of_repeated_rows():
    x, y, k = rows(int(counts().sum()), seed=2), rows(), counts()
    directions = nn.functional.normalize(rows(5, seed=3), dim=1)
    for order in (1.0, 2.0, 3.0):
        expected = sliced_wasserstein(x, y.repeat_interleave(k, 0), directions, order)
        ones = torch.ones(len(x)).double()
        for weights in (k.double(), weights_for(k, 64)):
            found = weighted_sliced_wasserstein(x, y, ones, weights, directions, order)
            torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    nothing = torch.zeros(64).double()
    assert weighted_sliced_wasserstein(x, y, ones, nothing, directions).isfinite()


def test_the_weighted_discrepancy_is_that_of_repeated_rows_but_for_pairs_of_one_row():
    x, y, k = rows(30, seed=2), rows(), counts().double()
    repeated, total = y.repeat_interleave(counts(), 0), k.sum()
    found = mmd(x, y, [1.0], y_weights=k * 64 / total)
    expected = mmd(x, repeated, [1.0])
    kernel = torch.exp(-torch.cdist(y, y).square() / 2)
    pairs = k.outer(k) * kernel
    of_repeated = (pairs.sum() - total) / (total * (total - 1))
    of_weighted = (pairs.sum() - k.square().sum()) / total**2 * 64 / 63
    torch.testing.assert_close(found - of_weighted, expected - of_repeated)


@pytest.mark.parametrize("goal", ["mmd", "sliced_wasserstein", "chi_square"])
def test_with_a_context_draws_count_as_their_rows(goal):
    torch.manual_seed(0)
    flow = MAF(2, context_features=1, layers=1, hidden=(8,)).double()
    own = {"chi_square": ChiSquare(critic=nn.Linear(3, 1).double())}
    x, c, w = rows(), rows(64, seed=4)[:, :1], counts()
    fit(
        flow,
        (x, c),
        (x, c),
        objective=own.get(goal, goal),
        weights=w,
        validation_weights=w,
        **QUIET,
    )
    assert state(flow).isfinite().all()


def test_training_and_validation_follow_the_weights():
    x = torch.cat([rows(500) - 3, rows(500, 1) + 3])
    w = (x[:, 0] > 0).double()
    flow = small()
    history = fit(
        flow, x, x, weights=w, validation_weights=w, steps=300, learning_rate=1e-2, progress=False
    )
    inside = log_likelihood(flow, x)[w > 0].mean()
    assert inside > log_likelihood(flow, x)[w == 0].mean() + 3
    assert history.best_validation == pytest.approx(float(inside), abs=1e-9)


def mapped(path, values):
    np.save(path, np.asarray(values))
    return np.load(path, mmap_mode="r")


class Column:
    """What numpy makes an array of, such as a column of a table."""

    def __array__(self, dtype=None, copy=None):
        return counts().numpy()


def test_weights_of_any_make_and_rows_that_stream(tmp_path):
    x, w = rows(), counts()
    flows = []
    for data, weights in (
        (x, w),
        (mapped(tmp_path / "x.npy", x), mapped(tmp_path / "w.npy", w)),
        (x.numpy(), w.numpy().astype(">f4")),
        (x, w.tolist()),
        (x, Column()),
    ):
        flows.append(small())
        fit(flows[-1], data, data, weights=weights, validation_weights=weights, **QUIET)
    assert all(torch.equal(state(flow), state(flows[0])) for flow in flows)
    plain = small()
    fit(plain, x, x, **QUIET)
    assert not torch.equal(state(plain), state(flows[0]))


def test_weights_stay_with_their_rows(tmp_path):
    x, w = rows(), counts()
    for data in (x, mapped(tmp_path / "x.npy", x)):
        found = rows_for(small(), data, "train", w)
        chosen = torch.tensor([7, 0, 63, 7])
        assert torch.equal(found.take(chosen)[2], weights_for(w, 64)[chosen])
        parts = [part[2] for part in found.batches(10)]
        assert torch.equal(torch.cat(parts), weights_for(w, 64))


def test_a_checkpoint_knows_the_weights(tmp_path):
    path, w = tmp_path / "c.pt", counts()
    settings = {**QUIET, "schedule": "constant", "checkpoint": path}

    def go(steps, weights):
        flow = small()
        fit(flow, rows(), weights=weights, **{**settings, "steps": steps})
        return flow

    go(4, w)
    for other in (None, w.flip(0), w + 1):
        with pytest.raises(LoadError, match="of another run"):
            go(8, other)
    parted = go(8, 2 * w)  # the same, once they are scaled
    whole = small()
    fit(whole, rows(), weights=w, **{**QUIET, "schedule": "constant"})
    assert torch.equal(state(parted), state(whole))


def test_statistics_of_norms_count_each_row_once():
    torch.manual_seed(0)
    flow = Flow(Chain(MAF(2, layers=1, hidden=(8,), batch_norm=True).bijector, ActNorm(2)))
    flow = flow.double()
    fit(flow, rows(), rows(), weights=counts(), **QUIET)
    assert state(flow).isfinite().all()


@pytest.mark.parametrize("goal", ["forward_kl", "mmd", "sliced_wasserstein"])
@pytest.mark.parametrize("streamed", [False, True])
def test_a_row_of_no_weight_may_lie_where_the_flow_has_no_density(goal, streamed, tmp_path):
    w = counts() * (torch.arange(64) % 7 == 0)  # of eight batches some hold no row that counts
    states = []
    for outside in (2.0, -5.0):
        x = rows().abs()
        x[w == 0, 0] = outside
        data = mapped(tmp_path / f"{outside}.npy", x) if streamed else x
        torch.manual_seed(0)
        core = MAF(2, layers=1, hidden=(8,), batch_norm=True).double()
        flow = behind(core, Bounded([0.0, None], [None, None]))
        history = fit(
            flow,
            data,
            data,
            objective=goal,
            weights=w,
            validation_weights=w,
            **{**QUIET, "batch_size": 8},
        )
        assert history.best_validation > -100
        assert state(flow).isfinite().all()
        states.append(torch.cat([v.flatten() for v in flow.state_dict().values()]))
    assert torch.equal(*states)


class Own(Objective):
    def forward(self, flow, batch, weights=None):
        assert weights is not None
        return -(weights * flow(*batch)).mean()


class Weightless(Objective):
    def forward(self, flow, batch):
        return -flow(*batch).mean()


def test_an_objective_of_ones_own():
    own, named = small(), small()
    fit(own, rows(), objective=Own(), weights=counts(), **QUIET)
    fit(named, rows(), weights=counts(), **QUIET)
    assert torch.equal(state(own), state(named))


ONES = torch.ones(64)
REFUSED = {
    "shape": ({"weights": ONES[:, None]}, r"train's weights must have shape \(64,\), .*64, 1"),
    "length": ({"weights": ONES[1:]}, r"shape \(64,\), one for each row, got \(63,\)"),
    "negative": ({"weights": ONES - 2 * (torch.arange(64) == 5)}, "got -1 in row 5"),
    "nan": ({"weights": ONES / (torch.arange(64) != 5)}, "got inf in row 5"),
    "zero": ({"weights": 0 * ONES}, "train's weights are all zero"),
    "graph": ({"weights": ONES.clone().requires_grad_()}, "carries a graph"),
    "a mask": ({"weights": np.ma.masked_greater(np.arange(64), 9)}, "weights has masked values"),
    "no validation": ({"validation_weights": ONES}, "need validation rows"),
    "validation": ({"validation": rows(), "validation_weights": -ONES}, "validation's weights"),
    "words": ({"weights": ["a"] * 64}, "not real numbers"),
    "reverse": ({"weights": ONES, "objective": ReverseKL(lambda x: x.sum(-1))}, "from no rows"),
    "density": ({"weights": ONES, "objective": ChiSquare(lambda x: x.sum(-1))}, "from no rows"),
    "own": ({"weights": ONES, "objective": Weightless()}, "does not weigh rows: give its forward"),
}


@pytest.mark.parametrize(("settings", "message"), REFUSED.values(), ids=REFUSED)
def test_weights_that_cannot_be_used_are_named_in_one_line(settings, message):
    with pytest.raises((TypeError, ValueError), match=message) as caught:
        fit(small(), rows(), **settings, **QUIET)
    assert "\n" not in str(caught.value)


def test_an_optimal_coupling_takes_no_weights():
    with pytest.raises(ValueError, match='coupling="independent" with weights'):
        fit(continuous(), rows(), weights=counts(), objective=FlowMatching("optimal"), **QUIET)
    with pytest.raises(ValueError, match="with a density weighs no rows"):
        ChiSquare(lambda x: x.sum(-1))(small(), (rows(), None), ONES)
