"""Flow matching: exact test likelihood after so many seconds of training on one thread.

    python benchmarks/matching.py --data power gas_30k bsds300 --seconds 180 --seeds 0 1 2

The field has two hidden layers, gates 1 + linear and shifts linear in Fourier features of the time,
and ends in a fixed full-covariance whitening. Training counts the steps alone; after every
``--validate-seconds`` of it the exact likelihood of validation rows (closed-form trace, dopri5 on a
fixed grid) is taken off the clock, and the best state is the one that is scored. Likelihoods are
those of the rows before the whitening: power as the MAF archive prepares it, gas_30k dequantised by
.01 and standardised by its training rows (in the sensors' units 51.3 nats less), BSDS300 as its
file is. "gap" is the difference of log p between 16 and 48 steps over test rows.
"""

from __future__ import annotations

import argparse
import copy
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from common import machine, pin, table, write_result
from data import batches, power
from torch import Tensor

from cflows import FFJORD, Chain, FixedGrid, Flow, FlowMatching, log_likelihood, whiten

EVALUATION = FixedGrid("dopri5", 16)
REFINED = FixedGrid("dopri5", 48)
WIDTHS = {"power": 256, "gas_30k": 256, "bsds300": 512}
FREQUENCIES = 8


@dataclass
class Outcome:
    """What a run came to.

    Attributes:
        curve: seconds of training and the validation log-likelihood then.
        test: log-likelihoods of the test rows.
        gap: |log p on 16 steps - log p on 48| of some test rows.
        steps: of the optimiser.

    """

    curve: list[tuple[float, float]]
    test: Tensor
    gap: Tensor
    steps: int


def rows_of(name: str) -> tuple[npt.NDArray[Any], Tensor, Tensor]:
    """Training rows, validation and test rows (float32)."""
    root = os.environ.get("CFLOWS_DATA")
    if not root:
        raise SystemExit("set CFLOWS_DATA to the folder that holds power/, gas_30k/ and BSDS300/")
    folder = Path(root)
    if name == "power":
        train, validation, test = power(folder)
    elif name == "gas_30k":
        train, validation, test = gas(folder)
    else:
        import h5py

        with h5py.File(folder / "BSDS300" / "BSDS300.hdf5") as file:
            train, validation, test = (file[k][:] for k in ("train", "validation", "test"))
    return train, torch.from_numpy(validation).float(), torch.from_numpy(test).float()


def build(name: str, train: Tensor) -> Flow:
    """The field, and the whitening fitted to the training rows."""
    width = WIDTHS[name]
    inner = FFJORD(
        train.shape[1], hidden=(width, width), layer="film", activation="silu",
        field={"time_frequencies": FREQUENCIES}, training_solver=EVALUATION,
        evaluation_solver=EVALUATION,
    )  # fmt: skip
    return Flow(Chain(inner.bijector, whiten(train)))


def run(name: str, seed: int, options: argparse.Namespace) -> Outcome:
    """Train for the seconds and score the best state."""
    torch.manual_seed(seed)
    train, validation, test = rows_of(name)
    flow = build(name, torch.from_numpy(train).float())
    validation = validation[: options.validation_rows]
    objective, stream = FlowMatching(options.coupling), batches(train, options.batch, seed)
    optimiser = torch.optim.Adam(flow.parameters(), lr=options.lr)
    spent, steps, due = 0.0, 0, options.validate_seconds
    curve, best, state = [], -math.inf, copy.deepcopy(flow.state_dict())
    flow.train()
    while spent < options.seconds:
        x = next(stream)
        start = time.perf_counter()
        for group in optimiser.param_groups:
            group["lr"] = options.lr * (1 - spent / options.seconds)
        optimiser.zero_grad()
        objective(flow, (x, None)).backward()
        optimiser.step()
        spent += time.perf_counter() - start
        steps += 1
        if spent >= min(due, options.seconds):
            due += options.validate_seconds
            score = float(log_likelihood(flow, validation).mean())
            curve.append((spent, score))
            print(f"{name} seed {seed}: {spent:7.1f} s  validation {score:9.4f}", flush=True)
            if score > best:
                best, state = score, copy.deepcopy(flow.state_dict())
    flow.load_state_dict(state)
    found = log_likelihood(flow, test).double()
    probe = test[: options.gap_rows]
    with flow.using(solver=REFINED):
        gap = (log_likelihood(flow, probe).double() - found[: len(probe)]).abs()
    return Outcome(curve, found, gap, steps)


def gas(folder: Path) -> tuple[npt.NDArray[Any], ...]:
    """The rows shuffled, dequantised by their grid of .01, a tenth each held out, standardised."""
    rng = np.random.default_rng(0)
    data = np.load(folder / "gas_30k" / "gas_30k.npy").astype(np.float64)
    data = rng.permutation(data) + 0.01 * rng.random(data.shape)
    held = len(data) // 10
    train, validation, test = np.split(data, [len(data) - 2 * held, len(data) - held])
    mean, std = train.mean(0), train.std(0)
    return tuple((part - mean) / std for part in (train, validation, test))


def row(name: str, seed: int, outcome: Outcome, target: float | None) -> list[object]:
    """A line of the table."""
    twice = 2 * outcome.test.std() / math.sqrt(len(outcome.test))
    reached = next((s for s, v in outcome.curve if target is not None and v >= target), None)
    return [
        name, seed, outcome.steps, f"{outcome.test.mean():.3f} ± {twice:.3f}",
        f"{outcome.gap.mean():.1e}", f"{outcome.gap.max():.1e}",
        "" if target is None else "not reached" if reached is None else f"{reached:.1f} s",
    ]  # fmt: skip


def main() -> None:
    """Run every data set and seed; write the table where asked."""
    parser = argparse.ArgumentParser(
        description=str(__doc__).splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--data", nargs="+", default=["power"], choices=list(WIDTHS))
    add("--seeds", type=int, nargs="+", default=[0])
    add("--seconds", type=float, default=180.0, help="of training")
    add("--validate-seconds", type=float, default=10.0, help="of training between")
    add("--validation-rows", type=int, default=2000)
    add("--gap-rows", type=int, default=2000)
    add("--batch", type=int, default=1024)
    add("--lr", type=float, default=2e-3, help="Adam's, falling linearly to zero")
    add("--coupling", default="independent", choices=["independent", "optimal"])
    add("--target", type=float, help="a validation log-likelihood whose time to report")
    add("--core", type=int, default=0)
    add("--write", action="store_true", help="write results/matching.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    pin(options.core)
    lines = [
        row(name, seed, run(name, seed, options), options.target)
        for name in options.data
        for seed in options.seeds
    ]
    header = ["data", "seed", "steps", "test log p ± 2 SE", "gap mean", "gap max", "to target"]
    facts = ", ".join(f"{key} {value}" for key, value in machine().items())
    text = f"{options.seconds:g} s of training\n\n{table(header, lines)}\n{facts}"
    print(text)
    if options.write:
        write_result("matching", text)


if __name__ == "__main__":
    main()
