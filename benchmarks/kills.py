"""kill -9 at random moments: what it costs, and whether the end is that of a run in peace.

    python benchmarks/kills.py training --write
    python benchmarks/kills.py comparison --write

``training``: each family trains once in peace, and once in a process that is killed again and again
and resumed from its checkpoint. A moment is a random number of steps after the resumption, none
among them, and a random part of a step more; it may fall on the writing of a checkpoint or on its
reading. The table counts every step that an optimiser took, the repeated ones included, against the
bound: those of the peaceful run and one checkpoint interval for each kill.

``comparison``: one ``cflows compare`` runs in peace. The same command, into another directory,
loses its whole process tree again and again: at a random moment after some cell has written a new
checkpoint, so that the kills fall inside trainings that had gone on. What is left then runs to its
end, and the two results.csv are compared, all columns but times and memory.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from ctypes import c_longlong
from multiprocessing.process import BaseProcess
from pathlib import Path
from subprocess import DEVNULL

import numpy as np
import pandas
import torch
from common import parser_of, pin, report
from torch.optim.optimizer import register_optimizer_step_post_hook

from baselines import IAF, MAF, NICE, RealNVP
from cflows import FFJORD, FixedGrid, Flow, Lagged, fit

HIDDEN = (16, 16)
GRID = FixedGrid("midpoint", 4)
COLUMNS, ROWS = 4, 800  # of the comparison
MEASURED = ("seconds", "memory", "_ms")  # within the names of columns that no two runs share
FORK = multiprocessing.get_context("fork")

# Parts with a state of their own where there are any: batch norm's statistics, random probes, the
# lagged solver's number of steps.
FAMILIES: Mapping[str, Callable[[], Flow]] = {
    "FFJORD": lambda: FFJORD(
        2,
        hidden=HIDDEN,
        divergence="hutchinson",
        training_solver=Lagged("bosh3", 1e-3),
        evaluation_solver=GRID,
    ),
    "FFJORD (matching)": lambda: FFJORD(2, hidden=HIDDEN, evaluation_solver=GRID),
    "MAF": lambda: MAF(2, layers=2, hidden=HIDDEN, batch_norm=True),
    "IAF": lambda: IAF(2, layers=2, hidden=HIDDEN),
    "RealNVP": lambda: RealNVP(2, layers=4, hidden=HIDDEN, batch_norm=True),
    "NICE": lambda: NICE(2, layers=4, hidden=HIDDEN),
}


def trained(name: str, folder: Path, counter: c_longlong, options: Namespace) -> None:
    """Train from the folder's checkpoint if there is one; leave the state and the history."""

    def count(*_: object) -> None:
        counter.value += 1

    register_optimizer_step_post_hook(count)
    torch.manual_seed(0)
    flow, rows = FAMILIES[name](), torch.randn(1000, 2) @ torch.tensor([[2.0, 0.5], [0.0, 0.3]])
    settings = {"steps": options.steps, "batch_size": 64, "ema": 0.9, "progress": False}
    history = fit(
        flow,
        rows[:800],
        rows[800:],
        objective="flow_matching" if "matching" in name else "forward_kl",
        validate_every=4 * options.interval,
        checkpoint_every=options.interval,
        checkpoint=folder / "checkpoint.pt",
        **settings,
    )
    columns = {k: v for k, v in history.columns().items() if k != "seconds"}
    torch.save({"state": flow.state_dict(), "columns": columns}, folder / "end.pt")


def finished(child: BaseProcess, seconds: float | None = None) -> bool:
    """Whether a process ends by itself within so many seconds; SystemExit where it failed."""
    child.join(seconds)
    if child.exitcode:
        raise SystemExit("a training process failed: see its traceback above")
    return child.exitcode == 0


def killed(child: BaseProcess, counter: c_longlong, steps: int, pause: float) -> bool:
    """Kill a process after so many steps and seconds more; False where it ended before."""
    goal = counter.value + steps
    while counter.value < goal:
        if finished(child, 1e-3):
            return False
    if finished(child, pause):
        return False
    child.kill()
    child.join()
    return True


def training(options: Namespace) -> Iterator[tuple[object, ...]]:
    """Rows of the table: each family in peace and under kills."""
    # The first step of torch's first optimiser imports for seconds: here, and not in each child.
    torch.optim.AdamW([torch.zeros(1, requires_grad=True)]).step()
    draw = random.Random(options.seed)

    def started(name: str, folder: Path, counter: c_longlong) -> BaseProcess:
        child = FORK.Process(target=trained, args=(name, folder, counter, options))
        child.start()
        return child

    for name in options.families:
        counters = peaceful, hostile = [FORK.RawValue(c_longlong) for _ in range(2)]
        with tempfile.TemporaryDirectory() as peace, tempfile.TemporaryDirectory() as war:
            start, kills = time.perf_counter(), 0
            finished(started(name, Path(peace), peaceful))
            step = (time.perf_counter() - start) / options.steps
            most = 3 * options.steps // (2 * options.kills)  # so that all find room
            child = started(name, Path(war), hostile)
            while kills < options.kills:
                if not killed(child, hostile, draw.randint(0, most), draw.uniform(0, 2 * step)):
                    break
                kills += 1
                child = started(name, Path(war), hostile)
            finished(child)
            one, other = (
                torch.load(Path(folder) / "end.pt", weights_only=True) for folder in (peace, war)
            )
        weights = all(
            torch.equal(value, other["state"][key]) for key, value in one["state"].items()
        )
        alone, steps = (counter.value for counter in counters)
        bound = alone + kills * options.interval
        same = ("yes" if weights else "NO", "yes" if one["columns"] == other["columns"] else "NO")
        yield name, kills, *same, alone, steps, bound, "yes" if steps <= bound else "NO"


def cells(out: Path) -> dict[str, int]:
    """By cell: when its checkpoint was written, in nanoseconds; 0 without one, -1 of a finished."""
    times = {}
    for folder in out.glob("cells/*/"):
        try:
            times[folder.name] = (folder / "checkpoint.pt").stat().st_mtime_ns
        except FileNotFoundError:
            times[folder.name] = 0
        if (folder / "result.json").exists():
            times[folder.name] = -1
    return times


def struck(command: Sequence[str], out: Path, pause: float) -> tuple[object, ...] | None:
    """Run until a cell has gone on and a pause is over, then kill: a line of the table.

    None where the command came to its end before.
    """
    before = cells(out)

    def further(now: dict[str, int]) -> int:
        return sum(at > before.get(name, 0) for name, at in now.items())

    argv = [*command, "--out", out]
    process = subprocess.Popen(argv, stdout=DEVNULL, stderr=DEVNULL, start_new_session=True)
    start = time.perf_counter()
    while process.poll() is None and not further(cells(out)):
        time.sleep(0.01)
    try:
        process.wait(pause)
        return None
    except subprocess.TimeoutExpired:
        seconds = f"{time.perf_counter() - start:.1f} s"
        now = cells(out)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    done = sum(at == -1 for at in now.values())
    return seconds, done, sum(at > 0 for at in now.values()), further(now)


def comparison(options: Namespace, notes: list[str]) -> Iterator[tuple[object, ...]]:
    """Rows of the table: each kill of the command; the notes say what its results came to."""
    draw = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        peace, war, file = (Path(folder) / name for name in ("peace", "war", "rows.npy"))
        rng = np.random.default_rng(0)
        np.save(file, rng.normal(size=(ROWS, COLUMNS)) @ rng.normal(size=(COLUMNS, COLUMNS)))
        command = [sys.executable, "-m", "baselines.harness", "compare", "--data", str(file)]
        command += ["--depths", "1", "--steps", str(options.steps), "--jobs", "2"]
        command += ["--models", *options.models, "--seeds", *options.seeds]
        whole = {"check": True, "stdout": DEVNULL}
        subprocess.run([*command, "--out", peace], **whole)
        for kill in range(options.kills):
            row = struck(command, war, draw.uniform(0, options.pause))
            if row is None:
                break
            yield kill + 1, *row
        subprocess.run([*command, "--out", war], **whole)
        one, other = compared(peace), compared(war)
    same = "equal" if one.equals(other) else f"NOT equal: {one.compare(other).to_dict()}"
    notes.append(f"{len(one)} rows, {len(one.columns)} columns: {same}")
    statuses = ", ".join(sorted(set(one["status"])))
    notes.append(f"{' '.join(options.models)}, {options.steps} steps, status {statuses}")


def compared(out: Path) -> pandas.DataFrame:
    """results.csv, without times and memory."""
    table = pandas.read_csv(out / "results.csv", dtype=str)
    return table.loc[:, [not any(word in name for word in MEASURED) for name in table]]


def main(argv: Sequence[str] | None = None) -> None:
    """Run every family, or the command, in peace and under kills; write the table where asked."""
    parser = parser_of(__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    alone = commands.add_parser("training", formatter_class=parser.formatter_class)
    alone.add_argument("--families", nargs="+", default=list(FAMILIES), choices=list(FAMILIES))
    alone.add_argument("--interval", type=int, default=5, help="steps between two checkpoints")
    alone.add_argument("--core", type=int, default=0)
    alone.set_defaults(kills=20, steps=240)
    whole = commands.add_parser("comparison", formatter_class=parser.formatter_class)
    whole.add_argument("--models", nargs="+", default=["ffjord", "maf", "nice"])
    whole.add_argument("--seeds", nargs="+", default=["0", "1"])
    whole.add_argument("--pause", type=float, default=6.0, help="seconds after a new checkpoint")
    whole.set_defaults(kills=5, steps=300)
    for command in (alone, whole):
        command.add_argument("--kills", type=int, help="at most")
        command.add_argument("--steps", type=int)
        command.add_argument("--seed", type=int, default=0, help="of the moments")
        command.add_argument("--write", action="store_true", help="into results/")
    options = parser.parse_args(argv)
    if options.command == "training":
        torch.set_num_threads(1)
        pin(options.core)
        same = ("same weights", "same history")
        header = ("family", "kills", *same, "steps in peace", "steps in all", "bound", "within it")
        notes = [
            f"{options.steps} steps, a checkpoint every {options.interval}; weights and batch "
            "statistics, and the history without its seconds, compared bit for bit"
        ]
        report("kills" if options.write else None, header, training(options), notes)
        return
    notes = []
    header = ("kill", "after", "cells done", "in the middle", "of these gone on since the last")
    name = "killed_comparison" if options.write else None
    report(name, header, comparison(options, notes), notes)
    if "NOT equal" in notes[0]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
