"""What inverting an autoregressive flow costs: cached, jacobi and sequential, and zuko's.

    python benchmarks/inversion.py cases --core 1
    python benchmarks/inversion.py scaling --core 1

``cases``: sampling a MAF and scoring under an IAF, beside the pass that goes the other way.
``scaling``: cached sampling against D at fixed H, with the fitted slope of log time over log D.
Weights are torch's initial ones, the last layers' N(0, 0.05²): times of cached and sequential do
not depend on them, jacobi's does (fewer sweeps where little depends on little).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np
import torch
from common import RESULTS, alternate, machine, pin, ratio, spread, table, write_result
from torch import nn

from baselines import IAF, MAF
from cflows import Flow
from cflows.core.atomic_write import write_beside

Arms = dict[str, Callable[[], object]]


@dataclass(frozen=True)
class Case:
    """A size to measure, and which arms are affordable there."""

    features: int
    width: int
    layers: int
    rows: int
    arms: tuple[str, ...]


ALL = ("cached", "jacobi", "sequential", "zuko")
CASES = {
    "21": Case(21, 256, 5, 1000, ALL),
    "43": Case(43, 512, 5, 1000, ALL),
    "63": Case(63, 512, 5, 1000, ALL),
    "784": Case(784, 1024, 1, 100, ("cached", "sequential")),
}
DIMENSIONS = (16, 32, 64, 128, 256, 512)


def stirred(flow: Flow) -> Flow:
    """The flow in evaluation mode, its last layers no longer zero."""
    for part in flow.modules():
        if hasattr(part, "made"):
            last = part.made.masked[-1]
            nn.init.normal_(last.weight, std=0.05)
            nn.init.normal_(last.bias, std=0.05)
    return flow.eval()


def arms_of(case: Case, kind: str) -> Arms:
    """The pass that is cheap anyway ("pass"), and the other direction by every way."""
    torch.manual_seed(0)
    hidden = (case.width, case.width)
    found: Arms = {}
    for inversion in ("cached", "jacobi", "sequential"):
        if inversion not in case.arms:
            continue
        torch.manual_seed(0)
        flow = stirred(
            (MAF if kind == "maf" else IAF)(
                case.features, layers=case.layers, hidden=hidden, inversion=inversion
            )
        )
        x = flow.sample(case.rows)
        density = torch.no_grad()(lambda f=flow, x=x: f.log_prob(x))
        sample = lambda f=flow: f.sample(case.rows)  # noqa: E731
        cheap, dear = (density, sample) if kind == "maf" else (sample, density)
        found.setdefault("pass", cheap)
        found[inversion] = dear
    if "zuko" in case.arms and find_spec("zuko") and kind == "maf":
        import zuko

        peer = zuko.flows.MAF(case.features, transforms=case.layers, hidden_features=hidden)
        found["zuko"] = torch.no_grad()(lambda: peer().sample((case.rows,)))
    return found


def run_cases(names: list[str], runs: int) -> None:
    """Print and write the table of the cases."""
    rows = []
    for name in names:
        case = CASES[name]
        for kind in ("maf", "iaf"):
            times = alternate(arms_of(case, kind), runs=runs, warmup=1)
            for arm, seconds in times.items():
                what = {"maf": ("density", "sample"), "iaf": ("sample", "density")}[kind]
                rows.append(
                    (
                        f"{kind.upper()} D={case.features} H={case.width} K={case.layers}",
                        case.rows,
                        f"{what[arm != 'pass']}, {arm}",
                        spread(seconds),
                        ratio(times, arm, "pass"),
                        ratio(times, arm, "cached"),
                    )
                )
                print(*rows[-1], sep=" | ", flush=True)
    header = ("flow", "rows", "what", "time", "/ one pass", "/ cached")
    write_result("inversion_cases", table(header, rows) + "\n" + facts())


def run_scaling(width: int, rows: int, runs: int) -> None:
    """Print, write and draw cached sampling against the dimension."""
    flows = {
        d: stirred(MAF(d, layers=1, hidden=(width, width), inversion="cached")) for d in DIMENSIONS
    }
    arms: Arms = {str(d): (lambda f=f: f.sample(rows)) for d, f in flows.items()}
    times = alternate(arms, runs=runs)
    medians = np.array([spread(times[str(d)]).median for d in DIMENSIONS])
    sizes = np.array(DIMENSIONS, dtype=float)
    slope = np.polyfit(np.log(sizes), np.log(medians), 1)[0]
    lines = [(d, spread(times[str(d)])) for d in DIMENSIONS]
    text = table(("D", "time"), lines) + (
        f"\nslope of log time over log D, least squares over all D: {slope:.2f} (D x H would be 1)"
        f"\none layer, H={width} twice, {rows} rows\n" + facts()
    )
    print(text)
    write_result("inversion_scaling", text)
    draw(sizes, medians, times, slope, width, rows)


def draw(
    sizes: np.ndarray,
    medians: np.ndarray,
    times: dict[str, list[float]],
    slope: float,
    width: int,
    rows: int,
) -> None:
    """Picture of the scaling: medians with the extremes, and the line of slope one."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(5, 3.6), layout="constrained")
    low = medians - np.array([min(times[str(int(d))]) for d in sizes])
    high = np.array([max(times[str(int(d))]) for d in sizes]) - medians
    axes.errorbar(sizes, 1e3 * medians, 1e3 * np.array([low, high]), fmt="o-", capsize=3)
    axes.plot(sizes, 1e3 * medians[0] * sizes / sizes[0], "--", color="0.6", label="∝ D")
    axes.set(xscale="log", yscale="log", xlabel="D",
             ylabel="ms: median, fastest and slowest")  # fmt: skip
    axes.set_xticks(sizes, [f"{int(d)}" for d in sizes])
    axes.minorticks_off()
    axes.set_title(f"Cached sampling, one MAF layer\nH={width}, {rows} rows: slope {slope:.2f}",
                   fontsize=10)  # fmt: skip
    axes.legend(frameon=False)
    path = RESULTS / "inversion_scaling.png"
    write_beside(path, lambda beside: figure.savefig(beside, format="png", dpi=150))
    plt.close(figure)


def facts() -> str:
    """The machine in one line."""
    return ", ".join(f"{key} {value}" for key, value in machine().items())


def main() -> None:
    """Run one of the two measurements."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=["cases", "scaling"])
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--width", type=int, default=256, help="of scaling")
    parser.add_argument("--rows", type=int, default=1000, help="of scaling")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--core", type=int, default=0)
    options = parser.parse_args()
    pin(options.core)
    torch.set_num_threads(1)
    if options.what == "cases":
        run_cases(options.cases, options.runs)
    else:
        run_scaling(options.width, options.rows, options.runs)


if __name__ == "__main__":
    main()
