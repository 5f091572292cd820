"""What each part of flow matching is worth: all of them, and all but one.

    python benchmarks/ablation.py --data power --seeds 0 1 2 --write ablation_power
    python benchmarks/ablation.py --data bsds300 --seeds 0 1 2 --core 1 --write ablation_bsds300

``fit`` trains for the seconds on one thread, validations included; the map of the rows is fitted
before. Two layers are 256 wide; a residual field has two blocks of 128, and the linear part too,
the velocity that takes a standard normal to itself. It is the field of few columns: on bsds300
all of them are on two layers. Log-densities are exact, by dopri5 on 16 steps, in the units of
``benchmarks/data.py``; "less all" is the difference from the first row's on the same test rows.
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
from cflows.continuous.ffjord import FEW

GRID = FixedGrid("dopri5", 16)
MAPS = {"whiten": whiten, "gaussianise": gaussianise}


@dataclass(frozen=True)
class Way:
    """A way to train."""

    map: str = "gaussianise"
    residual: bool = True
    times: str = "likelihood"
    learning_rate: float = 5e-3
    ema: float = 0.999
    optimizer: str = "muon"
    linear: bool = True
    batch_size: int = 1024


def ways(residual: bool) -> dict[str, Way]:
    """All of them, all but one, and none."""
    every = Way(residual=residual)
    whitened: dict[str, object] = {"map": "whiten"}
    plain: dict[str, object] = {"learning_rate": 2e-3, "ema": 0.0}
    changes: dict[str, dict[str, object]] = {
        "gaussianise (whiten)": whitened,
        "rate 5e-3 and averaged weights (2e-3)": plain,
        "times by the likelihood (uniform)": {"times": "uniform"},
        "Muon (AdamW)": {"optimizer": "adamw"},
        "1024 rows a step (512)": {"batch_size": 512},
        **({"residual field (two layers)": {"residual": False}} if residual else {}),
    }
    if not residual:
        changes["linear part"] = {"linear": False}
    none = {key: value for change in changes.values() for key, value in change.items()}
    without = {f"without {name}": replace(every, **change) for name, change in changes.items()}
    return {"all": every, **without, "none": replace(every, **{**none, "linear": False})}


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
    """A line for each seed and way."""
    for seed in options.seeds:
        train, validation, test = rows_of(options.data, seed)
        kept = validation[:: math.ceil(len(validation) / options.validation_rows)]
        rows = test[:: math.ceil(len(test) / options.test_rows)]
        whole: Tensor | None = None
        for name, way in ways(train.shape[1] <= FEW).items():
            flow = trained(way, seed, torch.from_numpy(train).float(), kept, options.seconds)
            log_prob = log_likelihood(flow, rows)
            whole = log_prob if whole is None else whole
            told = _told(log_prob), _told(log_prob - whole)
            yield seed, name, *told, f"{log_prob.min():.1f}"


def _told(values: Tensor) -> str:
    return f"{values.mean():.3f} ± {2 * values.std() / math.sqrt(len(values)):.3f}"


def main() -> None:
    """Train each way with each seed; print and write the table."""
    parser = parser_of(__doc__)
    add = parser.add_argument
    add("--data", default="power", choices=["power", "gas_30k", "bsds300"])
    add("--seeds", type=int, nargs="+", default=[0])
    add("--seconds", type=float, default=60.0, help="of each training")
    add("--validation-rows", type=int, default=1000)
    add("--test-rows", type=int, default=5000)
    add("--write", help="name of the file in results/")
    options = begun(parser)
    settings = ", ".join(f"{key} {value}" for key, value in vars(options).items() if key != "write")
    header = ("seed", "way", "test log p ± 2 SE", "less all", "worst row")
    report(options.write, header, lines(options), [settings, ""])


if __name__ == "__main__":
    main()
