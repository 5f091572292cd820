"""Our flows beside zuko's, nflows', normflows' and diffrax': one table, one picture.

    python benchmarks/peers.py --core 1
    python benchmarks/peers.py --quick

A training iteration, a density and a sample of MAF, RealNVP and NICE as ``discrete.py`` builds
them, and of FFJORD as ``continuous.py`` compares it: the same field and weights, each arm with the
fewest evaluations that keep the mean error of log p below 1e-3. Peers that are not installed are
left out (``pip install 'cflows[peers]'``). The rows of FFJORD are those of POWER and BSDS300 where
CFLOWS_DATA is set, else made ones; of the others only the number counts.
"""

from __future__ import annotations

import argparse
import csv
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import torch
from common import RESULTS, Spread, alternate, machine, pin, ratio, spread, table, write_result
from continuous import CASES as FIELDS
from continuous import Case, cheapest, ours, step, trained_field
from continuous_peers import PEERS, zuko_arm
from discrete import CASES, OURS, arms_of
from perf.base import rows_of

from cflows.continuous.divergence import draw_probes
from cflows.core.atomic_write import write_beside

__all__ = ["Row", "compare", "main"]

SIZES = ("6x100", "43x512")
WORKS = ("iteration", "density", "sample")
LAYERS = 5
LIMIT = 1e-3  # mean |log p - log p at 1e-10|

Arms = dict[str, Callable[[], object]]


@dataclass(frozen=True)
class Row:
    """One arm of one comparison.

    Attributes:
        flow: ours that it stands beside.
        size: D x H.
        work: what was timed.
        arm: ``"ours"`` or a peer.
        time: of the arm, in seconds.
        ours_over_arm: run by run; below 1 ours is faster.

    """

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


def compare(flow: str, size: str, work: str, arms: Arms, runs: int) -> list[Row]:
    """Time the arms in turns; print and return their rows."""
    times = alternate(arms, runs=runs, warmup=2)
    rows = [
        Row(flow, size, work, arm, spread(seconds), ratio(times, "ours", arm))
        for arm, seconds in times.items()
    ]
    for row in rows:
        print(*_cells(row), sep=" | ", flush=True)
    return rows


def discrete_rows(options: argparse.Namespace) -> Iterator[list[Row]]:
    """MAF, RealNVP and NICE."""
    for flow in OURS:
        if flow not in options.flows:
            continue
        for size in options.sizes:
            features, width = CASES[size]
            torch.manual_seed(0)
            x = torch.randn(options.rows, features)
            for work in options.works:
                arms = arms_of(work, flow, features, width, LAYERS, x)
                # A peer's sample of a MAF takes D passes.
                slow = flow == "maf" and work == "sample"
                runs = max(3, options.runs // 3) if slow else options.runs
                yield compare(flow, size, work, arms, runs)


def continuous_rows(options: argparse.Namespace) -> Iterator[list[Row]]:
    """FFJORD, its trace estimated and exact."""
    if "ffjord" not in options.flows:
        return
    for size in options.sizes:
        case = _case(size, options.rows)
        torch.manual_seed(0)
        field, x = trained_field(case, options.trained)
        seen = x[: case.checked]
        probe = draw_probes(seen)[0]
        for trace in ("estimate", "exact"):
            found = cheapest(
                case, field, seen, "exact" if trace == "exact" else "hutchinson", probe, LIMIT
            )
            if found is None:
                print(f"FFJORD {size}, {trace}: no grid keeps {LIMIT:g}")
                continue
            grid, errors = found
            print(f"FFJORD {size}, {trace}: {grid}, mean error {errors[0]:.1e}")
            flow = ours(case, field, grid, "exact" if trace == "exact" else "hutchinson")
            works = {
                "iteration": step(flow, x),
                "density": torch.no_grad()(lambda f=flow, x=x: f.log_prob(x)),
                "sample": lambda f=flow, x=x: f.sample(len(x)),
            }
            for work in options.works:
                if trace == "estimate" and work != "iteration":
                    continue  # a density is exact, and a sample has no trace
                arms: Arms = {"ours": works[work]}
                for peer in PEERS if not (trace == "exact" and field.features > 10) else ():
                    if peer == "zuko":
                        built = zuko_arm(
                            field, case.end_time, x, seen, probe, LIMIT, work=work, trace=trace
                        )
                    elif work == "iteration" and trace == "estimate":
                        built = PEERS[peer](field, case.end_time, x, seen, probe, LIMIT)
                    else:
                        continue
                    if built is None:
                        print(f"FFJORD {size}, {trace}: {peer} keeps {LIMIT:g} at no tolerance")
                        continue
                    arms[peer] = built[0]
                    print(
                        f"FFJORD {size}, {trace}: {peer} {built[1]}, mean error {built[2][0]:.1e}"
                    )
                runs = max(3, options.runs // 3)
                yield compare("ffjord", size, f"{work}, {trace}" if work != "sample" else work,
                              arms, runs)  # fmt: skip


def _case(size: str, rows: int) -> Case:
    """The field of continuous.py that is nearest, in this size."""
    features, width = CASES[size]
    case = replace(FIELDS["power"], hidden=(width, width), batch=rows,
                   checked=min(rows, 1000 if features < 10 else 50))  # fmt: skip
    if "CFLOWS_DATA" in os.environ and (features, width) in ((6, 100), (43, 512)):
        return replace(case, rows=FIELDS["power" if features == 6 else "bsds43"].rows)
    return replace(case, rows=lambda: rows_of(features, 50_000))


def _cells(row: Row) -> tuple[object, ...]:
    return (row.flow, row.size, row.work, row.arm, row.time, row.ours_over_arm, row.verdict)


def write(rows: Sequence[Row], name: str, note: str) -> None:
    """Write the table, the same as CSV, and the picture, into ``results/``."""
    header = ("flow", "DxH", "work", "arm", "time", "ours / arm", "")
    facts = ", ".join(f"{key} {value}" for key, value in machine().items())
    write_result(name, table(header, [_cells(row) for row in rows]) + f"\n{note}; {facts}")
    write_beside(RESULTS / f"{name}.csv", lambda beside: _write_csv(rows, beside))
    picture = RESULTS / f"{name}.png"
    write_beside(picture, lambda beside: _draw(rows, beside))


def _write_csv(rows: Sequence[Row], path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        out = csv.writer(file)
        names = ("median", "low", "high", "minimum", "maximum")
        figures = [f"{kind}_{n}" for kind in ("seconds", "ours_over_arm") for n in names]
        out.writerow(["flow", "size", "work", "arm", "runs", *figures])
        for row in rows:
            figures = [
                f"{getattr(values, n):.6g}" for values in (row.time, row.ours_over_arm)
                for n in names
            ]  # fmt: skip
            out.writerow([row.flow, row.size, row.work, row.arm, row.time.runs, *figures])


def _draw(rows: Sequence[Row], path: Path) -> None:
    """Ratios with quartiles, a line a comparison; left of 1 ours is faster."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    against = [row for row in rows if row.arm != "ours"]
    places = list(dict.fromkeys((row.flow, row.size, row.work) for row in against))
    figure, axes = plt.subplots(figsize=(7, 1.2 + 0.33 * len(places)), layout="constrained")
    colours = {"zuko": "C0", "nflows": "C1", "normflows": "C2", "diffrax": "C3"}
    for arm, lower in zip(colours, (-0.24, -0.08, 0.08, 0.24), strict=True):
        mine = [row for row in against if row.arm == arm]
        if not mine:
            continue
        middle = [row.ours_over_arm.median for row in mine]
        low = [row.ours_over_arm.median - row.ours_over_arm.low for row in mine]
        high = [row.ours_over_arm.high - row.ours_over_arm.median for row in mine]
        at = [places.index((row.flow, row.size, row.work)) + lower for row in mine]
        axes.errorbar(middle, at, xerr=[low, high], fmt="o", ms=3.5, lw=1,
                      color=colours[arm], label=arm)  # fmt: skip
    axes.axvline(1, color="0.6", lw=1)
    axes.set_yticks(range(len(places)), [" ".join(place) for place in places], fontsize=8)
    axes.invert_yaxis()
    axes.set(xscale="log", xlabel="our time / theirs: median and quartiles, left is ours")
    ticks = (0.02, 0.05, 0.1, 0.2, 0.5, 1, 2)
    axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
    axes.minorticks_off()
    axes.legend(frameon=False, ncols=4, loc="lower left", bbox_to_anchor=(0, 1), fontsize=8)
    figure.savefig(path, format="png", dpi=150)
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> None:
    """Time every arm; print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    flows = ("ffjord", *OURS)
    add("--flows", nargs="+", choices=flows, default=list(flows))
    add("--sizes", nargs="+", choices=list(CASES), default=list(SIZES), help="D x H")
    add("--works", nargs="+", choices=WORKS, default=list(WORKS))
    add("--rows", type=int, default=1000)
    add("--runs", type=int, default=15, help="of what takes seconds, a third")
    add("--trained", type=int, default=100, help="iterations of a field before it is measured")
    add("--name", default="peers", help="of the files in results/")
    add("--core", type=int, default=0)
    add("--quick", action="store_true", help="D=6 only, few runs and rows: under two minutes; "
        "written as peers-quick")  # fmt: skip
    options = parser.parse_args(argv)
    if options.quick:
        options.sizes, options.runs, options.trained, options.rows = ["6x100"], 3, 10, 200
        options.name += "-quick"
    pin(options.core)
    torch.set_num_threads(1)
    missing = [name for name in ("zuko", "nflows", "normflows", "diffrax") if not find_spec(name)]
    if missing:
        print(f"not installed and left out: {', '.join(missing)}")
    rows: list[Row] = []
    for part in (discrete_rows, continuous_rows):
        for found in part(options):
            rows += found
    write(rows, options.name, f"{options.rows} rows, {LAYERS} layers")


if __name__ == "__main__":
    main()
