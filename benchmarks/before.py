"""This checkout beside an earlier one, in one process and in turns: every family, old against new.

    git worktree add ../before COMMIT
    python benchmarks/before.py ../before iteration density sample --core 1

Both packages are imported, one after the other, under their own names; an arm keeps what it was
built from. The weights of both are the same.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import torch
from common import WORKS, Arm, alternate, begun, parser_of, ratio, report, spread, stir, work

from cflows import Flow

HERE = Path(__file__).resolve().parents[1]
PACKAGES = ("baselines", "cflows")
CASES = {"6x100": (6, 100), "43x512": (43, 512)}
FLOWS: dict[str, Callable[[ModuleType, ModuleType, int, int], Flow]] = {
    "MAF": lambda b, _, d, h: b.MAF(d, hidden=(h, h)),
    "MAF MoG": lambda b, _, d, h: b.MAF(d, hidden=(h, h), components=3),
    "IAF": lambda b, _, d, h: b.IAF(d, hidden=(h, h)),
    "RealNVP": lambda b, _, d, h: b.RealNVP(d, hidden=(h, h)),
    "NICE": lambda b, _, d, h: b.NICE(d, hidden=(h, h)),
    "spline": lambda b, _, d, h: b.NSF(d, hidden=(h, h)),
    "spline, affine tails": lambda b, _, d, h: b.NSF(
        d, layers=2, hidden=(h, h), passes="autoregressive", tails="affine"
    ),
    "planar": lambda b, _, d, h: b.PlanarFlow(d),
    "radial": lambda b, _, d, h: b.RadialFlow(d),
    "Sylvester": lambda b, _, d, h: b.SylvesterFlow(d),
    "residual": lambda b, _, d, h: b.ResidualFlow(d, layers=4),
    "FFJORD": lambda _, c, d, h: c.FFJORD(d, hidden=(64, 64)),
}


def imported(root: Path) -> list[ModuleType]:
    """The packages of a checkout, whatever was imported before."""
    for name in [name for name in sys.modules if name.split(".")[0] in PACKAGES]:
        del sys.modules[name]
    sys.path.insert(0, str(root))
    try:
        return [importlib.import_module(name) for name in PACKAGES]
    finally:
        sys.path.remove(str(root))


def arm_of(what: str, flow: Flow, x: torch.Tensor) -> Callable[[], object]:
    """What is timed; random numbers are the same at each call and in both arms."""
    call = work(what, Arm(flow.train(what == "iteration"), flow.log_prob, flow.sample), x)
    return lambda: (torch.manual_seed(0), call())


def measured(options: argparse.Namespace) -> Iterator[tuple[object, ...]]:
    """The rows of the table."""
    sides = {"before": imported(options.before), "now": imported(HERE)}
    for case in options.cases:
        features, width = CASES[case]
        x = torch.randn(options.rows, features, generator=torch.Generator().manual_seed(1))
        for name in options.flows:
            for what in options.what:
                arms = {}
                for side, packages in sides.items():
                    torch.manual_seed(0)
                    flow = FLOWS[name](*packages, features, width)
                    stir(flow)
                    arms[side] = arm_of(what, flow, x)
                times = alternate(arms, runs=options.runs, warmup=3)
                quotient = ratio(times, "now", "before")
                yield f"{name}, D={features}", what, spread(times["now"]), quotient


def main() -> None:
    """Time both arms; print and write the table."""
    parser = parser_of(__doc__)
    add = parser.add_argument
    add("before", type=Path, metavar="CHECKOUT")
    add("what", nargs="+", choices=WORKS)
    add("--flows", nargs="+", choices=list(FLOWS), default=list(FLOWS))
    add("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    add("--rows", type=int, default=1000)
    add("--runs", type=int, default=15)
    add("--write", action="store_true", help="results/before.md")
    options = begun(parser)
    report(
        "before" if options.write else None,
        ("flow", "what", "now", "now / before"),
        measured(options),
        [f"{options.rows} rows"],
    )


if __name__ == "__main__":
    main()
