"""Two processes that train one flow do what one does; needs Gloo and a loopback interface."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import distributed, nn

from baselines import MAF
from cflows import (
    FFJORD,
    ActNorm,
    Adaptive,
    BatchNorm,
    Chain,
    Flow,
    FlowMatching,
    ForwardKL,
    Lagged,
    LoadError,
    ProcessError,
    ReverseKL,
    SolverError,
    fit,
)
from cflows.core.collectives import own_seed

pytestmark = pytest.mark.skipif(
    not (distributed.is_available() and distributed.is_gloo_available()), reason="needs Gloo"
)
QUIET = {"progress": False, "device": "cpu"}


def rows(n=64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 2, generator=generator, dtype=torch.float64)
    return x @ torch.tensor([[2.0, 0.5], [0.0, 0.3]], dtype=torch.float64) + 1.0


def ffjord(divergence):
    return FFJORD(2, hidden=(8, 8), divergence=divergence, training_solver=Lagged("bosh3", 1e-3))


def maf(**settings):
    return MAF(2, layers=2, hidden=(8,), **settings)


def act_norm(flow):
    return Flow(Chain(flow.bijector, ActNorm(2)))


BUILDS = {
    "ffjord": lambda: ffjord("exact"),
    "ffjord, probes": lambda: ffjord("hutchinson"),
    "ffjord, act norm": lambda: act_norm(ffjord("exact")),
    "maf": maf,
    "maf, muon": lambda: MAF(2, layers=2, hidden=(8, 8)),
    "maf, batch norm": lambda: maf(batch_norm=True),
    "maf, act norm": lambda: act_norm(maf()),
}
KINDS = [kind for kind in BUILDS if kind != "ffjord, probes"]  # draws differ between processes


def built(kind, seed=0):
    torch.manual_seed(seed)
    flow = BUILDS[kind]()
    for part in flow.modules():
        if isinstance(part, BatchNorm):
            # Next to the base β's first gradient is rounding alone, which Adam makes large.
            part.beta.requires_grad_(False)
    return flow.double()


def values(flow, what=lambda p: p.detach()):
    return torch.cat([what(p).flatten().clone() for p in flow.parameters()])


def gradient(flow):
    return values(flow, lambda p: torch.zeros_like(p) if p.grad is None else p.grad)


def trained(kind, steps, **settings):
    # Each process starts from weights of its own; what counts is the first one's.
    flow = built(kind, seed=rank())
    settings = {"batch_size": 32, "clip_norm": None, "validate_every": 5, **QUIET, **settings}
    if "muon" in kind:
        settings |= {"optimizer": "muon", "ema": 0.9}
    history = fit(flow, rows(), rows(17, seed=1), steps=steps, **settings)
    return flow, history


def rank():
    return distributed.get_rank() if distributed.is_initialized() else 0


class Acting(ForwardKL):
    """Does something at one call, in one process or in all."""

    def __init__(self, at, act, where=(1,)):
        super().__init__()
        self._left, self._act, self._where = at, act, where

    def forward(self, flow, batch):
        self._left -= 1
        if self._left == 0 and rank() in self._where:
            self._act()
        return super().forward(flow, batch)


Acting.__qualname__ = "ForwardKL"  # what it was asked for is the same
CASES = {}


def case(function):
    CASES[function.__name__] = function
    return function


def raising(error):
    def act():
        raise error

    return act


def message(error_type, call):
    with pytest.raises(error_type) as caught:
        call()
    return str(caught.value)


@case
def same_run(folder):
    found = {}
    for kind in KINDS:
        first, _ = trained(kind, 1)
        flow, history = trained(kind, 10)
        lines = [[r.step, r.loss or 0.0, r.validation, r.nfe] for r in history.records]
        found[kind] = {
            "gradient": gradient(first),
            "weights": values(flow),
            "state": torch.cat([v.flatten().double() for v in flow.state_dict().values()]),
            "records": torch.tensor(lines, dtype=torch.float64),
        }
    return found


@case
def weighted_rows(folder):
    counted = {"weights": rows()[:, 0].exp(), "validation_weights": torch.arange(17)}
    flow, history = trained("maf", 10, **counted)
    return values(flow), torch.tensor([record.validation for record in history.records])


@case
def own_probes(folder):
    return gradient(trained("ffjord, probes", 1)[0])


@case
def failed_solve(folder):
    failing = Acting(4, raising(SolverError("the step vanished")))
    flow, history = trained("ffjord", 8, objective=failing)
    return {"skipped": history.skipped, "steps": history.steps, "weights": values(flow)}


@case
def fatal_error(folder):
    failing = Acting(3, raising(ZeroDivisionError("by zero")))
    expected = ZeroDivisionError if rank() else ProcessError
    return message(expected, lambda: trained("maf", 8, objective=failing))


@case
def refusals(folder):
    adjoint = FFJORD(2, hidden=(4,), gradient="adjoint", training_solver=Adaptive())
    normed = FFJORD(2, hidden=(4,), batch_norm=True)
    x = rows().float()
    return {
        "MMD is not": message(ProcessError, lambda: trained("maf", 1, objective="mmd")),
        "a mean over rows": message(
            ProcessError, lambda: trained("ffjord", 1, objective=FlowMatching("optimal"))
        ),
        "give 32": message(ProcessError, lambda: trained("maf", 1, batch_size=33)),
        "give 6": message(
            ProcessError,
            lambda: fit(built("maf"), None, objective=ReverseKL(target, samples=7), **QUIET),
        ),
        "batch_norm=False": message(ProcessError, lambda: fit(normed, x, **QUIET)),
        "checkpoint": message(ProcessError, lambda: fit(adjoint, x, **QUIET)),
        "different rows": message(
            ProcessError, lambda: fit(built("maf"), rows(seed=rank()), **QUIET)
        ),
    }


@case
def resumed(folder):
    path, settings = folder / "checkpoint.pt", {"checkpoint_every": 4}
    kind = "ffjord, probes"
    whole, _ = trained(kind, 12, objective=Acting(0, None), **settings)
    stop = Acting(7, raising(KeyboardInterrupt), where=(0, 1))
    with pytest.raises(KeyboardInterrupt):
        trained(kind, 12, objective=stop, checkpoint=path, **settings)
    flow, _ = trained(kind, 12, objective=Acting(0, None), checkpoint=path, **settings)
    return {"same": torch.equal(values(flow), values(whole)), "weights": values(flow)}


@case
def signalled(folder):
    class Ended(Exception):
        pass

    def end(number, frame):
        raise Ended(number)

    path = folder / "signalled.pt"
    before = signal.signal(signal.SIGTERM, end)
    stopping = Acting(3, lambda: signal.raise_signal(signal.SIGTERM))
    told = message(Ended, lambda: trained("maf", 50, objective=stopping, checkpoint=path))
    signal.signal(signal.SIGTERM, before)
    return told


@case
def time_and_callbacks(folder):
    seen = []
    _, timed = trained("maf", None, seconds=0.3)
    _, called = trained("maf", 50, callbacks=[lambda r: seen.append(r) or r.step == 10])
    return [timed.stopped, timed.steps, timed.seconds, called.stopped, called.steps, len(seen)]


def with_spare_parameters():
    flow = built("maf")
    flow.spare = nn.Parameter(torch.ones(2, 2).double())
    flow.frozen = nn.Parameter(torch.ones(()).double(), requires_grad=False)
    fit(flow, rows(), steps=3, batch_size=32, weight_decay=0.1, **QUIET)
    return flow


@case
def unused_parameters(folder):
    return values(with_spare_parameters())


def target(x):
    return -0.5 * x.square().sum(-1)


@case
def draws(folder):
    sizes = []
    goal = ReverseKL(lambda x: sizes.append(len(x)) or target(x), samples=16)
    flow = built("maf")
    fit(flow, None, objective=goal, steps=2, **QUIET)
    return [sizes, values(flow), goal.rows]


def work(number, folder):
    """Run all cases in one of two processes, and write what they return."""
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=number, world_size=2
    )
    found = {name: run(folder) for name, run in CASES.items()}
    distributed.destroy_process_group()
    torch.save(found, folder / f"{number}.pt")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    environment = {
        **os.environ,
        "GLOO_SOCKET_IFNAME": "lo",
        "PYTHONPATH": str(Path(__file__).parents[3]),
    }
    started = [
        subprocess.Popen(
            [sys.executable, "-W", "error", __file__, str(number), str(folder)],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    try:
        told = [process.communicate(timeout=300)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    assert told == ["", ""]
    return folder


@pytest.fixture(scope="module")
def both(folder):
    return [torch.load(folder / f"{number}.pt", weights_only=True) for number in range(2)]


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_give_the_gradient_of_one(both, kind):
    expected = gradient(trained(kind, 1)[0])
    for found in both:
        got = found["same_run"][kind]["gradient"]
        torch.testing.assert_close(got, expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "ffjord, act norm"])
def test_a_run_of_two_processes_is_that_of_one(both, kind):
    flow, history = trained(kind, 10)
    found = both[0]["same_run"][kind]
    torch.testing.assert_close(found["weights"], values(flow), atol=1e-6, rtol=0)
    lines = [[r.step, r.loss or 0.0, r.validation, r.nfe] for r in history.records]
    torch.testing.assert_close(
        found["records"], torch.tensor(lines, dtype=torch.float64), atol=1e-6, rtol=0
    )
    assert torch.equal(found["state"], both[1]["same_run"][kind]["state"])


def test_weighted_rows_count_alike_in_two_processes_and_in_one(both):
    for found, expected in zip(both[0]["weighted_rows"], CASES["weighted_rows"](None), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_each_process_draws_its_own_probes(both, monkeypatch):
    parts = []
    order = torch.randperm(64, generator=torch.Generator().manual_seed(hash((0, 0)) % 2**63))
    for number in range(2):
        monkeypatch.setattr("cflows.core.collectives.processes", lambda: 2)
        monkeypatch.setattr("cflows.core.collectives.rank", lambda number=number: number)
        seed = own_seed(0)
        monkeypatch.undo()
        assert (seed == 0) == (number == 0)
        flow = built("ffjord, probes").train()
        torch.manual_seed(seed)
        flow.log_prob(rows()[order[:32][number::2]]).mean().neg().backward()
        parts.append(gradient(flow))
    torch.testing.assert_close(both[0]["own_probes"], (parts[0] + parts[1]) / 2)


def test_a_solve_that_fails_in_one_process_skips_the_batch_in_both(both):
    first, second = (found["failed_solve"] for found in both)
    assert first["skipped"] == second["skipped"] == 1
    assert first["steps"] == 8
    assert torch.equal(first["weights"], second["weights"])


def test_an_error_in_one_process_ends_both(both):
    assert both[0]["fatal_error"] == "process 1 failed: by zero"
    assert both[1]["fatal_error"] == "by zero"


def test_what_two_processes_cannot_share_is_refused(both):
    for found in both:
        for expected, text in found["refusals"].items():
            assert expected in text
            assert "\n" not in text


def test_a_run_of_two_processes_resumes_bit_for_bit_in_two_only(both, folder):
    assert all(found["resumed"]["same"] for found in both)
    assert torch.equal(both[0]["resumed"]["weights"], both[1]["resumed"]["weights"])
    with pytest.raises(LoadError, match="number of processes"):
        trained("ffjord, probes", 12, checkpoint=folder / "checkpoint.pt")


def test_a_signal_to_one_process_ends_both_with_a_checkpoint(both, folder):
    assert both[0]["signalled"] == both[1]["signalled"] == str(int(signal.SIGTERM))
    written = torch.load(folder / "signalled.pt", weights_only=True)
    assert written["counters"]["step"] == 3


def test_the_first_process_keeps_the_time_and_calls_back(both):
    (*first, seen), (*second, unseen) = (found["time_and_callbacks"] for found in both)
    assert first == second
    assert first[0] == "seconds"
    assert first[3:] == ["callback", 10]
    assert (seen, unseen) == (3, 0)


def test_unused_and_frozen_parameters_are_left_alone(both):
    flow = with_spare_parameters()
    torch.testing.assert_close(both[0]["unused_parameters"], values(flow), atol=1e-9, rtol=0)


def test_draws_are_shared_out(both):
    (sizes, weights, asked), (_, others, _) = (found["draws"] for found in both)
    assert sizes == [8, 8]
    assert asked == 16
    assert torch.equal(weights, others)


if __name__ == "__main__":
    work(int(sys.argv[1]), Path(sys.argv[2]))
