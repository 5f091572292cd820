"""kill -9 of a whole comparison at random moments: its table ends as an uninterrupted one's.

    python benchmarks/killed_comparison.py --write

One ``cflows compare`` runs in peace. The same command, into another directory, loses its whole
process tree to ``kill -9`` again and again: at a random moment after some cell has written a new
checkpoint, so that the kills fall inside trainings that had gone on. What is left then runs to its
end, and the two results.csv are compared, all columns but times and memory.
"""

from __future__ import annotations

import argparse
import csv
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from common import machine, table, write_result

COLUMNS = 4
ROWS = 800
MEASURED = ("seconds", "memory", "_ms")  # within the names of columns that no two runs share


def compared(out: Path) -> list[dict[str, str]]:
    """The rows of results.csv, without times and memory."""
    with open(out / "results.csv", newline="", encoding="utf-8") as file:
        return [
            {name: value for name, value in row.items() if not any(m in name for m in MEASURED)}
            for row in csv.DictReader(file)
        ]


def cells(out: Path) -> dict[str, int]:
    """By cell: when its checkpoint was written, in nanoseconds; 0 without one, -1 of a finished."""
    found = {}
    for folder in out.glob("cells/*/"):
        try:
            found[folder.name] = (folder / "checkpoint.pt").stat().st_mtime_ns
        except FileNotFoundError:
            found[folder.name] = 0
        if (folder / "result.json").exists():
            found[folder.name] = -1
    return found


def killed(command: list[str], out: Path, pause: float) -> list[object] | None:
    """Run until a cell has gone on and a pause is over, then kill: a line of the table.

    None where the command came to its end before.
    """
    before = cells(out)
    process = subprocess.Popen(
        [*command, "--out", str(out)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    begun = time.perf_counter()
    while process.poll() is None:
        if any(at > before.get(name, 0) for name, at in cells(out).items()):
            break
        time.sleep(0.01)
    try:
        process.wait(pause)
        return None
    except subprocess.TimeoutExpired:
        seconds = f"{time.perf_counter() - begun:.1f} s"
        now = cells(out)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    further = sum(at > before.get(name, 0) for name, at in now.items())
    return [seconds, sum(at == -1 for at in now.values()), sum(at > 0 for at in now.values()),
            further]  # fmt: skip


def main() -> None:
    """Run in peace, run under kills, compare."""
    parser = argparse.ArgumentParser(
        description=str(__doc__).splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--models", nargs="+", default=["ffjord", "maf", "nice"])
    add("--steps", type=int, default=300)
    add("--seeds", nargs="+", default=["0", "1"])
    add("--kills", type=int, default=5)
    add("--pause", type=float, default=6.0, help="seconds at most after a new checkpoint")
    add("--seed", type=int, default=0, help="of the moments")
    add("--write", action="store_true", help="write results/killed_comparison.md")
    options = parser.parse_args()
    draw = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        source = np.random.default_rng(0)
        rows = source.normal(size=(ROWS, COLUMNS)) @ source.normal(size=(COLUMNS, COLUMNS))
        np.save(place / "rows.npy", rows)
        command = [
            sys.executable, "-m", "baselines.harness", "compare", "--data", f"{place}/rows.npy",
            "--models", *options.models, "--depths", "1", "--steps", str(options.steps),
            "--seeds", *options.seeds, "--jobs", "2",
        ]  # fmt: skip
        quiet = {"check": True, "stdout": subprocess.DEVNULL}
        subprocess.run([*command, "--out", f"{place}/peace"], **quiet)  # type: ignore[call-overload]
        lines: list[list[object]] = []
        while len(lines) < options.kills:
            found = killed(command, place / "war", draw.uniform(0, options.pause))
            if found is None:
                break
            lines.append([len(lines) + 1, *found])
            print(*lines[-1], sep=" | ", flush=True)
        subprocess.run([*command, "--out", f"{place}/war"], **quiet)  # type: ignore[call-overload]
        peace, war = compared(place / "peace"), compared(place / "war")
    same = f"{len(peace)} rows, {len(peace[0])} columns: " + (
        "equal" if peace == war else "NOT equal: "
        + "; ".join(
            f"{a['model']} seed {a['seed']} {name}" for a, b in zip(peace, war, strict=False)
            for name in a if a[name] != b[name]
        )
    )  # fmt: skip
    header = ["kill", "after", "cells done", "in the middle", "of these gone on since the last"]
    facts = ", ".join(f"{key} {value}" for key, value in machine().items())
    statuses = ", ".join(sorted({row["status"] for row in peace}))
    settings = f"{' '.join(options.models)}, {options.steps} steps, status {statuses}"
    text = f"{table(header, lines)}\n{same}\n\n{settings}\n\n{facts}"
    print("\n" + text)
    if options.write:
        write_result("killed_comparison", text)
    if peace != war:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
