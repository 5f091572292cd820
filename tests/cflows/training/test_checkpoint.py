"""What interrupts a run costs it nothing: kills, signals, full disks, damaged files."""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
import sys
import time
import warnings
from contextlib import nullcontext
from pathlib import Path

import disks
import pytest
import torch

from baselines import MAF
from cflows import FFJORD, Lagged, LoadError, fit
from cflows.objectives import ForwardKL
from cflows.training.checkpoint import interruptible

QUIET = {"progress": False}


def rows(n=256, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 2, generator=generator) @ torch.tensor([[2.0, 0.5], [0.0, 0.3]]) + 1.0


def small(kind="maf"):
    torch.manual_seed(0)
    if kind == "maf":
        return MAF(2, layers=2, hidden=(8,), batch_norm=True)
    if kind == "muon":
        return MAF(2, layers=2, hidden=(8, 8))
    return FFJORD(2, hidden=(8,), divergence="hutchinson", training_solver=Lagged("bosh3", 1e-4))


def weights(flow):
    return torch.cat([p.detach().flatten() for p in flow.parameters()])


SETTINGS = {"steps": 40, "batch_size": 32, "validate_every": 10, "checkpoint_every": 4, **QUIET}


def train(flow, path=None, objective="forward_kl", **changes):
    return fit(
        flow,
        rows(),
        rows(64, seed=1),
        checkpoint=path,
        objective=objective,
        **{**SETTINGS, **changes},
    )


class Interrupting(ForwardKL):
    """Does something at one call of the objective; as a setting it is the plain one."""

    def __init__(self, at, act):
        super().__init__()
        self._left, self._act = at, act

    def forward(self, flow, batch):
        self._left -= 1
        if self._left == 0:
            self._act()
        return super().forward(flow, batch)


Interrupting.__qualname__ = "ForwardKL"


def fail():
    raise ZeroDivisionError


def interrupted(path, at, act=fail, error=ZeroDivisionError):
    with pytest.raises(error):
        train(small(), path, Interrupting(at, act))


@pytest.fixture(scope="module")
def whole():
    flow = small()
    torch.set_num_threads(1)
    return flow, train(flow)


def columns(history):
    return {name: column for name, column in history.columns().items() if name != "seconds"}


def agree(flow, history, whole):
    assert torch.equal(weights(flow), weights(whole[0]))
    assert columns(history) == columns(whole[1])


def step_of(path):
    return torch.load(path, weights_only=True)["counters"]["step"]


def test_checkpoints_between_validations_lose_no_bit_of_the_history(tmp_path, whole):
    path, flow = tmp_path / "c.pt", small()
    interrupted(path, at=27)
    assert (step_of(path), step_of(f"{path}.previous")) == (24, 20)
    agree(flow, train(flow, path), whole)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c.pt", "c.pt.previous"]


@pytest.mark.parametrize("damage", [lambda p: p.write_bytes(p.read_bytes()[:500]), Path.unlink])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path, whole, damage):
    path, flow = tmp_path / "c.pt", small()
    interrupted(path, at=27)
    damage(path)
    with pytest.warns(RuntimeWarning, match=r"going on from .*c\.pt\.previous"):
        history = train(flow, path)
    agree(flow, history, whole)


def test_damaged_and_foreign_files_are_named_and_refused(tmp_path):
    path = tmp_path / "c.pt"
    interrupted(path, at=27)
    good = path.read_bytes()
    with pytest.raises(LoadError, match="of another run"):
        train(small(), path, seed=1)
    path.write_bytes(b"damaged")
    with (
        pytest.warns(RuntimeWarning, match="is damaged"),
        pytest.raises(LoadError, match="of another run"),
    ):
        train(small(), path, seed=1)
    small().save(path)
    with pytest.raises(LoadError, match="is a saved flow, not a checkpoint"):
        train(small(), path)
    torch.save({"checkpoint": 1}, path)
    with pytest.raises(LoadError, match="is no checkpoint of this version"):
        train(small(), path)
    path.write_bytes(good[:100])
    Path(f"{path}.previous").write_bytes(b"")
    with pytest.raises(LoadError, match=r"c\.pt\.previous is damaged"):
        train(small(), path)


def test_a_full_disk_loses_no_earlier_checkpoint(tmp_path, whole):
    path, flow = tmp_path / "c.pt", small()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill():
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))

    try:
        with pytest.warns(RuntimeWarning, match=r"no checkpoint was written to .*c\.pt") as caught:
            history = train(flow, path, Interrupting(22, fill))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    agree(flow, history, whole)
    assert len(caught) == 5
    assert (step_of(path), step_of(f"{path}.previous")) == (20, 16)
    assert len(list(tmp_path.iterdir())) == 2
    flow = small()
    agree(flow, train(flow, path), whole)


def test_a_file_system_without_links(tmp_path, whole, monkeypatch):
    def refuse(*_):
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    path, flow = tmp_path / "c.pt", small()
    interrupted(path, at=27)
    assert (step_of(path), step_of(f"{path}.previous")) == (24, 20)
    agree(flow, train(flow, path), whole)


class Terminated(Exception):
    pass


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_for_the_checkpoint_and_then_has_its_way(tmp_path, whole, number):
    def terminate(*_):
        raise Terminated

    path, flow = tmp_path / "c.pt", small()
    before = signal.signal(signal.SIGTERM, terminate)
    try:
        error = KeyboardInterrupt if number == signal.SIGINT else Terminated
        for at, step in ((13, 13), (5, 18)):
            interrupted(path, at, lambda: signal.raise_signal(number), error)
            assert step_of(path) == step
            assert signal.getsignal(signal.SIGTERM) is terminate
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGTERM, before)
    agree(flow, train(flow, path), whole)


def test_a_second_signal_does_not_wait(tmp_path):
    reached = []

    def insist():
        signal.raise_signal(signal.SIGINT)
        reached.append(True)
        signal.raise_signal(signal.SIGINT)
        reached.append(True)

    interrupted(tmp_path / "c.pt", 13, insist, KeyboardInterrupt)
    assert reached == [True]
    assert step_of(tmp_path / "c.pt") == 12


def test_signals_that_are_ignored_stay_ignored():
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with interruptible(True) as received:
            signal.raise_signal(signal.SIGTERM)
        assert received == []
    finally:
        signal.signal(signal.SIGTERM, before)


CHILD = """
import os, sys
sys.path[:0] = {tests!r}
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook
torch.set_num_threads(1)
import test_checkpoint as t
log = os.open({log!r}, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
register_optimizer_step_post_hook(lambda *_: os.write(log, b"."))
flow = t.small({kind!r})
t.train(flow, {path!r}, steps=t.SWEPT, **t.OF_KIND.get({kind!r}, {{}}))
torch.save(t.weights(flow), {out!r})
"""
SWEPT = 160
OF_KIND = {"muon": {"optimizer": "muon", "ema": 0.9}}
KILLS = 3


@pytest.mark.parametrize("kind", ["maf", "ffjord", "muon"])
def test_kills_at_random_moments_cost_a_checkpoint_interval_each(kind, tmp_path):
    log, out = tmp_path / "log", tmp_path / "weights.pt"
    script = CHILD.format(
        tests=[str(p) for p in Path(__file__).parents[:3]],
        log=str(log),
        kind=kind,
        path=str(tmp_path / "c.pt"),
        out=str(out),
    )
    chance = random.Random(kind)
    for leg in range(KILLS + 1):
        process = subprocess.Popen([sys.executable, "-c", script])
        started = log.stat().st_size if log.exists() else 0
        moment = started + chance.randint(1, 25)
        while leg < KILLS and (not log.exists() or log.stat().st_size < moment):
            assert process.poll() is None, "ended before it was killed"
            time.sleep(0.001)
        if leg < KILLS:
            time.sleep(chance.uniform(0, 0.02))
            process.kill()
        code = process.wait()
        assert code == (0 if leg == KILLS else -signal.SIGKILL)
    flow = small(kind)
    train(flow, steps=SWEPT, **OF_KIND.get(kind, {}))
    assert torch.equal(torch.load(out), weights(flow))
    assert SWEPT <= log.stat().st_size <= SWEPT + KILLS * SETTINGS["checkpoint_every"]


def test_no_warning_without_a_reason(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(small(), tmp_path / "c.pt", steps=8)


@pytest.mark.parametrize("other", [False, True])
def test_a_checkpoint_behind_a_link(other, tmp_path, whole):
    """The link stays, also where it leads to another disk, the one before beside its target."""
    path, flow = tmp_path / "c.pt", small()
    with disks.small(tmp_path / "far", 1024) if other else nullcontext(tmp_path / "far") as far:
        far.mkdir(exist_ok=True)
        path.symlink_to(far / "n.pt")
        interrupted(path, at=27)
        assert path.is_symlink()
        assert sorted(p.name for p in far.iterdir()) == ["n.pt", "n.pt.previous"]
        assert [p.name for p in tmp_path.iterdir() if p != far] == ["c.pt"]
        assert (step_of(path), step_of(far / "n.pt.previous")) == (24, 20)
        agree(flow, train(flow, path), whole)


@pytest.mark.parametrize("character", ["x", "字"])
def test_names_as_long_as_the_system_takes(character, tmp_path, whole):
    path, flow = tmp_path / (character * (255 // len(character.encode()))), small()
    interrupted(path, at=27)
    (previous,) = set(tmp_path.iterdir()) - {path}
    assert previous.name.endswith(".previous")
    assert (step_of(path), step_of(previous)) == (24, 20)
    agree(flow, train(flow, path), whole)


def test_what_keeps_no_checkpoint_is_refused_before_the_training(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "c.pt.previous").mkdir()
    long = "c" * 256
    for name, words in (
        ("pipe", "keeps no checkpoint"),
        ("c.pt", "previous: is a directory"),
        (long, "too long: .*ccc"),
        ("none/c.pt", "no such folder"),
    ):
        with pytest.raises(OSError, match=words):
            train(small(), tmp_path / name, Interrupting(1, fail))
    assert len(list(tmp_path.iterdir())) == 2
