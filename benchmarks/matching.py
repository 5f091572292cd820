"""Flow matching: exact test likelihood after so many seconds of training on one thread.

    python benchmarks/matching.py --data power gas_30k bsds300 --seconds 180 --seeds 0 1 2 --write
    python benchmarks/matching.py --data power --seconds 12 --target 0.5947 --write matching_power
    python benchmarks/matching.py --data pinwheel --seconds 10 --finish 60 --write matching_finish

The field has two hidden layers, gates 1 + linear and shifts linear in Fourier features of the time,
and ends in a fixed full-covariance whitening. Training counts all but the validation: after every
``--validate-seconds`` of it the exact likelihood of validation rows (closed-form trace, dopri5 on a
fixed grid) is taken off the clock, and the best state is the one that is scored. With ``--finish``
the best state of the matching is then trained by maximum likelihood: a fresh Adam whose small rate
rises over ``--finish-warmup`` steps, on steps that ``Lagged`` controls; a state is kept only where
validation prefers it to the matching's, and the gain is that of the test rows.

Likelihoods are those of the rows before the whitening: power as the MAF archive prepares it,
gas_30k dequantised by .01 and standardised by its training rows (in the sensors' units 51.3 nats
less), BSDS300 as its file is, pinwheel as FFJORD's code draws it. "gap" is the difference of log p
between 16 and 48 steps over test rows.
"""

from __future__ import annotations

import copy
import itertools
import math
import time
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from common import begun, parser_of, report, save_picture, update
from data import batches, rows_of
from torch import Tensor, nn

from cflows import (
    FFJORD,
    Chain,
    FixedGrid,
    Flow,
    FlowMatching,
    ForwardKL,
    Lagged,
    log_likelihood,
    whiten,
)

EVALUATION = FixedGrid("dopri5", 16)
REFINED = FixedGrid("dopri5", 48)
WIDTHS = {"power": 256, "gas_30k": 256, "bsds300": 512, "pinwheel": 128}
FREQUENCIES = 8


@dataclass
class Outcome:
    """What a run came to; log p is that of the test rows."""

    curve: list[tuple[float, float]]  # seconds of training, validation log-likelihood
    test: Tensor
    before: Tensor  # the finish; of the same state where there was none
    gap: Tensor  # |log p on 16 steps - log p on 48|, of some rows
    steps: int


@dataclass
class Training:
    """A flow in training: its clock, its curve and its best state."""

    name: str
    flow: Flow
    stream: Iterator[Tensor]
    validation: Tensor
    every: float  # seconds of training between two validations
    target: float | None  # a validation log-likelihood at which to stop
    spent: float = 0.0
    steps: int = 0
    best: float = -math.inf
    curve: list[tuple[float, float]] = field(default_factory=list)
    state: dict[str, Tensor] = field(default_factory=dict)

    def phase(self, objective: nn.Module, seconds: float, peak: float, warmup: int) -> None:
        """Train for so many seconds with a new Adam; leave the flow in its best state so far.

        The learning rate rises to its peak in so many steps, and falls linearly to zero.
        """
        optimizer = torch.optim.Adam(self.flow.parameters(), lr=peak, fused=True)
        start, due = self.spent, self.spent + self.every
        end = start + seconds
        self.flow.train()
        for step in itertools.count(1):
            since = time.perf_counter()
            batch = next(self.stream), None
            rate = peak * min(1, step / warmup) * (1 - (self.spent - start) / seconds)
            optimizer.param_groups[0]["lr"] = rate
            update(self.flow, optimizer, lambda batch=batch: objective(self.flow, batch))
            self.spent += time.perf_counter() - since
            self.steps += 1
            if self.spent >= min(due, end):
                due += self.every
                self._validate()
                if self.spent >= end or (self.target is not None and self.best >= self.target):
                    break
        self.flow.load_state_dict(self.state)

    def _validate(self) -> None:
        score = float(log_likelihood(self.flow, self.validation).mean())
        self.curve.append((self.spent, score))
        print(f"{self.name}: {self.spent:7.1f} s  validation {score:9.4f}", flush=True)
        if score > self.best:
            self.best, self.state = score, copy.deepcopy(self.flow.state_dict())


def build(name: str, train: Tensor, tolerance: float = 1e-3, width: int | None = None) -> Flow:
    """The field, and the whitening fitted to the training rows; the tolerance is the finish's."""
    inner = FFJORD(
        train.shape[1],
        hidden=(width or WIDTHS[name],) * 2,
        layer="film",
        activation="silu",
        field={"time_frequencies": FREQUENCIES},
        training_solver=Lagged("rk4", tolerance),
        evaluation_solver=EVALUATION,
    )
    return Flow(Chain(inner.bijector, whiten(train)))


def spaced(rows: Tensor, most: int) -> Tensor:
    """At most so many rows, evenly spaced: neighbours may come from one image or one hour."""
    return rows[:: max(1, math.ceil(len(rows) / most))]


def run(name: str, seed: int, options: Namespace) -> Outcome:
    """Train for the seconds, finish where asked, and score the best state."""
    torch.manual_seed(seed)
    train, validation, test = rows_of(name, seed)
    test = spaced(test, options.test_rows)
    flow = build(name, torch.from_numpy(train).float(), options.finish_tolerance, options.width)
    training = Training(
        f"{name} seed {seed}",
        flow,
        batches(train, options.batch, seed),
        validation[: options.validation_rows],  # those of the reference's curve
        options.validate_seconds,
        options.target,
    )
    matching = FlowMatching(options.coupling, "uniform")
    training.phase(matching, options.seconds, options.lr, options.warmup)
    before = after = log_likelihood(flow, test).double()
    if options.finish:
        training.stream = batches(train, options.finish_batch, seed + 1)
        training.phase(ForwardKL(), options.finish, options.finish_lr, options.finish_warmup)
        after = log_likelihood(flow, test).double()
    probe = test[: options.gap_rows]
    with flow.using(solver=REFINED):
        gap = (log_likelihood(flow, probe).double() - after[: len(probe)]).abs()
    return Outcome(training.curve, after, before, gap, training.steps)


def row(name: str, seed: int, outcome: Outcome, target: float | None) -> tuple[object, ...]:
    """A line of the table."""
    gained = outcome.test - outcome.before
    reached = ""
    if target is not None:
        times = (f"{seconds:.1f} s" for seconds, value in outcome.curve if value >= target)
        reached = next(times, "not reached")
    training = f"{outcome.curve[-1][0]:.1f} s"
    gaps = (f"{outcome.gap.mean():.1e}", f"{outcome.gap.max():.1e}")
    finish = _mean(gained) if gained.any() else ""
    return name, seed, outcome.steps, training, _mean(outcome.test), finish, *gaps, reached


def _mean(values: Tensor) -> str:
    return f"{values.mean():.3f} ± {2 * values.std() / math.sqrt(len(values)):.3f}"


def draw(outcomes: dict[tuple[str, int], Outcome], matched: float, name: str) -> None:
    """Picture of the curves, a panel for each data set; a line where the matching ends."""
    from matplotlib.figure import Figure

    data = list(dict.fromkeys(key for key, _ in outcomes))
    figure = Figure(figsize=(3.4 * len(data), 3.2), layout="constrained")
    for axes, key in zip(figure.subplots(1, len(data), squeeze=False)[0], data, strict=True):
        for (other, seed), outcome in outcomes.items():
            if other == key:
                axes.plot(*zip(*outcome.curve, strict=True), marker="o", ms=3, label=f"seed {seed}")
        if any(outcome.curve[-1][0] > 1.1 * matched for outcome in outcomes.values()):
            axes.axvline(matched, color="#222222", lw=0.8, ls=(0, (4, 3)))
        axes.set(title=key, xlabel="training seconds, one thread")
        axes.grid(color="#DDDDDD", lw=0.6)
        axes.legend(frameon=False)
    figure.axes[0].set_ylabel("validation log-likelihood (nats)")
    save_picture(name, figure)


def main() -> None:
    """Run every data set and seed; write the table and the picture where asked."""
    parser = parser_of(__doc__)
    add = parser.add_argument
    add("--data", nargs="+", default=["power"], choices=list(WIDTHS))
    add("--seeds", type=int, nargs="+", default=[0])
    add("--seconds", type=float, default=180.0, help="of training by matching")
    add("--finish", type=float, default=0.0, help="seconds of maximum likelihood after it")
    add("--validate-seconds", type=float, default=10.0, help="of training between")
    add("--validation-rows", type=int, default=2000)
    add("--test-rows", type=int, default=20_000, help="at most, evenly spaced")
    add("--gap-rows", type=int, default=2000)
    add("--width", type=int, help="of the hidden layers, in place of the data set's own")
    add("--batch", type=int, default=1024)
    add("--lr", type=float, default=2e-3, help="Adam's, falling linearly to zero")
    add("--warmup", type=int, default=1, help="steps over which it rises first")
    add("--finish-batch", type=int, default=1024)
    add("--finish-lr", type=float, default=3e-4, help="likewise, of the finish")
    add("--finish-warmup", type=int, default=50)
    add("--finish-tolerance", type=float, default=1e-3, help="of its solver")
    add("--coupling", default="independent", choices=["independent", "optimal"])
    add("--target", type=float, help="a validation log-likelihood to stop at and to time")
    add("--write", nargs="?", const="matching", help="name of the files in results/")
    options = begun(parser)
    outcomes: dict[tuple[str, int], Outcome] = {}

    def rows() -> Iterator[tuple[object, ...]]:
        for key in itertools.product(options.data, options.seeds):
            outcomes[key] = run(*key, options)
            yield row(*key, outcomes[key], options.target)

    training = ("data", "seed", "steps", "training", "test log p ± 2 SE", "of it the finish")
    settings = ", ".join(f"{key} {value}" for key, value in vars(options).items() if key != "write")
    header = (*training, "gap mean", "gap max", "to target")
    report(options.write, header, rows(), [settings, ""])
    if options.write:
        draw(outcomes, options.seconds, options.write)


if __name__ == "__main__":
    main()
