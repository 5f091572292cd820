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

import argparse
import copy
import itertools
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from common import machine, pin, table, write_result
from data import batches, real
from torch import Tensor, nn

from baselines import MAF

WIDTHS = {"power": (100, 100), "bsds300": (256, 256)}
LAYERS = 5


def rows_of(name: str, standardised: bool) -> tuple[Any, Tensor, Tensor]:
    """Training rows, validation and test rows (float32)."""
    train, validation, test = real(name)
    if standardised:
        mean, std = train.mean(0), train.std(0)
        train, validation, test = ((part - mean) / std for part in (train, validation, test))
    return train, torch.from_numpy(validation).float(), torch.from_numpy(test).float()


def ours(features: int, width: tuple[int, ...]) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    """Our MAF and its log-density."""
    flow = MAF(features, layers=LAYERS, hidden=width)
    return flow, flow.log_prob


def zukos(features: int, width: tuple[int, ...]) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    """zuko's MAF and its log-density."""
    import zuko

    flow = zuko.flows.MAF(features, transforms=LAYERS, hidden_features=width)
    return flow, lambda x: flow().log_prob(x)


def train(arm: Callable[..., Any], name: str, seed: int, options: argparse.Namespace) -> Any:
    """Log-likelihood of each test row at the best state, steps made, seconds."""
    rows, validation, test = rows_of(name, options.standardise)
    torch.manual_seed(seed)
    flow, log_prob = arm(validation.shape[1], WIDTHS[name])
    optimiser = torch.optim.Adam(flow.parameters(), options.lr)
    best, best_state, since = -float("inf"), copy.deepcopy(flow.state_dict()), 0
    start, done = time.perf_counter(), 0
    endless = batches(rows, options.batch, seed)
    for done, x in enumerate(itertools.islice(endless, options.steps), 1):
        optimiser.zero_grad()
        (-log_prob(x).mean()).backward()
        nn.utils.clip_grad_norm_(flow.parameters(), 5.0)
        optimiser.step()
        if done % options.check == 0:
            score = float(scores(flow, log_prob, validation).mean())
            since = 0 if score > best else since + 1
            if score > best:
                best, best_state = score, copy.deepcopy(flow.state_dict())
            if since >= options.patience:
                break
    flow.load_state_dict(best_state)
    return scores(flow, log_prob, test), done, time.perf_counter() - start


@torch.no_grad()
def scores(flow: nn.Module, log_prob: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Log-density of every row, float64."""
    flow.eval()
    found = torch.cat([log_prob(part) for part in x.split(2000)]).double()
    flow.train()
    return found


def main() -> None:
    """Train both arms per data set and seed; print and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", nargs="+", choices=list(WIDTHS), default=list(WIDTHS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--batch", type=int, default=200)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--check", type=int, default=500, help="steps between validations")
    parser.add_argument("--patience", type=int, default=6, help="checks without a rise")
    parser.add_argument(
        "--standardise", action="store_true", help="rows by the training rows' mean and spread"
    )
    parser.add_argument("--core", type=int, default=0)
    options = parser.parse_args()
    pin(options.core)
    torch.set_num_threads(1)
    rows, tail = [], []
    for name in options.data:
        means: dict[str, list[float]] = {"ours": [], "zuko": []}
        for seed in options.seeds:
            mine, my_steps, my_seconds = train(ours, name, seed, options)
            theirs, their_steps, their_seconds = train(zukos, name, seed, options)
            difference = (mine - theirs).numpy()
            error = 2 * difference.std(ddof=1) / np.sqrt(len(difference))
            means["ours"].append(float(mine.mean()))
            means["zuko"].append(float(theirs.mean()))
            rows.append(
                (
                    name,
                    seed,
                    f"{mine.mean():.4f}",
                    f"{theirs.mean():.4f}",
                    f"{difference.mean():+.4f} ± {error:.4f}",
                    f"{my_steps} / {their_steps}",
                    f"{my_seconds:.0f} / {their_seconds:.0f}",
                )
            )
            print(*rows[-1], sep=" | ", flush=True)
        for arm, values in means.items():
            spread = (
                f"{np.mean(values):.4f} ± {2 * np.std(values, ddof=1) / len(values) ** 0.5:.4f}"
            )
            tail.append(f"{name}, {arm}: {spread} (mean over seeds, ± 2 s.e. over seeds)")
    header = ("data", "seed", "ours", "zuko", "ours - zuko ± 2 s.e.", "steps", "seconds")
    facts = ", ".join(f"{key} {value}" for key, value in machine().items())
    settings = f"batch {options.batch}, Adam {options.lr}, at most {options.steps} steps"
    settings += ", rows standardised" if options.standardise else ""
    text = table(header, rows) + "\n" + "\n".join([*tail, settings, facts])
    print("\n" + text)
    end = "_standardised" if options.standardise else ""
    write_result("maf_likelihood_" + "_".join(options.data) + end, text)


if __name__ == "__main__":
    main()
