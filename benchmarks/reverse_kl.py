"""Reverse KL on the energies of Rezende and Mohamed: planar flows by depth, and other families.

    python benchmarks/reverse_kl.py --write

Each flow starts from a normal whose mean and spread are trained too, and minimises
E_q[log q - β log p̃] with β rising to 1 (their equation 20), from several first weights, of which
the one with the least loss is kept: a loss that has come to rest near another mode looks no worse
to a gradient. The figure is KL(q || p) on a grid, with the normaliser of p by quadrature; U2 to U4
have the wall of ``energies``. "mass" is what q has inside of the grid.
"""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from common import begun, facts, parser_of, save_picture, table, write_result
from torch import Tensor

from baselines import IAF, MAF, PlanarFlow, RealNVP
from baselines.harness.data.energies import Energy, energy, grid, grid_kl
from cflows import FFJORD, FixedGrid, Flow, Lagged, Normal, fit
from cflows.objectives.base import AnyBatch
from cflows.objectives.kl import ReverseKL

ENERGIES = ("u1", "u2", "u3", "u4")
BOX = ((-8.0, 8.0), (-8.0, 8.0))
SHOWN = ((-4.0, 4.0), (-4.0, 4.0))


@dataclass(frozen=True)
class Family:
    """A column of the picture, and how it trains, from so many first weights."""

    label: str
    build: Callable[[Normal], Flow]
    steps: int
    learning_rate: float
    starts: int = 1


def ffjord(base: Normal) -> Flow:
    """One block, on a grid whose error is held."""
    solvers = {
        "training_solver": Lagged("rk4", 1e-2),
        "evaluation_solver": FixedGrid("dopri5", 16),
    }
    return FFJORD(2, hidden=(64, 64), base=base, **solvers)


FAMILIES: Mapping[str, Family] = {
    "planar-2": Family("planar, K = 2", lambda b: PlanarFlow(2, layers=2, base=b), 1500, 2e-2, 2),
    "planar-8": Family("planar, K = 8", lambda b: PlanarFlow(2, layers=8, base=b), 1500, 2e-2),
    "planar-32": Family("planar, K = 32", lambda b: PlanarFlow(2, layers=32, base=b), 1500, 1e-2),
    "maf": Family("MAF", lambda b: MAF(2, hidden=(64, 64), base=b), 1000, 5e-3),
    "iaf": Family("IAF", lambda b: IAF(2, hidden=(64, 64), base=b), 1000, 5e-3),
    "realnvp": Family("RealNVP", lambda b: RealNVP(2, hidden=(64, 64), base=b), 1000, 5e-3),
    "ffjord": Family("FFJORD", ffjord, 300, 1e-2),
}


class Annealed(ReverseKL):
    """Reverse KL against p̃^β, β rising linearly from a hundredth to 1 over so many steps."""

    def __init__(self, target: Energy, *, samples: int, steps: int) -> None:
        super().__init__(lambda x: self.beta * target.log_density(x), samples=samples)
        self.over, self.taken = steps, 0

    @property
    def beta(self) -> float:
        """Of the next step."""
        return min(1.0, 0.01 + self.taken / self.over)

    def forward(self, flow: Flow, batch: AnyBatch = (None, None)) -> Tensor:
        """The loss at β."""
        loss = super().forward(flow, batch)
        self.taken += 1
        return loss


@dataclass
class Outcome:
    """What a flow came to on the grid; the density is that of the grid that is drawn."""

    kl: float
    mass: float
    seconds: float  # of training, all starts together
    density: Tensor


def run(family: Family, target: Energy, options: Namespace) -> Outcome:
    """Train from each start; score and draw the one of the least loss."""
    steps = max(1, round(family.steps * options.scale))
    before, trained = time.perf_counter(), []
    for start in range(family.starts):
        seed = options.seed * 1000 + start
        torch.manual_seed(seed)
        flow = family.build(Normal(2, learnable=True))
        objective = Annealed(target, samples=options.samples, steps=max(1, steps // 2))
        settings = {"steps": steps, "learning_rate": family.learning_rate, "seed": seed}
        fit(flow, None, objective=objective, progress=False, **settings)
        with torch.no_grad():
            torch.manual_seed(0)
            loss = float(ReverseKL(target.log_density, samples=20_000)(flow))
        trained.append((loss, flow))
    seconds = time.perf_counter() - before
    flow = min(trained, key=lambda pair: pair[0])[1]
    score = grid_kl(flow.log_prob, target, box=BOX, cells=options.cells)
    return Outcome(score.kl, score.mass, seconds, density(flow.log_prob))


@torch.no_grad()
def density(log_prob: Callable[[Tensor], Tensor], cells: int = 160) -> Tensor:
    """A density on the square that is drawn, (cells, cells), the second coordinate first."""
    points = grid(SHOWN, cells - 1)[0].float().transpose(0, 1)
    return torch.stack([log_prob(row) for row in points]).exp()


def draw(outcomes: Mapping[str, Mapping[str, Outcome]], families: list[str]) -> None:
    """The picture of the paper: a row for each energy, the true density first."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.5 * (1 + len(families)), 1.6 * len(outcomes)), layout="constrained")
    first = next(iter(outcomes))
    panels = figure.subplots(len(outcomes), 1 + len(families), squeeze=False)
    for line, (name, results) in zip(panels, outcomes.items(), strict=True):
        target = density(energy(name).log_prob)
        shown = [("true density", target, "")]
        for key in families:
            shown.append((FAMILIES[key].label, results[key].density, f"KL {results[key].kl:.3f}"))
        # One scale a row, so that a colour is a density.
        style = {"vmin": 0, "vmax": target.max().item(), "cmap": "magma", "origin": "lower"}
        for axes, (title, values, note) in zip(line, shown, strict=True):
            axes.imshow(values.numpy(), extent=SHOWN[0] + SHOWN[1], **style)
            axes.set_xticks([])
            axes.set_yticks([])
            axes.text(0.04, 0.05, note, transform=axes.transAxes, color="white", fontsize=8)
            if name == first:
                axes.set_title(title, fontsize=9)
        line[0].set_ylabel(name.upper(), rotation=0, labelpad=12, va="center", fontsize=9)
    save_picture("reverse_kl", figure)


def report(outcomes: Mapping[str, Mapping[str, Outcome]], options: Namespace) -> str:
    """The table of the energies that are done."""
    rows = []
    for key in options.families:
        mine = [results[key] for results in outcomes.values()]
        least, seconds = min(result.mass for result in mine), sum(result.seconds for result in mine)
        divergences = [f"{result.kl:.4f}" for result in mine]
        rows.append([FAMILIES[key].label, *divergences, f"{least:.4f}", f"{seconds:.0f} s"])
    header = ["flow", *(f"KL to {name.upper()}" for name in outcomes), "least mass", "training"]
    return (
        f"KL(q || p) in nats on {options.cells}² cells; {options.scale:g} of each family's steps\n"
        f"\n{table(header, rows)}\n{facts()}"
    )


def main() -> None:
    """Run every energy and family; write the table and the picture where asked."""
    parser = parser_of(__doc__)
    add = parser.add_argument
    add("--energies", nargs="+", default=list(ENERGIES), choices=ENERGIES)
    add("--families", nargs="+", default=list(FAMILIES), choices=list(FAMILIES))
    add("--samples", type=int, default=512, help="draws a step")
    add("--scale", type=float, default=1.0, help="of every family's steps")
    add("--cells", type=int, default=400, help="of the grid, in each direction")
    add("--seed", type=int, default=0)
    add("--write", action="store_true", help="write results/reverse_kl.md and .png")
    options = begun(parser)
    outcomes: dict[str, dict[str, Outcome]] = {}
    for name in options.energies:
        outcomes[name] = {}
        for key in options.families:
            outcome = outcomes[name][key] = run(FAMILIES[key], energy(name), options)
            figures = f"KL {outcome.kl:.4f}, mass {outcome.mass:.4f}, {outcome.seconds:.0f} s"
            print(f"{name} {key}: {figures}", flush=True)
        text = report(outcomes, options)
        if options.write:  # after each energy, so that a run that is cut short leaves its rows
            write_result("reverse_kl", text)
            draw(outcomes, options.families)
    print(text)


if __name__ == "__main__":
    main()
