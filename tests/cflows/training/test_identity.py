"""A checkpoint goes on under the settings that it was written under, and under no others."""

from __future__ import annotations

import functools
import random
from collections import deque
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from types import SimpleNamespace

import numpy as np
import pandas
import pytest
import torch
from torch import nn

from baselines import MAF
from cflows import (
    FFJORD,
    MMD,
    AlphaDivergence,
    ChiSquare,
    Flow,
    FlowMatching,
    ForwardKL,
    JensenShannon,
    LoadError,
    Plateau,
    ReverseKL,
    Schedule,
    SlicedWasserstein,
    fit,
)
from cflows.objectives import Objective
from cflows.training.identity import differences, settings_of, unmoved

QUIET = {"batch_size": 16, "schedule": "constant", "progress": False}
TEMPERATURE = 1.0


def rows(n=64):
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(0))


def discrete():
    torch.manual_seed(0)
    return MAF(2, layers=1, hidden=(8,))


def continuous():
    torch.manual_seed(0)
    return FFJORD(2, hidden=(8,))


def critic(seed=0, width=4, rate=0.0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(2, width),
        nn.BatchNorm1d(width),
        nn.Dropout(rate),
        nn.utils.parametrizations.spectral_norm(nn.Linear(width, 1)),
    )


def energy(x):
    return -x.square().sum(-1) / 2


def global_energy(x):
    return -x.square().sum(-1) / TEMPERATURE


def tempered(x, temperature=1.0):
    return -x.square().sum(-1) / temperature


def closure(temperature):
    return lambda x: -x.square().sum(-1) / temperature


def scaled(scale):
    return functools.partial(lambda by, x: by.scale * energy(x), SimpleNamespace(scale=scale))


class Energy(nn.Module):
    """An energy with a plain attribute and a buffer."""

    def __init__(self, temperature=1.0, centre=0.0):
        super().__init__()
        self.temperature = temperature
        self.register_buffer("centre", torch.full((2,), centre))

    def forward(self, x):
        return -(x - self.centre).square().sum(-1) / self.temperature


@dataclass
class Callable:
    temperature: float = 1.0

    def __call__(self, x):
        return tempered(x, self.temperature)


def normal(scale):
    return torch.distributions.MultivariateNormal(torch.zeros(2), scale * torch.eye(2))


class Own(Objective):
    """An objective of a user's own, with plain attributes and one that counts its calls."""

    def __init__(self, sigma=0.1, **more):
        super().__init__()
        self.sigma = sigma
        self.calls = 0
        for name, value in more.items():
            setattr(self, name, value)

    def forward(self, flow, batch):
        self.calls += 1
        self.cache = batch[0].mean()
        return -flow(batch[0] + self.sigma * torch.randn_like(batch[0])).mean()


def classed(**attributes):
    found = type("Own", (Own,), attributes)
    found.__qualname__ = "Own"
    return found()


PAIRS = {
    "alpha": (lambda: AlphaDivergence(energy, alpha=0.5), lambda: AlphaDivergence(energy, alpha=2)),
    "samples": (lambda: ReverseKL(energy), lambda: ReverseKL(energy, samples=64)),
    "path gradient": (lambda: ReverseKL(energy), lambda: ReverseKL(energy, path_gradient=True)),
    "Z": (lambda: JensenShannon(energy), lambda: JensenShannon(energy, normalised=False)),
    "widths": (lambda: MMD([1.0]), lambda: MMD([2.0])),
    "no widths": (lambda: MMD(), lambda: MMD([2.0])),
    "factors": (lambda: MMD(), lambda: MMD(factors=[1.0])),
    "projections": (lambda: SlicedWasserstein(), lambda: SlicedWasserstein(32)),
    "order": (lambda: SlicedWasserstein(), lambda: SlicedWasserstein(order=1)),
    "energy": (lambda: ReverseKL(energy), lambda: ReverseKL(lambda x: -x.abs().sum(-1))),
    "code": (
        lambda: ReverseKL(lambda x: -x.square().sum(-1)),
        lambda: ReverseKL(lambda x: -2 * x.square().sum(-1)),
    ),
    "module": (lambda: ReverseKL(Energy()), lambda: ReverseKL(Energy(2.0))),
    "module's buffer": (lambda: ReverseKL(Energy()), lambda: ReverseKL(Energy(centre=1.0))),
    "closure": (lambda: ReverseKL(closure(1.0)), lambda: ReverseKL(closure(2.0))),
    "namespace": (lambda: ReverseKL(scaled(1)), lambda: ReverseKL(scaled(2))),
    "default": (
        lambda: ReverseKL(tempered),
        lambda: ReverseKL(functools.partial(tempered, temperature=2.0)),
    ),
    "dataclass": (lambda: ReverseKL(Callable()), lambda: ReverseKL(Callable(2.0))),
    "distribution": (lambda: ReverseKL(normal(1).log_prob), lambda: ReverseKL(normal(2).log_prob)),
    "target flow": (
        lambda: ReverseKL(discrete().log_prob),
        lambda: ReverseKL(MAF(2, layers=1, hidden=(8,)).log_prob),
    ),
    "critic or density": (lambda: ChiSquare(critic=critic()), lambda: ChiSquare(energy)),
    "critic's rate": (
        lambda: ChiSquare(critic=critic()),
        lambda: ChiSquare(critic=critic(rate=0.5)),
    ),
    "critic's width": (
        lambda: ChiSquare(critic=critic()),
        lambda: ChiSquare(critic=critic(width=5)),
    ),
    "class": (lambda: ChiSquare(energy), lambda: JensenShannon(energy)),
    "own": (lambda: Own(), lambda: Own(sigma=0.2)),
    "own, further": (lambda: Own(), lambda: Own(clip=1.0)),
    "own class": (lambda: Own(), lambda: classed(needs_more=True)),
    "own tensor": (lambda: Own(mean=torch.zeros(2)), lambda: Own(mean=torch.ones(2))),
    "own array": (lambda: Own(mean=np.zeros(2)), lambda: Own(mean=np.ones(2))),
    "own nest": (lambda: Own(of=[{"a": (1, {2})}]), lambda: Own(of=[{"a": (1, {3})}])),
    "own list": (lambda: Own(of=[Callable(1.0)]), lambda: Own(of=[Callable(2.0)])),
}


def run(path, goal, build=discrete, steps=3, **settings):
    return fit(
        build(), rows(), objective=goal, checkpoint=path, steps=steps, **{**QUIET, **settings}
    )


def refused(path, goal, build=discrete, **settings):
    with pytest.raises(LoadError, match="is the checkpoint of another run") as caught:
        run(path, goal, build, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(("one", "other"), PAIRS.values(), ids=PAIRS)
def test_every_setting_of_an_objective_counts(one, other, tmp_path):
    path = tmp_path / "c.pt"
    run(path, one())
    assert "objective" in refused(path, other())
    assert run(path, one(), steps=5).steps == 5


def test_the_message_names_the_setting(tmp_path):
    run(tmp_path / "c.pt", AlphaDivergence(energy, alpha=0.5))
    told = refused(tmp_path / "c.pt", AlphaDivergence(energy, alpha=2))
    assert "(objective.alpha was 0.5, and is 2): name another path" in told


def test_the_coupling_and_the_penalties(tmp_path):
    pytest.importorskip("scipy")
    path = tmp_path / "c.pt"
    run(path, FlowMatching(), continuous)
    assert "objective.coupling" in refused(path, FlowMatching("optimal"), continuous)

    def penalised():
        torch.manual_seed(0)
        return FFJORD(2, hidden=(8,), penalties=("kinetic",))

    path = tmp_path / "penalties.pt"
    run(path, ForwardKL({"kinetic": 0.1}), penalised)
    assert "objective.penalties" in refused(path, ForwardKL({"kinetic": 0.2}), penalised)
    assert run(path, "forward_kl", penalised, steps=5, penalties={"kinetic": 0.1}).steps == 5


def test_a_global_of_an_energy(tmp_path, monkeypatch):
    run(tmp_path / "c.pt", ReverseKL(global_energy))
    monkeypatch.setitem(globals(), "TEMPERATURE", 2.0)
    assert "TEMPERATURE was 1, and is 2" in refused(tmp_path / "c.pt", ReverseKL(global_energy))


def test_what_training_makes_of_an_objective_is_no_setting(tmp_path):
    for name, goal in (("own", Own()), ("critic", ChiSquare(critic=critic()))):
        run(tmp_path / name, goal)
        assert run(tmp_path / name, goal, steps=5).steps == 5
    # A first state that was drawn otherwise is none either: the checkpoint's replaces it.
    goal = ChiSquare(critic=critic(seed=1))
    assert run(tmp_path / "critic", goal, steps=7).steps == 7


def test_a_trained_temperature_and_the_flow_itself(tmp_path):
    class Holding(Objective):
        def __init__(self, flow, centre):
            super().__init__()
            self.flow, self.before = flow, [flow]
            self.scale = nn.Parameter(torch.rand(()))
            self.register_buffer("centre", torch.full((2,), centre))

        def forward(self, flow, batch):
            return (self.scale - flow(batch[0] - self.centre).mean()).square()

    def go(centre, steps):
        flow = discrete()
        return fit(
            flow,
            rows(),
            objective=Holding(flow, centre),
            checkpoint=tmp_path / "c.pt",
            steps=steps,
            **QUIET,
        )

    go(0.0, 3)
    assert go(0.0, 5).steps == 5
    with pytest.raises(LoadError, match=r"objective\.centre was"):
        go(1.0, 7)


class Linear(Schedule):
    def __init__(self, slope):
        self.slope = slope

    def factor(self, done, decays):
        return 1 - self.slope * done


class Slow(Flow):
    """A flow that was not registered."""

    def __init__(self, temperature=1.0):
        super().__init__(discrete().bijector)
        self.temperature = temperature


@pytest.mark.parametrize(
    ("name", "one", "other"),
    [
        ("schedule", Linear(0.5), Linear(0.6)),
        ("schedule", "constant", "cosine"),
        ("ema", None, 0.9),
        ("ema", 0.9, 0.8),
        ("clip_norm", 5.0, None),
        ("weight_decay", 0.0, 0.1),
        ("warmup", 0, 2),
        ("learning_rate", 1e-3, 1e-2),
        ("batch_size", 16, 32),
        ("seed", 0, 1),
        ("build", discrete, lambda: discrete().double()),
        ("build", Slow, lambda: Slow(2.0)),
        ("build", discrete, lambda: MAF(2, layers=1, hidden=(8,), activation="tanh")),
    ],
)
def test_every_setting_of_a_run_counts(name, one, other, tmp_path):
    path = tmp_path / "c.pt"
    run(path, "forward_kl", **{name: one})
    refused(path, "forward_kl", **{name: other})
    again = Linear(0.5) if isinstance(one, Linear) else one
    assert run(path, "forward_kl", steps=5, **{name: again}).steps == 5


def test_the_arguments_of_a_schedule(tmp_path):
    path = tmp_path / "c.pt"

    def go(schedule, steps=3):
        return fit(
            discrete(),
            rows(),
            rows(),
            checkpoint=path,
            steps=steps,
            **{**QUIET, "schedule": schedule},
        )

    go(Plateau(5))
    with pytest.raises(LoadError, match=r"schedule\.checks was 5, and is 6"):
        go(Plateau(6))
    assert go(Plateau(5), steps=5).steps == 5


def test_parts_that_are_held_train_no_checkpoint_of_others(tmp_path):
    def held():
        flow = discrete()
        next(flow.parameters()).requires_grad_(False)
        return flow

    run(tmp_path / "c.pt", "forward_kl")
    refused(tmp_path / "c.pt", "forward_kl", held)


def test_numbers_of_any_make_are_alike():
    for one, other in ((2, 2.0), (0.5, np.float64(0.5)), (3, np.int64(3)), (0.5, np.float32(0.5))):
        assert settings_of("a", one) == settings_of("a", other)
    assert settings_of("a", 0.5) != settings_of("a", 0.6)
    assert settings_of("a", True) != settings_of("a", False)
    assert settings_of("a", {"x": 1, "y": 2}) == settings_of("a", {"y": 2, "x": 1})
    assert settings_of("a", [1, 2]) != settings_of("a", [2, 1])
    assert settings_of("a", torch.zeros(2)) != settings_of("a", torch.zeros(3))
    assert settings_of("a", "x" * 99 + "a") != settings_of("a", "x" * 99 + "b")


class Slots:
    __slots__ = ("_given", "left")

    def __init__(self, given):
        self._given = given


class Unpicklable:
    def __init__(self, value):
        self.value = value

    def __reduce_ex__(self, protocol):
        raise TypeError


CONTENTS = {
    "decimal": (Decimal, "1.5", "2.5"),
    "deque": (deque, (1, torch.ones(2)), (1, torch.zeros(2))),
    "its length": (lambda n: deque((1, 2), n), 2, 3),
    "date": (date.fromisoformat, "2020-01-01", "2020-01-02"),
    "time": (datetime.fromisoformat, "2020-01-01 10:00", "2020-01-01 11:00"),
    "set": (lambda text: {Decimal(text), 1}, "1.5", "2.5"),
    "numpy's time": (np.datetime64, "2020", "2021"),
    "numpy's generator": (np.random.default_rng, 0, 1),
    "torch's generator": (torch.Generator().manual_seed, 0, 1),
    "python's generator": (random.Random, 0, 1),
    "slots": (Slots, Decimal(1), Decimal(2)),
    "no pickle": (Unpicklable, Decimal(1), Decimal(2)),
    "frame": (lambda x: pandas.DataFrame({"a": [x, 2.0], "b": ["c", "d"]}), 1.0, 2.0),
    "its names": (lambda name: pandas.DataFrame({name: [1.0, 2.0]}), "a", "b"),
    "a series' index": (lambda first: pandas.Series([1, 2], index=[first, "z"]), "x", "y"),
}


@pytest.mark.parametrize(("build", "one", "other"), CONTENTS.values(), ids=CONTENTS)
def test_objects_without_attributes_count_by_what_they_hold(build, one, other, tmp_path):
    path = tmp_path / "c.pt"
    run(path, Own(given=build(one)))
    assert "objective.given" in refused(path, Own(given=build(other)))
    assert run(path, Own(given=build(one)), steps=5).steps == 5


def test_a_generator_that_training_draws_from_is_state(tmp_path):
    class Drawing(Own):
        def forward(self, flow, batch):
            self.generator.random()
            return super().forward(flow, batch)

    for steps in (3, 5):
        goal = Drawing(generator=np.random.default_rng(0))
        assert run(tmp_path / "c.pt", goal, steps=steps).steps == steps


@pytest.mark.parametrize("streamed", [False, True])
def test_rows_of_other_columns_are_others(streamed, tmp_path):
    table = pandas.DataFrame(rows().double().numpy(), columns=["a", "b"])

    def go(table, steps):
        x = table.to_numpy()
        if streamed:
            np.save(tmp_path / "x.npy", x)
            x = np.load(tmp_path / "x.npy", mmap_mode="r")
        return fit(
            discrete(), x if streamed else table, steps=steps, checkpoint=tmp_path / "c.pt", **QUIET
        )

    go(table, 3)
    others = (
        [table[["b", "a"]]] if streamed else [table[["b", "a"]], table.set_axis(["a", "c"], axis=1)]
    )
    for other in others:
        with pytest.raises(LoadError, match="another run"):
            go(other, 5)
    assert go(table, 5).steps == 5


def test_rings_and_empty_cells_come_to_an_end():
    ring = Callable()
    ring.next = [ring]
    found = settings_of("ring", ring)
    assert found["ring.next.0"] == "as ring"

    def early():
        return later

    assert settings_of("early", early)["early.later"] == "None"
    later = 1


def test_what_moved_is_state():
    before = {"a": "1", "b": "2"}
    kept = unmoved(before, {"a": "1", "b": "3", "c": "4"})
    assert kept == {"a": "1", "b": None, "c": None}
    assert not list(differences(kept, {"a": "1", "b": "9"}))
    assert list(differences(kept, {})) == ["a was 1, and is missing"]
    assert list(differences(kept, {"a": "1", "d": "5"})) == ["d was missing, and is 5"]
    assert not list(differences(kept, {"a": "1", "c.e": "5"}))
