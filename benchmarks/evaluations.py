"""What fewer evaluations cost: gaps of grids and of fitted schemes, on rows that tuning never saw.

    python benchmarks/evaluations.py --data power --seconds 180 --write evaluations_power
    python benchmarks/evaluations.py --data bsds300 --seconds 180 --write evaluations_bsds300

The harness's ``ffjord-matching`` is trained behind ``gaussianise`` for the seconds, on one thread.
``tune_solver`` fits its schemes to validation rows. Gaps are log p less that of dopri5 on 32 steps,
in nats, over test rows: mean, root mean square and the 99 % quantile of their size; of samples,
told log p less that at the sample. "End" is the root mean square error of the samples, in standard
deviations of the data.
"""

from __future__ import annotations

import itertools
import warnings
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import torch
from common import begun, parser_of, report
from data import rows_of
from torch import Tensor

from baselines.models.builtin import MODELS
from cflows import (
    Adaptive,
    FixedGrid,
    Flow,
    ODEBijector,
    behind,
    fit,
    gaussianise,
    load,
    tune_solver,
)
from cflows.continuous.solvers import Solver
from cflows.continuous.tableaus import TABLEAUS
from cflows.continuous.tuning import METHODS

FINE = FixedGrid("dopri5", 32)
EVALUATIONS = (4, 6, 8, 12, 16, 18, 24, 36, 48, 96)


def trained(name: str, options: Namespace) -> tuple[Flow, Tensor, Tensor]:
    """The flow, validation and test rows; a flow that is in the folder of flows is read from it."""
    train, validation, test = rows_of(name, options.seed)
    few_test = test[:: -(-len(test) // options.rows)]
    kept = options.flows and Path(options.flows) / f"{name}-{options.seed}-{options.seconds:g}.flow"
    if kept and kept.exists():
        return load(kept), validation, few_test
    rows = torch.from_numpy(train).float()
    torch.manual_seed(options.seed)
    model = MODELS["ffjord-matching"]
    flow = behind(model.core(rows.shape[1], 1), gaussianise(rows, validation))
    few = validation[:: -(-len(validation) // 1000)]
    settings = {"warmup": 200, "patience": None, "progress": False, "seed": options.seed}
    fit(flow, rows, few, objective=model.objective, seconds=options.seconds, **settings)
    if kept:
        kept.parent.mkdir(parents=True, exist_ok=True)
        flow.save(kept)
    return flow, validation, few_test


def solvers(flow: Flow, validation: Tensor) -> Iterator[tuple[int, str, Solver]]:
    """What is compared, by evaluations; those of an adaptive solve are counted, 0 here."""
    for method, tolerance in itertools.product(("bosh3", "dopri5", "dopri8"), (1e-2, 1e-3, 1e-4)):
        yield 0, f"adaptive {method} {tolerance:g}", Adaptive(method, tolerance, tolerance)
    for evaluations in EVALUATIONS:
        for method in METHODS:
            steps, rest = divmod(evaluations, len(TABLEAUS[method].c))
            if steps and not rest:
                yield evaluations, f"{method} × {steps}", FixedGrid(method, steps)
        if evaluations <= 20:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                tuning = tune_solver(flow, validation, evaluations=evaluations)
            yield evaluations, "tuned", tuning.solver


@torch.no_grad()
def lines(options: Namespace) -> Iterator[tuple[object, ...]]:
    """A line for each solver."""
    flow, validation, test = trained(options.data, options)
    draws = flow.base.sample((len(test),))
    with flow.using(solver=FINE):
        truth, ends = flow.log_prob(test), flow.bijector(draws)
    spread = ends.std(0)
    blocks = [part for part in flow.modules() if isinstance(part, ODEBijector)]
    for evaluations, name, solver in solvers(flow, validation):
        with flow.using(solver=solver):
            gap = flow.log_prob(test) - truth
            counted = sum(part.stats.nfe for part in blocks)
            x, log_det = flow.bijector.forward_and_log_det(draws)
        with flow.using(solver=FINE):
            told = flow.base.log_prob(draws) - log_det - flow.log_prob(x)
        end = ((x - ends) / spread).square().mean().sqrt()
        yield evaluations or counted, name, *_of(gap), *_of(told), f"{end:.2g}"


def _of(gap: Tensor) -> tuple[str, str, str]:
    sizes = gap.mean(), gap.square().mean().sqrt(), gap.abs().quantile(0.99)
    return tuple(f"{float(size):.2g}" for size in sizes)  # type: ignore[return-value]


def main() -> None:
    """Train, tune, compare; print and write the table."""
    parser = parser_of(__doc__)
    add = parser.add_argument
    add("--data", default="power", choices=["power", "gas_30k", "bsds300"])
    add("--seconds", type=float, default=180.0, help="of training")
    add("--seed", type=int, default=0)
    add("--rows", type=int, default=2000, help="of the test rows, and samples")
    add("--flows", help="folder of trained flows, read where they are there and else written")
    add("--write", help="name of the file in results/")
    options = begun(parser)
    header = ["evaluations", "solver"]
    header += [
        f"{what} {size}" for what in ("density", "sample") for size in ("mean", "rms", "99 %")
    ]
    told = {key: value for key, value in vars(options).items() if key not in ("write", "flows")}
    settings = ", ".join(f"{key} {value}" for key, value in told.items())
    report(options.write, [*header, "end"], lines(options), [settings, ""])


if __name__ == "__main__":
    main()
