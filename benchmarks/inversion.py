"""What inverting an autoregressive flow costs: cached, jacobi and sequential, and zuko's.

    python benchmarks/inversion.py cases --core 1
    python benchmarks/inversion.py scaling --core 1

``cases``: sampling a MAF and scoring under an IAF, beside the pass that goes the other way.
``scaling``: cached sampling against D at fixed H, with the fitted slope of log time over log D.
Weights are torch's initial ones, the last layers' N(0, 0.05²): times of cached and sequential do
not depend on them, jacobi's does (fewer sweeps where little depends on little).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from importlib.util import find_spec
from typing import NamedTuple

import numpy as np
import torch
from common import Calls, alternate, begun, parser_of, ratio, report, save_picture, spread, stir

from baselines import IAF, MAF


class Case(NamedTuple):
    """A size to measure, and which arms are affordable there."""

    features: int
    width: int
    layers: int
    rows: int
    arms: tuple[str, ...] = ("cached", "jacobi", "sequential", "zuko")


CASES = {
    "21": Case(21, 256, 5, 1000),
    "43": Case(43, 512, 5, 1000),
    "63": Case(63, 512, 5, 1000),
    "784": Case(784, 1024, 1, 100, ("cached", "sequential")),
}
DIMENSIONS = (16, 32, 64, 128, 256, 512)


def arms_of(case: Case, family: type[MAF | IAF]) -> Calls:
    """The pass that is cheap anyway ("pass"), and the other direction by every way."""
    hidden = (case.width, case.width)
    arms: Calls = {}
    for inversion in case.arms:
        if inversion == "zuko":
            continue
        torch.manual_seed(0)
        flow = family(case.features, layers=case.layers, hidden=hidden, inversion=inversion)
        stir(flow, 0.05)
        sample = partial(flow.eval().sample, case.rows)
        density = torch.no_grad()(partial(flow.log_prob, sample()))
        cheap, dear = (density, sample) if family is MAF else (sample, density)
        arms.setdefault("pass", cheap)
        arms[inversion] = dear
    if "zuko" in case.arms and find_spec("zuko") and family is MAF:
        import zuko

        peer = zuko.flows.MAF(case.features, transforms=case.layers, hidden_features=hidden)
        arms["zuko"] = torch.no_grad()(lambda: peer().sample((case.rows,)))
    return arms


def cases(names: Sequence[str], runs: int) -> Iterator[tuple[object, ...]]:
    """The rows of the table of the cases."""
    for name in names:
        case = CASES[name]
        for family, cheap, dear in ((MAF, "density", "sample"), (IAF, "sample", "density")):
            title = f"{family.__name__} D={case.features} H={case.width} K={case.layers}"
            times = alternate(arms_of(case, family), runs=runs, warmup=1)
            for arm, seconds in times.items():
                what = f"{cheap if arm == 'pass' else dear}, {arm}"
                ratios = [ratio(times, arm, against) for against in ("pass", "cached")]
                yield title, case.rows, what, spread(seconds), *ratios


def scaling(width: int, rows: int, runs: int) -> None:
    """Print, write and draw cached sampling against the dimension."""
    arms: Calls = {}
    for features in DIMENSIONS:
        flow = MAF(features, layers=1, hidden=(width, width), inversion="cached")
        stir(flow, 0.05)
        arms[str(features)] = partial(flow.eval().sample, rows)
    spreads = [spread(seconds) for seconds in alternate(arms, runs=runs).values()]
    medians = np.array([values.median for values in spreads])
    slope = np.polyfit(np.log(DIMENSIONS), np.log(medians), 1)[0]
    notes = [
        f"slope of log time over log D, least squares over all D: {slope:.2f} (D x H would be 1)",
        f"one layer, H={width} twice, {rows} rows",
    ]
    report("inversion_scaling", ("D", "time"), zip(DIMENSIONS, spreads, strict=True), notes)

    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.6), layout="constrained")
    axes = figure.subplots()
    low = [values.median - values.minimum for values in spreads]
    high = [values.maximum - values.median for values in spreads]
    axes.errorbar(DIMENSIONS, 1e3 * medians, 1e3 * np.array([low, high]), fmt="o-", capsize=3)
    line = 1e3 * medians[0] * np.array(DIMENSIONS) / DIMENSIONS[0]
    axes.plot(DIMENSIONS, line, "--", color="0.6", label="∝ D")
    axes.set(xscale="log", yscale="log", xlabel="D", ylabel="ms: median, fastest and slowest")
    axes.set_xticks(DIMENSIONS, list(arms))
    axes.minorticks_off()
    title = f"Cached sampling, one MAF layer\nH={width}, {rows} rows: slope {slope:.2f}"
    axes.set_title(title, fontsize=10)
    axes.legend(frameon=False)
    save_picture("inversion_scaling", figure)


def main() -> None:
    """Run one of the two measurements."""
    parser = parser_of(__doc__)
    add = parser.add_argument
    add("what", choices=["cases", "scaling"])
    add("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    add("--width", type=int, default=256, help="of scaling")
    add("--rows", type=int, default=1000, help="of scaling")
    add("--runs", type=int, default=7)
    options = begun(parser)
    if options.what == "scaling":
        scaling(options.width, options.rows, options.runs)
        return
    header = ("flow", "rows", "what", "time", "/ one pass", "/ cached")
    report("inversion_cases", header, cases(options.cases, options.runs))


if __name__ == "__main__":
    main()
