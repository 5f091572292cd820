"""What a continuous flow's densities and samples cost beside RealNVP's, at a stated gap.

    python benchmarks/price.py --data pinwheel patches4 power bsds300 --seconds 180 --write price

The harness's ``ffjord-matching`` is trained for the seconds behind ``gaussianise``, on one thread,
and tuned on validation rows (``tune_solver`` at .007, as cells are, unless told). RealNVP has the
harness's 8 layers behind the same map, as it starts, since what its weights are does not change its
price. 1000 rows, in alternating runs. The gap is told for test rows that tuning never saw, log p
less that of dopri5 on 32 steps: mean size and 99 % quantile; the end of samples is their root mean
square error in standard deviations. "Before" is the solver that the model was built with.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Iterator
from functools import partial

import torch
from common import Calls, alternate, begun, parser_of, ratio, report, spread
from data import rows_of
from evaluations import FINE, trained
from torch import Tensor

from baselines.models.builtin import MODELS
from cflows import Bespoke, Flow, behind, gaussianise, tune_solver

ROWS = 1000
LAYERS = 8


def arms_of(flow: Flow, x: Tensor) -> dict[str, Callable[[], object]]:
    """The densities of rows, and as many samples, without gradient."""
    return {
        "density": torch.no_grad()(partial(flow.log_prob, x)),
        "sample": torch.no_grad()(partial(flow.sample, len(x))),
    }


def lines(name: str, options: Namespace) -> Iterator[tuple[object, ...]]:
    """A line for densities and one for samples."""
    flow, validation, test = trained(name, options)
    rows = torch.from_numpy(rows_of(name, options.seed)[0]).float()
    rival = behind(MODELS["realnvp"].core(rows.shape[1], LAYERS), gaussianise(rows, validation))
    x, draws = test[:ROWS], flow.base.sample((len(test),))
    before = {f"before {what}": call for what, call in arms_of(flow.eval(), x).items()}
    counts = evaluations(flow, before, "before ")
    arms: Calls = {f"rival {what}": call for what, call in arms_of(rival.eval(), x).items()}
    with torch.no_grad(), flow.using(solver=FINE):
        truth, ends = flow.log_prob(test), flow.bijector(draws)
    tuning_off = alternate(before | arms, runs=options.runs)
    tuning = tune_solver(flow, validation, tolerance=options.tolerance)
    arms |= arms_of(flow, x)
    now = evaluations(flow, arms)
    times = alternate(arms, runs=options.runs)
    with torch.no_grad():
        gap = (flow.log_prob(test) - truth).abs()
        end = ((flow.bijector(draws) - ends) / ends.std(0)).square().mean().sqrt()
    gaps = f"{gap.mean():.2g} / {gap.quantile(0.99):.2g}"
    for what, measured in (("density", gaps), ("sample", f"{end:.2g}")):
        rival, slow = f"rival {what}", f"before {what}"
        seconds = spread(times[rival]), spread(times[what]), spread(tuning_off[slow])
        over = ratio(times, what, rival), ratio(tuning_off, slow, rival)
        yield name, what, counts[what], now[what], measured, *map(str, seconds), *map(str, over)
    print(tuning)


def evaluations(flow: Flow, arms: Calls, way: str = "") -> dict[str, str]:
    """Of the field, by each arm, and of its trace where these are fewer."""
    counts: dict[str, str] = {}
    for what in ("density", "sample"):
        arms[way + what]()
        counts[what] = str(sum(getattr(part, "stats", Zero).nfe for part in flow.modules()))
        for part in flow.modules():
            solver = getattr(part, "solver", None)
            if what == "density" and isinstance(solver, Bespoke):
                counts[what] += f", {sum(map(bool, solver.density.w))} traces"
    return counts


class Zero:
    """A part that solves nothing."""

    nfe = 0


def main() -> None:
    """Train, tune, time; print and write the table."""
    parser = parser_of(__doc__)
    add = parser.add_argument
    data = ["pinwheel", "patches4", "power", "bsds300"]
    add("--data", nargs="+", default=data, choices=data)
    add("--seconds", type=float, default=180.0, help="of training")
    add("--seed", type=int, default=0)
    add("--rows", type=int, default=2000, help="test rows for the gap, and samples")
    add("--tolerance", type=float, default=0.007, help="nats, that tuning keeps")
    add("--runs", type=int, default=9)
    add("--flows", help="folder of trained flows, read where they are there and else written")
    add("--train-only", action="store_true", help="into that folder")
    add("--write", help="name of the file in results/")
    options = begun(parser)
    header = ["data", "what", "evaluations before", "now", "gap, mean / 99 %; end", "RealNVP"]
    header += ["FFJORD, matching", "before", "over RealNVP", "before"]
    if options.train_only:
        for name in options.data:
            trained(name, options)
        return
    told = {key: value for key, value in vars(options).items() if key not in ("write", "flows")}
    settings = ", ".join(f"{key} {value}" for key, value in told.items())
    table = (line for name in options.data for line in lines(name, options))
    report(options.write, header, table, [settings, ""])


if __name__ == "__main__":
    main()
