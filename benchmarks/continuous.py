"""Our continuous flow beside FFJORD's own way: a training iteration, the exact trace.

    python benchmarks/continuous.py iteration --case pinwheel power bsds43
    python benchmarks/continuous.py trace

Everything runs in one process on one thread and one core, in alternating runs; figures are medians
with quartiles. The error of log p is measured on each arm's own integrand: the same weights, the
same probe, solved in float64 at 1e-10.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from common import alternate, machine, pin, ratio, spread, table, write_result
from continuous_peers import PEERS
from data import power
from reference import ReferenceCNF
from torch import Tensor

from baselines.harness.data import toy
from cflows import MLP, Adaptive, FixedGrid, Flow, Lagged, ODEBijector, value_and_divergence
from cflows.continuous.divergence import draw_probes
from cflows.continuous.solvers import SIZES, Solver
from cflows.continuous.tableaus import TABLEAUS

EXACT = Adaptive("dopri5", rtol=1e-10, atol=1e-10, max_nfe=200_000)


@dataclass(frozen=True)
class Case:
    """One field on one data set, as the FFJORD paper trains it.

    Attributes:
        rows: what to train on, (N, D).
        hidden: widths.
        activation: of the hidden layers.
        batch: rows an iteration.
        end_time: T.
        rtol: the reference's.
        atol: the reference's.
        checked: rows whose error is measured; a float64 solve at 1e-10 takes its time.

    """

    rows: Callable[[], Tensor]
    hidden: tuple[int, ...]
    activation: str
    batch: int
    end_time: float
    rtol: float
    atol: float
    checked: int = 1000


CASES = {
    "pinwheel": Case(
        lambda: torch.from_numpy(toy("pinwheel", 50_000, 0)).float(),
        (64, 64, 64), "tanh", 512, 0.5, 1e-5, 1e-5,
    ),
    "power": Case(
        lambda: torch.from_numpy(power(os.environ["CFLOWS_DATA"])[0]).float(),
        (60, 60, 60), "tanh", 1000, 1.0, 1e-6, 1e-8,
    ),
    "bsds43": Case(lambda: _bsds43(), (860, 860), "softplus", 1000, 1.0, 1e-6, 1e-8, checked=50),
}  # fmt: skip


def iteration(names: Sequence[str], *, runs: int, trained: int) -> str:
    """Compare one training iteration at two errors: 1e-3 on average, and the reference's own."""
    rows = []
    for name in names:
        case = CASES[name]
        torch.manual_seed(0)
        field, x = trained_field(case, trained)
        reference = _reference(case, field)
        seen = x[: case.checked]
        probe = draw_probes(seen)[0]
        twin = _reference_exact(case, reference)
        own = _errors(reference.log_prob(seen, probe), twin.log_prob(seen.double(), probe.double()))
        run = _reference_step(reference, x)
        run()
        arms: dict[str, Callable[[], object]] = {"reference": run}
        shown: dict[str, tuple[str, tuple[float, float], str]] = {
            "reference": (
                f"dopri5 {case.rtol:g}/{case.atol:g}, adjoint", own,
                f"{reference.nfe_forward} + {reference.nfe_backward}",
            )
        }  # fmt: skip
        for label, limit in (("at 1e-3", 1e-3), ("at its error", own[0])):
            for divergence in ("exact", "hutchinson"):
                found = cheapest(case, field, seen, divergence, probe, limit)
                if found is None:
                    print(f"{name}: no grid of {SIZES} keeps {limit:.1e} with {divergence}")
                    continue
                solver, errors = found
                arm = f"{label}, {divergence}"
                flow = ours(case, field, solver, divergence)
                arms[arm] = step(flow, x)
                nfe = solver.steps * len(TABLEAUS[solver.method].c)
                shown[arm] = (f"{solver.method}, {solver.steps} steps", errors, str(nfe))
        for peer, arm_of in PEERS.items():
            found_peer = arm_of(field, case.end_time, x, seen, probe, 1e-3)
            if found_peer is None:
                print(f"{name}: {peer} keeps 1e-3 at no tolerance that was tried")
                continue
            arms[peer], how, errors = found_peer
            shown[peer] = (how, errors, "")
        arms["default"], shown["default"] = _default(case, field, x, seen, probe)
        times = alternate(arms, runs=runs)
        for arm, seconds in times.items():
            how, errors, nfe = shown[arm]
            gain = ratio(times, "reference", arm)
            rows.append(
                (name, arm, how, nfe, f"{errors[0]:.1e}", f"{errors[1]:.1e}", spread(seconds), gain)
            )
            print(*rows[-1], sep=" | ", flush=True)
    header = ("case", "arm", "solver", "NFE", "mean error", "max error", "time", "reference / arm")
    return table(header, rows)


def trace(*, runs: int) -> str:
    """Compare the exact trace with one probe and with D products, 43-860-860-43, no gradient."""
    rows = []
    for count in (1000, 100):
        torch.manual_seed(0)
        field = MLP(43, hidden=(860, 860), activation="softplus")
        with torch.no_grad():
            for parameter in field.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        x, t = torch.randn(count, 43), torch.tensor(0.3)
        probe = draw_probes(x)

        def plain(t: Tensor, state: Tensor, context: Tensor | None, field: MLP = field) -> Tensor:
            return field(t, state, context)

        def products(plain: Callable[..., Tensor] = plain, x: Tensor = x, t: Tensor = t) -> Tensor:
            state = x.requires_grad_()
            value = plain(t, state, None)
            total = torch.zeros(len(x))
            for k in range(x.shape[1]):
                (row,) = torch.autograd.grad(value[:, k].sum(), state, retain_graph=True)
                total += row[:, k]
            return total

        def evaluated(
            probes: Tensor | None, field: MLP = field, x: Tensor = x, t: Tensor = t
        ) -> Callable[[], object]:
            def run() -> None:
                with torch.no_grad():
                    value_and_divergence(field, t, x, None, probes)

            return run

        arms = {"exact": evaluated(None), "one probe": evaluated(probe), "D products": products}
        times = alternate(arms, runs=runs)
        difference = float((value_and_divergence(field, t, x)[1] - products()).abs().max().detach())
        rows.append(
            (
                count, spread(times["exact"]), spread(times["one probe"]),
                spread(times["D products"]), ratio(times, "exact", "one probe"),
                ratio(times, "D products", "exact"), f"{difference:.1e}",
            )
        )  # fmt: skip
        print(*rows[-1], sep=" | ", flush=True)
    header = ("batch", "exact", "one probe", "D products", "exact / one probe",
              "D products / exact", "largest difference, float32")  # fmt: skip
    return table(header, rows)


def trained_field(case: Case, iterations: int) -> tuple[MLP, Tensor]:
    """The field after some iterations on real rows, and one more batch."""
    data = case.rows()
    field = MLP(data.shape[1], hidden=case.hidden, activation=case.activation)
    flow = ours(case, field, Lagged("dopri5", 1e-3), "auto")
    optimizer = torch.optim.Adam(flow.parameters(), 1e-3)
    batches = iter(lambda: data[torch.randint(len(data), (case.batch,))], None)
    start = time.perf_counter()
    for x in itertools.islice(batches, iterations):
        optimizer.zero_grad()
        loss = -flow.log_prob(x).mean()
        loss.backward()
        flow.review()
        optimizer.step()
    print(f"{iterations} iterations in {time.perf_counter() - start:.0f} s, loss {loss.item():.3f}")
    return field, next(batches)


def ours(case: Case, field: MLP, solver: Solver, divergence: str) -> Flow:
    """The flow of a field, in training mode: solver and divergence are those given."""
    bijector = ODEBijector(
        field, end_time=case.end_time, training_solver=solver, divergence=divergence
    )
    return Flow(bijector).train()


def _reference(case: Case, field: MLP) -> ReferenceCNF:
    model = ReferenceCNF(
        field.features, hidden=case.hidden, activation=case.activation, end_time=case.end_time,
        rtol=case.rtol, atol=case.atol,
    )  # fmt: skip
    return model.copy_from(field)


def _reference_exact(case: Case, model: ReferenceCNF) -> ReferenceCNF:
    twin = ReferenceCNF(
        model.features, hidden=case.hidden, activation=case.activation, end_time=case.end_time,
        rtol=1e-10, atol=1e-10,
    ).double()  # fmt: skip
    twin.load_state_dict(model.state_dict())
    return twin


def _reference_step(model: ReferenceCNF, x: Tensor) -> Callable[[], object]:
    return _optimised(model, lambda: model.log_prob(x))


def step(flow: Flow, x: Tensor) -> Callable[[], object]:
    """One training iteration, the review of its solves included."""

    def log_prob() -> Tensor:
        found = flow.log_prob(x)
        return found

    run = _optimised(flow, log_prob)

    def whole() -> None:
        run()
        flow.review()

    return whole


def _optimised(model: torch.nn.Module, log_prob: Callable[[], Tensor]) -> Callable[[], object]:
    # At a rate of zero the step costs what it costs, and the weights stay.
    optimizer = torch.optim.Adam(model.parameters(), 0.0)

    def run() -> None:
        optimizer.zero_grad()
        (-log_prob().mean()).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return run


def cheapest(
    case: Case, field: MLP, x: Tensor, divergence: str, probe: Tensor, limit: float
) -> tuple[FixedGrid, tuple[float, float]] | None:
    """The grid of fewest evaluations whose log p is off by ``limit`` on average, .1 at most."""
    exact = _in_double(case, field, x, divergence, probe)
    grids = [FixedGrid(method, steps) for method in TABLEAUS for steps in (1, *SIZES)]
    grids.sort(key=lambda grid: grid.steps * len(TABLEAUS[grid.method].c))
    for grid in grids:
        errors = _errors(_log_prob(ours(case, field, grid, divergence), x, probe), exact)
        if errors[0] <= limit and errors[1] <= 0.1:
            return grid, errors
    return None


def _default(
    case: Case, field: MLP, x: Tensor, seen: Tensor, probe: Tensor
) -> tuple[Callable[[], object], tuple[str, tuple[float, float], str]]:
    """What a user gets who chooses nothing: the iteration, and its error on the grid it settled."""
    flow = ours(case, field, Lagged("dopri5", 1e-3), "auto")
    part, run = cast(ODEBijector, flow.bijector), step(flow, x)
    for _ in range(3):  # each lets the next solve choose its steps
        run()
    if not part.steps:
        return run, ("Lagged dopri5 1e-3, gave up its grids", (math.nan, math.nan), "")
    scheme, grid = part._scheme(len(x)), FixedGrid("dopri5", part.steps)
    errors = _errors(
        _log_prob(ours(case, field, grid, scheme), seen, probe),
        _in_double(case, field, seen, scheme, probe),
    )
    return run, (f"Lagged dopri5 1e-3, {part.steps} steps, {scheme}", errors, str(part.stats.nfe))


def _in_double(case: Case, field: MLP, x: Tensor, divergence: str, probe: Tensor) -> Tensor:
    """Log p of the same integrand, solved in float64 at 1e-10."""
    doubled = MLP(field.features, hidden=case.hidden, activation=case.activation).double()
    doubled.load_state_dict({k: v.double() for k, v in field.state_dict().items()})
    return _log_prob(ours(case, doubled, EXACT, divergence), x.double(), probe.double())


def _log_prob(flow: Flow, x: Tensor, probe: Tensor) -> Tensor:
    part: Any = flow.bijector
    draw, part._draw = part._draw, lambda x, first: (
        None if part._scheme(len(x)) == "exact" else probe.unsqueeze(0)
    )  # fmt: skip
    try:
        with torch.no_grad():
            return flow.log_prob(x)
    finally:
        part._draw = draw


def _errors(found: Tensor, exact: Tensor) -> tuple[float, float]:
    error = (found.detach().double() - exact.detach()).abs()
    return float(error.mean()), float(error.max())


def _bsds43() -> Tensor:
    import h5py

    with h5py.File(Path(os.environ["CFLOWS_DATA"]) / "BSDS300" / "BSDS300.hdf5") as file:
        rows = np.asarray(file["train"][:, :43])
    return torch.from_numpy((rows - rows.mean(0)) / rows.std(0)).float()


def main() -> None:
    """Run what the command line names; print the table and write it into results/."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=["iteration", "trace"])
    parser.add_argument("--case", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--trained", type=int, default=300, help="iterations before measuring")
    parser.add_argument("--core", type=int, default=0)
    options = parser.parse_args()
    pin(options.core)
    torch.set_num_threads(1)
    if options.what == "iteration":
        text = iteration(options.case, runs=options.runs, trained=options.trained)
    else:
        text = trace(runs=options.runs)
    facts = ", ".join(f"{name} {value}" for name, value in machine().items())
    print("\n" + text + "\n" + facts)
    name = "_".join([options.what, *(options.case if options.what == "iteration" else [])])
    write_result(f"continuous_{name}", text + "\n" + facts)


if __name__ == "__main__":
    main()
