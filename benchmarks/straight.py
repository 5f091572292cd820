"""Whether straighter paths pay: independent and optimal couplings, and a round of reflow.

    python benchmarks/straight.py --data power --seconds 180 --write straight_power

The harness's ``ffjord-matching`` behind ``gaussianise``, on one thread. ``"optimal"`` pairs draws
and rows 256 at a time. Reflow (Liu et al. 2023, "Flow Straight and Fast") pairs each row with the
noise that a trained flow takes it to, and goes on from that flow; what counts as equal is the time
in all, so the first flow goes on for as long, too. The last state is taken, not that of the best
validation, which would be the one that reflow begins with. Each flow is then tuned to .007 nats on
validation rows. Likelihoods are of test rows, by the fine grid, with two standard errors.
"""

from __future__ import annotations

import copy
from argparse import Namespace
from collections.abc import Iterator

import torch
from common import begun, parser_of, report
from data import rows_of
from evaluations import FINE, trained

from baselines.models.builtin import MODELS
from cflows import Flow, FlowMatching, behind, fit, gaussianise, tune_solver


def lines(options: Namespace) -> Iterator[tuple[object, ...]]:
    """A line for each way."""
    first, validation, test = trained(options.data, options)
    rows = torch.from_numpy(rows_of(options.data, options.seed)[0]).float()

    def fitted(flow: Flow, objective: FlowMatching, seconds: float) -> Flow:
        settings = {"warmup": 200, "patience": None, "progress": False, "seed": options.seed}
        fit(flow, rows, objective=objective, seconds=seconds, **settings)
        return flow.eval()

    def fresh() -> Flow:
        torch.manual_seed(options.seed)
        core = MODELS["ffjord-matching"].core(rows.shape[1], 1)
        return behind(core, gaussianise(rows, validation))

    once, twice = copy.deepcopy(first), copy.deepcopy(first)
    yield judged("independent", first, validation, test)
    optimal = fitted(fresh(), FlowMatching("optimal"), options.seconds)
    yield judged("optimal", optimal, validation, test)
    again = fitted(once, FlowMatching(), options.seconds)
    yield judged("independent, once more", again, validation, test)
    straight = fitted(twice, FlowMatching(first), options.seconds)
    yield judged("reflow", straight, validation, test)


def judged(name: str, flow: Flow, validation: torch.Tensor, test: torch.Tensor) -> tuple:
    """Likelihood and evaluations."""
    tuning = tune_solver(flow, validation, tolerance=0.007)
    with torch.no_grad(), flow.using(solver=FINE):
        told = flow.log_prob(test)
    drawn = tuning.drawing or tuning.sampling
    error = 2 * float(told.std()) / len(told) ** 0.5
    counts = tuning.density.evaluations, tuning.density.traces, drawn.evaluations
    return name, f"{told.mean():.3f} ± {error:.3f}", *counts


def main() -> None:
    """Train, tune; print and write the table."""
    parser = parser_of(__doc__)
    add = parser.add_argument
    add("--data", default="power", choices=["pinwheel", "patches4", "power", "bsds300"])
    add("--seconds", type=float, default=180.0, help="of each training")
    add("--seed", type=int, default=0)
    add("--rows", type=int, default=2000, help="test rows")
    add("--flows", help="folder of trained flows, read where they are there and else written")
    add("--write", help="name of the file in results/")
    options = begun(parser)
    header = ["coupling", "log-likelihood", "evaluations", "traces", "evaluations of a sample"]
    told = {key: value for key, value in vars(options).items() if key not in ("write", "flows")}
    settings = ", ".join(f"{key} {value}" for key, value in told.items())
    report(options.write, header, lines(options), [settings, ""])


if __name__ == "__main__":
    main()
