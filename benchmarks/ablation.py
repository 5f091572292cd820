"""What each part of flow matching is worth: one change a row, each on top of those before.

    python benchmarks/ablation.py --data power --seconds 60 --seeds 0 1 2 --write ablation_power
    python benchmarks/ablation.py --data bsds300 --seconds 60 --seeds 0 1 2 --write ablation_bsds300

``fit`` trains for the seconds on one thread, validations included; the map of the rows is fitted
before. Two layers are 256 wide; a residual field has two blocks of 128 and the linear part too, the
velocity that takes a standard normal to itself.
Log-densities are exact, by dopri5 on 16 steps, in the units of ``benchmarks/data.py``.
"""

from __future__ import annotations

import math
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from common import begun, parser_of, report
from data import rows_of
from torch import Tensor

from cflows import (
    MLP,
    FixedGrid,
    Flow,
    FlowMatching,
    ODEBijector,
    ResidualField,
    behind,
    fit,
    gaussianise,
    log_likelihood,
    whiten,
)

GRID = FixedGrid("dopri5", 16)
MAPS = {"whiten": whiten, "gaussianise": gaussianise}


@dataclass(frozen=True)
class Way:
    """A way to train."""

    map: str = "whiten"
    residual: bool = False
    times: str = "uniform"
    learning_rate: float = 2e-3
    ema: float = 0.0
    optimizer: str = "adamw"
    linear: bool = False
    batch_size: int = 512


def ways() -> dict[str, Way]:
    """The first one, and what each change makes of it."""
    changes: dict[str, dict[str, object]] = {
        "two layers behind a whitening, AdamW": {},
        "+ gaussianise": {"map": "gaussianise"},
        "+ rate 5e-3, averaged weights": {"learning_rate": 5e-3, "ema": 0.999},
        "+ times by the likelihood": {"times": "likelihood"},
        "+ Muon": {"optimizer": "muon"},
        "+ linear part": {"linear": True},
        "+ 1024 rows a step": {"batch_size": 1024},
        "+ residual field": {"residual": True},
    }
    way, found = Way(), {}
    for name, change in changes.items():
        way = replace(way, **change)
        found[name] = way
    return found


def trained(way: Way, seed: int, train: Tensor, held_out: Tensor, seconds: float) -> Flow:
    """Fit the map, build the field behind it, and match for the seconds."""
    features = train.shape[1]
    torch.manual_seed(seed)
    settings = {"layer": "film", "activation": "silu", "time_frequencies": 8}
    linear = "normal" if way.linear else False
    perceptron = MLP(features, hidden=(256, 256), residual=linear, **settings)
    field = ResidualField(features) if way.residual else perceptron
    block = ODEBijector(field, training_solver=GRID, evaluation_solver=GRID)
    flow = behind(Flow(block), MAPS[way.map](train))
    fit(
        flow,
        train,
        held_out,
        objective=FlowMatching(times=way.times),
        learning_rate=way.learning_rate,
        ema=way.ema,
        optimizer=way.optimizer,
        batch_size=way.batch_size,
        warmup=200,
        seconds=seconds,
        seed=seed,
        patience=None,
        progress=False,
    )
    return flow


def lines(options: Namespace) -> Iterator[tuple[object, ...]]:
    """A line for each way and seed."""
    for name, way in ways().items():
        if way.residual and options.leave_residual:
            continue
        for seed in options.seeds:
            train, validation, test = rows_of(options.data, seed)
            kept = validation[:: math.ceil(len(validation) / options.validation_rows)]
            flow = trained(way, seed, torch.from_numpy(train).float(), kept, options.seconds)
            log_prob = log_likelihood(flow, test[:: math.ceil(len(test) / options.test_rows)])
            error = 2 * log_prob.std() / math.sqrt(len(log_prob))
            yield name, seed, f"{log_prob.mean():.3f} ± {error:.3f}", f"{log_prob.min():.1f}"


def main() -> None:
    """Train each way with each seed; print and write the table."""
    parser = parser_of(__doc__)
    add = parser.add_argument
    add("--data", default="power", choices=["power", "gas_30k", "bsds300"])
    add("--seeds", type=int, nargs="+", default=[0])
    add("--seconds", type=float, default=60.0, help="of each training")
    add("--validation-rows", type=int, default=1000)
    add("--test-rows", type=int, default=5000)
    add("--leave-residual", action="store_true", help="whose trace is dear in many columns")
    add("--write", help="name of the file in results/")
    options = begun(parser)
    settings = ", ".join(f"{key} {value}" for key, value in vars(options).items() if key != "write")
    header = ("way", "seed", "test log p ± 2 SE", "worst row")
    report(options.write, header, lines(options), [settings, ""])


if __name__ == "__main__":
    main()
