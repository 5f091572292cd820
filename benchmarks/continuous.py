"""Our continuous flow beside FFJORD's own way: a training iteration, the exact trace.

    python benchmarks/continuous.py iteration --case pinwheel power bsds43
    python benchmarks/continuous.py trace
    python benchmarks/continuous.py evaluation --runs 9

Everything runs in one process on one thread and one core, in alternating runs; figures are medians
with quartiles. The error of log p is measured on each arm's own integrand: the same weights, the
same probe, solved in float64 at 1e-10.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from common import Calls, alternate, begun, iteration, parser_of, ratio, report, spread
from continuous_peers import PEERS, Errors, errors_of, first_within
from data import real
from reference import ReferenceCNF
from torch import Tensor

from baselines.harness.data import toy
from cflows import MLP, Adaptive, FixedGrid, Flow, Lagged, ODEBijector, value_and_divergence
from cflows.continuous.divergence import draw_probes, exact_is_cheap, slope
from cflows.continuous.solvers import SIZES, Solver
from cflows.continuous.tableaus import TABLEAUS

EXACT = Adaptive("dopri5", rtol=1e-10, atol=1e-10, max_nfe=200_000)


@dataclass(frozen=True)
class Case:
    """One field on one data set, as the FFJORD paper trains it; tolerances are the reference's.

    The error is measured on so many ``checked`` rows: a float64 solve at 1e-10 takes its time.
    """

    rows: Callable[[], Tensor]
    hidden: tuple[int, ...]
    batch: int = 1000
    end_time: float = 1.0
    rtol: float = 1e-6
    atol: float = 1e-8
    activation: str = "tanh"
    checked: int = 1000

    def ours(self, field: MLP, solver: Solver, divergence: str) -> Flow:
        """The flow of a field, in training mode, where solver and divergence are these."""
        settings = {"training_solver": solver, "divergence": divergence}
        return Flow(ODEBijector(field, end_time=self.end_time, **settings)).train()

    def trained(self, iterations: int) -> tuple[MLP, Tensor]:
        """The field after some iterations on real rows, and one more batch."""
        data = self.rows()
        field = MLP(data.shape[1], hidden=self.hidden, activation=self.activation)
        flow = self.ours(field, Lagged("dopri5", 1e-3), "auto")
        batches = iter(lambda: data[torch.randint(len(data), (self.batch,))], None)
        iterate = iteration(flow, lambda: -flow.log_prob(next(batches)).mean(), 1e-3)
        start = time.perf_counter()
        for _ in range(iterations):
            loss = iterate()
        seconds = time.perf_counter() - start
        print(f"{iterations} iterations in {seconds:.0f} s, loss {loss.item():.3f}")
        return field, next(batches)

    def reference(self, field: MLP) -> ReferenceCNF:
        """FFJORD's own way, with the weights of a field."""
        settings = {"activation": self.activation, "end_time": self.end_time}
        tolerances = {"rtol": self.rtol, "atol": self.atol}
        model = ReferenceCNF(field.features, hidden=self.hidden, **settings, **tolerances)
        return model.copy_from(field)

    def in_double(self, field: MLP, x: Tensor, divergence: str, probe: Tensor) -> Tensor:
        """Log p of the same integrand, solved in float64 at 1e-10."""
        flow = self.ours(copy.deepcopy(field).double(), EXACT, divergence)
        return _log_prob(flow, x.double(), probe.double())

    def cheapest(
        self, field: MLP, x: Tensor, divergence: str, probe: Tensor, limit: float
    ) -> tuple[FixedGrid, Errors] | None:
        """The grid of fewest evaluations whose log p is off by ``limit`` on average, .1 at most."""
        grids = [FixedGrid(method, steps) for method in TABLEAUS for steps in (1, *SIZES)]
        return first_within(
            limit,
            sorted(grids, key=evaluations),
            lambda grid: _log_prob(self.ours(field, grid, divergence), x, probe),
            self.in_double(field, x, divergence, probe),
        )


def _pinwheel() -> Tensor:
    return torch.from_numpy(toy("pinwheel", 50_000, 0)).float()


def _power() -> Tensor:
    return torch.from_numpy(real("power")[0]).float()


def _bsds43() -> Tensor:
    rows = real("bsds300")[0][:, :43]
    return torch.from_numpy((rows - rows.mean(0)) / rows.std(0)).float()


CASES = {
    "pinwheel": Case(_pinwheel, (64, 64, 64), 512, 0.5, 1e-5, 1e-5),
    "power": Case(_power, (60, 60, 60)),
    "bsds43": Case(_bsds43, (860, 860), activation="softplus", checked=50),
}


def evaluations(grid: FixedGrid) -> int:
    """Of the field, by a solve."""
    return grid.steps * len(TABLEAUS[grid.method].c)


def iterations(name: str, runs: int, trained: int) -> Iterator[tuple[object, ...]]:
    """A case's rows: an iteration at two errors, 1e-3 on average and the reference's own."""
    case = CASES[name]
    torch.manual_seed(0)
    field, x = case.trained(trained)
    checked = x[: case.checked]
    probe = draw_probes(checked)[0]
    reference = case.reference(field)
    twin = copy.deepcopy(reference).double()
    twin.rtol = twin.atol = 1e-10
    exact = twin.log_prob(checked.double(), probe.double())
    own = errors_of(reference.log_prob(checked, probe), exact)
    arms: Calls = {"reference": iteration(reference, lambda: -reference.log_prob(x).mean())}
    arms["reference"]()
    how = f"dopri5 {case.rtol:g}/{case.atol:g}, adjoint"
    shown = {"reference": (how, f"{reference.nfe_forward} + {reference.nfe_backward}", own)}
    for label, limit in (("at 1e-3", 1e-3), ("at its error", own.mean)):
        for divergence in ("exact", "hutchinson"):
            cheapest = case.cheapest(field, checked, divergence, probe, limit)
            if cheapest is None:
                print(f"{name}: no grid of {SIZES} keeps {limit:.1e} with {divergence}")
                continue
            grid, errors = cheapest
            arm = f"{label}, {divergence}"
            arms[arm] = step(case.ours(field, grid, divergence), x)
            shown[arm] = (f"{grid.method}, {grid.steps} steps", str(evaluations(grid)), errors)
    for peer, arm_of in PEERS.items():
        peer_arm = arm_of(field, case.end_time, x, checked, probe, 1e-3)
        if peer_arm is None:
            print(f"{name}: {peer} keeps 1e-3 at no tolerance that was tried")
            continue
        arms[peer], shown[peer] = peer_arm.call, (peer_arm.solver, "", peer_arm.errors)
    arms["default"], shown["default"] = _default(case, field, x, checked, probe)
    times = alternate(arms, runs=runs)
    for arm, seconds in times.items():
        how, nfe, errors = shown[arm]
        figures = (f"{errors.mean:.1e}", f"{errors.maximum:.1e}", spread(seconds))
        yield name, arm, how, nfe, *figures, ratio(times, "reference", arm)


def traces(count: int, runs: int) -> tuple[object, ...]:
    """A row: the exact trace, one probe and D products, 43-860-860-43, no gradient."""
    torch.manual_seed(0)
    field = MLP(43, hidden=(860, 860), activation="softplus")
    with torch.no_grad():
        for parameter in field.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    x, t = torch.randn(count, 43), torch.tensor(0.3)
    evaluated = torch.no_grad()(partial(value_and_divergence, field, t, x, None))

    def products() -> Tensor:
        state = x.clone().requires_grad_()
        value = field(t, state, None)
        total = torch.zeros(len(x))
        for k in range(x.shape[1]):
            (row,) = torch.autograd.grad(value[:, k].sum(), state, retain_graph=True)
            total += row[:, k]
        return total

    one_probe = partial(evaluated, draw_probes(x))
    arms: Calls = {"exact": evaluated, "one probe": one_probe, "D products": products}
    times = alternate(arms, runs=runs)
    ratios = (ratio(times, "exact", "one probe"), ratio(times, "D products", "exact"))
    difference = (evaluated()[1] - products()).abs().max()
    return count, *map(spread, times.values()), *ratios, f"{difference:.1e}"


@torch.no_grad()
def evaluated(features: int, width: int, activation: str, runs: int) -> tuple[object, ...]:
    """A row: an evaluation with its exact trace, 1000 rows, beside its matrix products alone."""
    torch.manual_seed(0)
    settings = {"layer": "film", "activation": activation, "time_frequencies": 8}
    field = MLP(features, hidden=(width, width), **settings)
    for parameter in field.parameters():
        parameter.normal_().mul_(0.1)
    x, h, c = torch.randn(1000, features), torch.randn(1000, width), torch.randn(width, width)
    (frozen,) = field.at(torch.tensor([0.3]))
    inner, middle, outer = frozen.weights

    def often(call: Callable[[], object]) -> Callable[[], None]:
        return lambda: [call() for _ in range(max(1, 2**21 // width**2))] and None

    arms: Calls = {
        "products": often(lambda: (x @ inner.mT, h @ middle.mT, h @ outer.mT, h @ c)),
        "evaluation": often(lambda: slope(frozen, x, True, None, (), x, x)),
    }
    with torch.enable_grad():
        (kept,) = field.at(torch.tensor([0.3]))
    arms["evaluation with a graph"] = often(
        torch.enable_grad()(lambda: slope(kept, x, True, None, (), x, x))
    )
    times = alternate(arms, runs=runs)
    shape = f"{features}-{width}-{width}-{features}, {activation}"
    over = (ratio(times, arm, "products") for arm in list(arms)[1:])
    return shape, *map(spread, times.values()), *over


def step(flow: Flow, x: Tensor) -> Callable[[], object]:
    """One training iteration, the review of its solves included."""
    return iteration(flow, lambda: -flow.log_prob(x).mean())


def _default(
    case: Case, field: MLP, x: Tensor, checked: Tensor, probe: Tensor
) -> tuple[Callable[[], object], tuple[str, str, Errors]]:
    """What a user gets who chooses nothing: the iteration, and its error on the grid it settled."""
    flow = case.ours(field, Lagged("dopri5", 1e-3), "auto")
    part, run = cast(ODEBijector, flow.bijector), step(flow, x)
    for _ in range(3):  # each lets the next solve choose its steps
        run()
    if not part.steps:
        return run, ("Lagged dopri5 1e-3, gave up its grids", "", Errors(torch.nan, torch.nan))
    scheme = "exact" if exact_is_cheap(field, len(x), part.probes) else "hutchinson"
    grid = FixedGrid("dopri5", part.steps)
    errors = errors_of(
        _log_prob(case.ours(field, grid, scheme), checked, probe),
        case.in_double(field, checked, scheme, probe),
    )
    return run, (f"Lagged dopri5 1e-3, {part.steps} steps, {scheme}", str(part.stats.nfe), errors)


@torch.no_grad()
def _log_prob(flow: Flow, x: Tensor, probe: Tensor) -> Tensor:
    """With this probe; for a flow that is not used again."""
    part = cast(ODEBijector, flow.bijector)
    draw = part._draw
    part._draw = lambda x, first: None if draw(x, first) is None else probe.unsqueeze(0)
    return flow.log_prob(x)


def main() -> None:
    """Run what the command line names; print the table and write it into results/."""
    parser = parser_of(__doc__)
    add = parser.add_argument
    add("what", choices=["iteration", "trace", "evaluation"])
    add("--case", nargs="+", choices=list(CASES), default=list(CASES))
    add("--runs", type=int, default=7)
    add("--trained", type=int, default=300, help="iterations before measuring")
    options = begun(parser)
    if options.what == "trace":
        costs = ("exact", "one probe", "D products", "exact / one probe", "D products / exact")
        header = ("batch", *costs, "largest difference, float32")
        report("continuous_trace", header, (traces(count, options.runs) for count in (1000, 100)))
        return
    if options.what == "evaluation":
        header = ("field", "products", "evaluation", "with a graph", "over products", "of a graph")
        sizes = ((2, 64), (6, 256), (63, 512))
        kinds = ((*size, name) for name in ("silu", "tanh") for size in sizes)
        report("continuous_evaluation", header, (evaluated(*kind, options.runs) for kind in kinds))
        return
    header = ("case", "arm", "solver", "NFE", "mean error", "max error", "time", "reference / arm")
    rows = (row for name in options.case for row in iterations(name, options.runs, options.trained))
    report("_".join(["continuous_iteration", *options.case]), header, rows)


if __name__ == "__main__":
    main()
