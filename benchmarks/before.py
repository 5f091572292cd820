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
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from common import alternate, machine, pin, ratio, spread, table, write_result
from torch import Tensor, nn

HERE = Path(__file__).resolve().parents[1]
PACKAGES = ("baselines", "cflows")
CASES = {"6x100": (6, 100), "43x512": (43, 512)}
FLOWS: dict[str, Callable[[dict[str, ModuleType], int, int], Any]] = {
    "MAF": lambda p, d, h: p["baselines"].MAF(d, hidden=(h, h)),
    "MAF MoG": lambda p, d, h: p["baselines"].MAF(d, hidden=(h, h), components=3),
    "IAF": lambda p, d, h: p["baselines"].IAF(d, hidden=(h, h)),
    "RealNVP": lambda p, d, h: p["baselines"].RealNVP(d, hidden=(h, h)),
    "NICE": lambda p, d, h: p["baselines"].NICE(d, hidden=(h, h)),
    "spline": lambda p, d, h: p["baselines"].NSF(d, hidden=(h, h)),
    "spline, affine tails": lambda p, d, h: p["baselines"].NSF(
        d, layers=2, hidden=(h, h), passes="autoregressive", tails="affine"
    ),
    "planar": lambda p, d, h: p["baselines"].PlanarFlow(d),
    "radial": lambda p, d, h: p["baselines"].RadialFlow(d),
    "Sylvester": lambda p, d, h: p["baselines"].SylvesterFlow(d),
    "residual": lambda p, d, h: p["baselines"].ResidualFlow(d, layers=4),
    "FFJORD": lambda p, d, h: p["cflows"].FFJORD(d, hidden=(64, 64)),
}


def imported(root: Path) -> dict[str, ModuleType]:
    """The packages of a checkout, whatever was imported before."""
    for name in [name for name in sys.modules if name.split(".")[0] in PACKAGES]:
        del sys.modules[name]
    sys.path.insert(0, str(root))
    try:
        return {name: importlib.import_module(name) for name in PACKAGES}
    finally:
        sys.path.remove(str(root))


def work(what: str, flow: Any, x: Tensor) -> Callable[[], object]:
    """What is timed; random numbers are the same at each call and in both arms."""
    if what == "iteration":
        optimiser = torch.optim.Adam(flow.parameters(), lr=0.0)

        def iterate() -> None:
            torch.manual_seed(0)
            optimiser.zero_grad()
            (-flow.log_prob(x).mean()).backward()
            flow.review()
            optimiser.step()

        return iterate
    flow.eval()

    def call() -> None:
        torch.manual_seed(0)
        with torch.no_grad():
            flow.log_prob(x) if what == "density" else flow.sample(len(x))

    return call


def main() -> None:
    """Time both arms; print and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("before", type=Path, metavar="CHECKOUT")
    parser.add_argument("what", nargs="+", choices=["iteration", "density", "sample"])
    parser.add_argument("--flows", nargs="+", choices=list(FLOWS), default=list(FLOWS))
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--core", type=int, default=0)
    parser.add_argument("--write", action="store_true", help="results/before.md")
    options = parser.parse_args()
    pin(options.core)
    torch.set_num_threads(1)
    sides = {"before": imported(options.before), "now": imported(HERE)}
    rows = []
    for case in options.cases:
        features, width = CASES[case]
        for name in options.flows:
            for what in options.what:
                x = torch.randn(options.rows, features, generator=torch.Generator().manual_seed(1))
                arms = {}
                for side, packages in sides.items():
                    torch.manual_seed(0)
                    flow = FLOWS[name](packages, features, width)
                    for part in flow.parameters():
                        if not part.any():
                            nn.init.normal_(part, std=0.01)
                    arms[side] = work(what, flow, x)
                times = alternate(arms, runs=options.runs, warmup=3)
                quotient = ratio(times, "now", "before")
                rows.append((f"{name}, D={features}", what, spread(times["now"]), quotient))
                print(*rows[-1], sep=" | ", flush=True)
    text = table(("flow", "what", "now", "now / before"), rows)
    if options.write:
        facts = ", ".join(f"{key} {value}" for key, value in machine().items())
        print(write_result("before", f"{text}\n{options.rows} rows. {facts}"))


if __name__ == "__main__":
    main()
