"""Our MAF beside zuko's: test likelihood after the same training, paired by test row.

    python benchmarks/maf_likelihood.py --data power bsds300 --seeds 0 1 2
    python benchmarks/maf_likelihood.py --data bsds300 --standardise

Five layers, two hidden layers of 100 units (POWER) and 256 (BSDS300), Adam, the same batches in
the same order. Both arms see the same rows, as the files are or, with ``--standardise``, at unit
spread, of which their likelihoods are then. Each arm stops when its validation likelihood has not
risen for ``--patience`` checks, or after ``--steps``, and is scored in its best state. "ours -
zuko" is the mean difference over test rows with twice its standard error; the last lines give both
arms' spread over the seeds.
"""

from __future__ import annotations

import copy
import itertools
import math
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence

import torch
from common import Arm, begun, parser_of, report
from data import batches, real, standardised
from discrete import our_arm, zuko_arm
from torch import Tensor, nn

WIDTHS = {"power": 100, "bsds300": 256}
LAYERS = 5


def train(
    build: Callable[..., Arm], name: str, seed: int, options: Namespace
) -> tuple[Tensor, int, float]:
    """Log-likelihood of each test row at the best state, steps made, seconds."""
    parts = standardised(real(name)) if options.standardise else real(name)
    validation, test = (torch.from_numpy(part).float() for part in parts[1:])
    torch.manual_seed(seed)
    arm = build("maf", test.shape[1], WIDTHS[name], LAYERS)
    flow = arm.model
    optimizer = torch.optim.Adam(flow.parameters(), options.lr)
    best, best_state, since = -math.inf, copy.deepcopy(flow.state_dict()), 0
    start, done = time.perf_counter(), 0
    endless = batches(parts[0], options.batch, seed)
    for done, x in enumerate(itertools.islice(endless, options.steps), 1):
        optimizer.zero_grad()
        (-arm.log_prob(x).mean()).backward()
        nn.utils.clip_grad_norm_(flow.parameters(), 5.0)
        optimizer.step()
        if done % options.check == 0:
            score = scores(arm, validation).mean().item()
            since = 0 if score > best else since + 1
            if score > best:
                best, best_state = score, copy.deepcopy(flow.state_dict())
            if since >= options.patience:
                break
    flow.load_state_dict(best_state)
    return scores(arm, test), done, time.perf_counter() - start


@torch.no_grad()
def scores(arm: Arm, x: Tensor) -> Tensor:
    """Log-density of every row, float64."""
    arm.model.eval()
    values = torch.cat([arm.log_prob(part) for part in x.split(2000)]).double()
    arm.model.train()
    return values


def compared(options: Namespace, notes: list[str]) -> Iterator[tuple[object, ...]]:
    """The rows of the table; the spread over a data set's seeds goes to the notes."""
    for name in options.data:
        means: dict[str, list[float]] = {"ours": [], "zuko": []}
        for seed in options.seeds:
            mine, my_steps, my_seconds = train(our_arm, name, seed, options)
            theirs, their_steps, their_seconds = train(zuko_arm, name, seed, options)
            means["ours"].append(mine.mean().item())
            means["zuko"].append(theirs.mean().item())
            costs = (f"{my_steps} / {their_steps}", f"{my_seconds:.0f} / {their_seconds:.0f}")
            difference = _with_error(mine - theirs, "+.4f")
            yield name, seed, f"{mine.mean():.4f}", f"{theirs.mean():.4f}", difference, *costs
        for arm, values in means.items():
            both = _with_error(torch.tensor(values, dtype=torch.float64))
            notes.append(f"{name}, {arm}: {both} (mean over seeds, ± 2 s.e. over seeds)")


def _with_error(values: Tensor, style: str = ".4f") -> str:
    error = 2 * values.std() / math.sqrt(len(values))
    return f"{values.mean().item():{style}} ± {error:.4f}"


def main(argv: Sequence[str] | None = None) -> None:
    """Train both arms per data set and seed; print and write the table."""
    parser = parser_of(__doc__)
    add = parser.add_argument
    add("--data", nargs="+", choices=list(WIDTHS), default=list(WIDTHS))
    add("--seeds", nargs="+", type=int, default=[0, 1, 2])
    add("--steps", type=int, default=20_000)
    add("--batch", type=int, default=200)
    add("--lr", type=float, default=5e-4)
    add("--check", type=int, default=500, help="steps between validations")
    add("--patience", type=int, default=6, help="checks without a rise")
    add("--standardise", action="store_true", help="rows by the training rows' mean and spread")
    options = begun(parser, argv)
    header = ("data", "seed", "ours", "zuko", "ours - zuko ± 2 s.e.", "steps", "seconds")
    settings = f"batch {options.batch}, Adam {options.lr}, at most {options.steps} steps"
    notes = [settings + ", rows standardised" * options.standardise]
    end = ["standardised"] * options.standardise
    name = "_".join(["maf_likelihood", *options.data, *end])
    report(name, header, compared(options, notes), notes)


if __name__ == "__main__":
    main()
