"""Our flows beside zuko's, nflows', normflows' and diffrax': one table, one picture.

    python benchmarks/peers.py --core 1
    python benchmarks/peers.py --quick

A training iteration, a density and a sample of MAF, RealNVP and NICE as ``discrete.py`` builds
them, and of FFJORD as ``continuous.py`` compares it: the same field and weights, each arm with the
fewest evaluations that keep the mean error of log p below 1e-3. Peers that are not installed are
left out (``pip install 'cflows[peers]'``). A flow trained by matching is solved by our tuned
solver, by zuko's and by the loop of torchcfm's users, with the same weights. The rows of FFJORD are
those of POWER and BSDS300 where CFLOWS_DATA is set, else made ones; of the others only the number
counts.
"""

from __future__ import annotations

import argparse
import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import matched_peers
import numpy as np
import pandas
import torch
from common import (
    RESULTS,
    WORKS,
    Arm,
    Calls,
    Spread,
    alternate,
    begun,
    parser_of,
    ratio,
    report,
    save_picture,
    spread,
    work,
)
from continuous import CASES as FIELDS
from continuous import Case
from continuous_peers import PEERS
from discrete import CASES, OURS, arms_of
from evaluations import FINE, trained
from perf.base import rows_of

from cflows import Chain, Flow, tune_solver
from cflows.continuous.divergence import draw_probes
from cflows.core.atomic_write import write_beside
from cflows.core.trajectory import through
from cflows.objectives.flow_matching import split_at_block

LAYERS = 5
LIMIT = 1e-3  # mean |log p - log p at 1e-10|
TUNED = 0.007  # that .01 is kept on rows that the tuning never saw
OTHERS = ("zuko", "nflows", "normflows", "diffrax", "torchcfm")


@dataclass(frozen=True)
class Row:
    """One arm, ``"ours"`` or a peer's; where ``ours_over_arm`` is below 1, ours is faster."""

    flow: str
    size: str
    work: str
    arm: str
    time: Spread
    ours_over_arm: Spread

    @property
    def verdict(self) -> str:
        """Which is faster, where the quartiles agree."""
        if self.arm == "ours":
            return ""
        if self.ours_over_arm.high < 1:
            return "ours is faster"
        return f"{self.arm} is faster" if self.ours_over_arm.low > 1 else "no difference"


def compared(flow: str, size: str, what: str, arms: Calls, runs: int) -> Iterator[Row]:
    """Time the arms in turns."""
    times = alternate(arms, runs=runs)
    for arm, seconds in times.items():
        yield Row(flow, size, what, arm, spread(seconds), ratio(times, "ours", arm))


def discrete_rows(options: argparse.Namespace) -> Iterator[Row]:
    """MAF, RealNVP and NICE."""
    flows = [flow for flow in OURS if flow in options.flows]
    for flow, size, what in itertools.product(flows, options.sizes, options.works):
        torch.manual_seed(0)
        x = torch.randn(options.rows, CASES[size][0])
        arms = arms_of(what, flow, *CASES[size], LAYERS, x)
        # A peer's sample of a MAF takes D passes.
        slow = (flow, what) == ("maf", "sample")
        yield from compared(
            flow, size, what, arms, max(3, options.runs // 3) if slow else options.runs
        )


def continuous_rows(options: argparse.Namespace) -> Iterator[Row]:
    """FFJORD, its trace estimated and exact."""
    for size in options.sizes if "ffjord" in options.flows else ():
        case = _case(size, options.rows)
        torch.manual_seed(0)
        field, x = case.trained(options.trained)
        checked = x[: case.checked]
        probe = draw_probes(checked)[0]
        for trace, divergence in (("estimate", "hutchinson"), ("exact", "exact")):
            title = f"FFJORD {size}, {trace}"
            cheapest = case.cheapest(field, checked, divergence, probe, LIMIT)
            if cheapest is None:
                print(f"{title}: no grid keeps {LIMIT:g}")
                continue
            grid, errors = cheapest
            print(f"{title}: {grid}, mean error {errors.mean:.1e}")
            flow = case.ours(field, grid, divergence)
            asked = (field, case.end_time, x, checked, probe, LIMIT)
            for what in options.works:
                if trace == "estimate" and what != "iteration":
                    continue  # a density is exact, and a sample has no trace
                arms: Calls = {"ours": work(what, Arm(flow, flow.log_prob, flow.sample), x)}
                for peer, arm_of in PEERS.items():
                    if trace == "exact" and (peer != "zuko" or field.features > 10):
                        continue
                    arm = arm_of(*asked, what, trace) if peer == "zuko" else arm_of(*asked)
                    if arm is None:
                        print(f"{title}: {peer} keeps {LIMIT:g} at no tolerance")
                        continue
                    arms[peer] = arm.call
                    print(f"{title}: {peer} {arm.solver}, mean error {arm.errors.mean:.1e}")
                named = what if what == "sample" else f"{what}, {trace}"
                yield from compared("ffjord", size, named, arms, max(3, options.runs // 3))


def matched_rows(options: argparse.Namespace) -> Iterator[Row]:
    """FFJORD trained by matching on POWER, its continuous part alone: the maps behind it are ours.

    At the other libraries' own tolerances, and at the loosest that keep what ours keeps, a
    mean gap of .01 nats, or an end of samples within .01 standard deviations.
    """
    if "matched" not in options.flows or "CFLOWS_DATA" not in os.environ:
        return
    own = {"seconds": options.matched_seconds, "flows": options.matched_flows}
    train = argparse.Namespace(seed=0, rows=options.rows, **own)
    whole, validation, test = trained("power", train)
    tuning = tune_solver(whole, validation, tolerance=TUNED)
    print(tuning)
    before, block, behind = split_at_block(whole)
    flow = Flow(Chain(*before, block), whole.base).eval()
    with torch.no_grad():
        x = through(behind, test[: options.rows], None, upwards=False)
        draws = flow.base.sample((len(x),))
        with flow.using(solver=FINE):
            truth = {"density": flow.log_prob(x), "sample": flow.bijector(draws)}
    starts = {"density": x, "sample": draws}
    own_call = {"density": partial(flow.log_prob, x), "sample": partial(flow.bijector, draws)}
    notes = options.notes
    with torch.no_grad():
        errors = {
            what: matched_peers.error_of(what, own_call[what](), truth[what]) for what in starts
        }
    notes.append(f"matched, ours: {tuning.solver}; gap {errors['density']:.2g}")
    notes.append(f"matched, ours: end {errors['sample']:.2g}")
    for what, own in itertools.product(starts, (True, False)):
        theirs = matched_peers.arms_of(block.field, what, starts[what], truth[what], own)
        for name, (_, how) in theirs.items():
            notes.append(f"matched, {what}: {name}, {how}")
        arms: Calls = {"ours": torch.no_grad()(own_call[what])}
        arms |= {name: call for name, (call, _) in theirs.items()}
        named = f"{what}, {'their defaults' if own else 'same gap'}"
        yield from compared("matched", "power", named, arms, max(3, options.runs * 3 // 5))


def _case(size: str, rows: int) -> Case:
    """The field of continuous.py that is nearest, in this size."""
    features, width = CASES[size]
    checked = min(rows, 1000 if features < 10 else 50)
    case = replace(FIELDS["power"], hidden=(width, width), batch=rows, checked=checked)
    if "CFLOWS_DATA" in os.environ and (features, width) in ((6, 100), (43, 512)):
        return replace(case, rows=FIELDS["power" if features == 6 else "bsds43"].rows)
    return replace(case, rows=partial(rows_of, features, 50_000))


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """The table with all its figures."""
    figures = ("median", "low", "high", "minimum", "maximum")
    lines = []
    for row in rows:
        line = {name: getattr(row, name) for name in ("flow", "size", "work", "arm")}
        line["runs"] = row.time.runs
        for kind, values in (("seconds", row.time), ("ours_over_arm", row.ours_over_arm)):
            line |= {f"{kind}_{name}": getattr(values, name) for name in figures}
        lines.append(line)
    pandas.DataFrame(lines).to_csv(path, index=False, float_format="%.6g")


def draw(rows: Sequence[Row], name: str) -> None:
    """Ratios with quartiles, a line a comparison; left of 1 ours is faster."""
    from matplotlib.figure import Figure

    against = [row for row in rows if row.arm != "ours"]
    lines = list(dict.fromkeys((row.flow, row.size, row.work) for row in against))
    figure = Figure(figsize=(7, 1.2 + 0.33 * len(lines)), layout="constrained")
    axes = figure.subplots()
    for index, arm in enumerate(OTHERS):
        mine = [row for row in against if row.arm == arm]
        if not mine:
            continue
        ratios = [row.ours_over_arm for row in mine]
        low, middle, high = np.transpose([(r.low, r.median, r.high) for r in ratios])
        at = [lines.index((row.flow, row.size, row.work)) + 0.16 * index - 0.24 for row in mine]
        marks = {"fmt": "o", "ms": 3.5, "lw": 1, "color": f"C{index}"}
        axes.errorbar(middle, at, xerr=[middle - low, high - middle], label=arm, **marks)
    axes.axvline(1, color="0.6", lw=1)
    axes.set_yticks(range(len(lines)), [" ".join(line) for line in lines], fontsize=8)
    axes.invert_yaxis()
    axes.set(xscale="log", xlabel="our time / theirs: median and quartiles, left is ours")
    ticks = (0.02, 0.05, 0.1, 0.2, 0.5, 1, 2)
    axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
    axes.minorticks_off()
    axes.legend(frameon=False, ncols=4, loc="lower left", bbox_to_anchor=(0, 1), fontsize=8)
    save_picture(name, figure)


def main(argv: Sequence[str] | None = None) -> None:
    """Time every arm; print and write the table, the same as CSV, and the picture."""
    parser = parser_of(__doc__)
    add = parser.add_argument
    flows = ("ffjord", *OURS, "matched")
    add("--flows", nargs="+", choices=flows, default=flows)
    add("--sizes", nargs="+", choices=list(CASES), default=["6x100", "43x512"], help="D x H")
    add("--works", nargs="+", choices=WORKS, default=WORKS)
    add("--rows", type=int, default=1000)
    add("--runs", type=int, default=15, help="of what takes seconds, a third")
    add("--trained", type=int, default=100, help="iterations of a field before it is measured")
    add("--matched-seconds", type=float, default=180.0, help="of training by flow matching")
    add("--matched-flows", help="folder of trained flows, as evaluations.py has it")
    add("--name", default="peers", help="of the files in results/")
    quick = "D=6 only, few runs and rows: under two minutes; written as NAME-quick"
    add("--quick", action="store_true", help=quick)
    options = begun(parser, argv)
    if options.quick:
        options.sizes, options.runs, options.trained, options.rows = ["6x100"], 3, 10, 200
        options.matched_seconds = 5.0
        options.name += "-quick"
    missing = [name for name in OTHERS if not find_spec(name) and name != "torchcfm"]
    if missing:
        print(f"not installed and left out: {', '.join(missing)}")
    rows: list[Row] = []

    def cells() -> Iterator[tuple[object, ...]]:
        for row in itertools.chain(
            discrete_rows(options), continuous_rows(options), matched_rows(options)
        ):
            rows.append(row)
            yield *vars(row).values(), row.verdict

    header = ("flow", "DxH", "work", "arm", "time", "ours / arm", "")
    options.notes = [f"{options.rows} rows, {LAYERS} layers"]
    report(options.name, header, cells(), options.notes)
    write_beside(RESULTS / f"{options.name}.csv", partial(write_csv, rows))
    draw(rows, options.name)


if __name__ == "__main__":
    main()
