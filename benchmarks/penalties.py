"""What kinetic and Jacobian penalties buy: evaluations of the adaptive solve, against likelihood.

    python benchmarks/penalties.py --data pinwheel power --weight 0.01 --seeds 0 1 2

The same field, batches and learning rate with and without ∫‖f‖² dt and ∫‖∂f/∂x‖_F² dt in the loss.
Evaluations are those of log p with dopri5 at 1e-5 and the exact trace, on validation rows.
"""

from __future__ import annotations

import itertools
import time
from argparse import Namespace
from collections.abc import Iterator

import torch
from common import begun, parser_of, report, update
from data import task

from cflows import FFJORD, Adaptive, ForwardKL, Lagged

SETTINGS = {
    # hidden, end time, batch, steps, learning rate
    "pinwheel": ((64, 64), 0.5, 512, 2000, 1e-2),
    "power": ((80, 80), 1.0, 1000, 1500, 1e-2),
}


def measure(name: str, weight: float, seed: int, scale: float) -> tuple[int, float, float]:
    """Train once: evaluations of a density, validation log-likelihood in nats, seconds."""
    hidden, end_time, batch, steps, rate = SETTINGS[name]
    torch.manual_seed(seed)
    batches, validation = task(name, batch=batch, validation_rows=2000, seed=seed)
    penalties = ("kinetic", "frobenius")
    flow = FFJORD(
        validation.shape[1],
        hidden=hidden,
        end_time=end_time,
        divergence="exact",
        training_solver=Lagged("rk4", 1e-2),
        evaluation_solver=Adaptive("dopri5", rtol=1e-5, atol=1e-5),
        penalties=penalties,
    ).train()
    objective = ForwardKL(dict.fromkeys(penalties, weight) if weight else None)
    count = max(1, round(steps * scale))
    optimizer = torch.optim.Adam(flow.parameters(), rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, count)
    start = time.perf_counter()
    for x in itertools.islice(batches, count):
        update(flow, optimizer, lambda x=x: objective(flow, (x, None)))
        schedule.step()
    seconds = time.perf_counter() - start
    flow.eval()
    before = flow.evaluations
    with torch.no_grad():
        score = float(flow.log_prob(validation.float()).mean())
    return flow.evaluations - before, score, seconds


def pairs(options: Namespace) -> Iterator[tuple[object, ...]]:
    """Rows of the table: two trainings that differ in the penalty alone."""
    for name, seed in itertools.product(options.data, options.seeds):
        nfe, score, seconds = measure(name, 0.0, seed, options.scale)
        less, smooth, longer = measure(name, options.weight, seed, options.scale)
        scores = (f"{score:.4f}", f"{smooth:.4f}", f"{score - smooth:+.4f}")
        saved = f"{1 - less / nfe:.0%}"
        yield name, seed, nfe, less, saved, *scores, f"{seconds:.0f} / {longer:.0f}"


def main() -> None:
    """Train, print and write the table."""
    parser = parser_of(__doc__)
    add = parser.add_argument
    add("--data", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    add("--weight", type=float, default=0.01)
    add("--seeds", nargs="+", type=int, default=[0, 1, 2])
    add("--scale", type=float, default=1.0, help="of the number of steps")
    options = begun(parser)
    scores = ("log p", "log p with penalties", "nats lost", "training s")
    header = ("data", "seed", "NFE", "NFE with penalties", "saved", *scores)
    name = "_".join(["penalties", *options.data])
    report(name, header, pairs(options), [f"weight {options.weight} each"])


if __name__ == "__main__":
    main()
