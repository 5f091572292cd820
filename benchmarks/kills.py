"""kill -9 at random moments of a run of each family: what it costs, and whether a bit changes.

    python benchmarks/kills.py --write

Each family trains once in peace, and once in a process that is killed again and again and resumed
from its checkpoint. A moment is a random number of steps after the resumption, none among them, and
a random part of a step more; it may fall on the writing of a checkpoint or on its reading. The
table counts every step that an optimiser took, the repeated ones included, against the bound: those
of the peaceful run and one checkpoint interval for each kill.
"""

from __future__ import annotations

import argparse
import mmap
import os
import random
import signal
import struct
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from common import machine, pin, table, write_result
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from baselines import IAF, MAF, NICE, RealNVP
from cflows import FFJORD, FixedGrid, Flow, Lagged, fit

HIDDEN = (16, 16)
GRID = FixedGrid("midpoint", 4)

# Parts with a state of their own where there are any: batch norm's statistics, random probes, the
# lagged solver's number of steps.
FAMILIES: Mapping[str, tuple[Callable[[], Flow], str]] = {
    "FFJORD": (
        lambda: FFJORD(
            2,
            hidden=HIDDEN,
            divergence="hutchinson",
            training_solver=Lagged("bosh3", 1e-3),
            evaluation_solver=GRID,
        ),
        "forward_kl",
    ),
    "FFJORD (matching)": (
        lambda: FFJORD(2, hidden=HIDDEN, evaluation_solver=GRID),
        "flow_matching",
    ),
    "MAF": (lambda: MAF(2, layers=2, hidden=HIDDEN, batch_norm=True), "forward_kl"),
    "IAF": (lambda: IAF(2, layers=2, hidden=HIDDEN), "forward_kl"),
    "RealNVP": (lambda: RealNVP(2, layers=4, hidden=HIDDEN, batch_norm=True), "forward_kl"),
    "NICE": (lambda: NICE(2, layers=4, hidden=HIDDEN), "forward_kl"),
}


class Counter:
    """A number that a killed process leaves behind."""

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, 8)

    @property
    def value(self) -> int:
        """How often ``add`` was called, in any process."""
        return int(struct.unpack("q", self.memory[:8])[0])

    def add(self, *_: Any) -> None:
        """One more."""
        self.memory[:8] = struct.pack("q", self.value + 1)


def started(name: str, folder: Path, counter: Counter, options: argparse.Namespace) -> int:
    """Train in a process of its own, from the folder's checkpoint if there is one; its id."""
    if child := os.fork():
        return child
    status = 1
    try:
        register_optimizer_step_post_hook(counter.add)
        build, objective = FAMILIES[name]
        torch.manual_seed(0)
        flow, rows = build(), torch.randn(1000, 2) @ torch.tensor([[2.0, 0.5], [0.0, 0.3]])
        history = fit(
            flow, rows[:800], rows[800:], objective=objective, steps=options.steps, batch_size=64,
            validate_every=4 * options.interval, checkpoint_every=options.interval, ema=0.9,
            checkpoint=folder / "checkpoint.pt", progress=False,
        )  # fmt: skip
        columns = {k: v for k, v in history.columns().items() if k != "seconds"}
        torch.save({"state": flow.state_dict(), "columns": columns}, folder / "end.pt")
        status = 0
    finally:
        os._exit(status)  # without the parent's clean-up


def finished(child: int) -> bool:
    """Whether a process has come to its end by itself.

    Raises:
        SystemExit: it failed.

    """
    found, status = os.waitpid(child, os.WNOHANG)
    if found and os.waitstatus_to_exitcode(status):
        raise SystemExit("a training process failed: see its traceback above")
    return bool(found)


def killed(child: int, counter: Counter, steps: int, pause: float) -> bool:
    """Kill a process after so many steps and seconds more; False where it ended before."""
    goal = counter.value + steps
    while counter.value < goal:
        if finished(child):
            return False
        time.sleep(1e-3)
    time.sleep(pause)
    if finished(child):
        return False
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return True


def end_of(folder: Path) -> tuple[dict[str, Tensor], dict[str, list[Any]]]:
    """The state and the history that a run left."""
    found = torch.load(folder / "end.pt", weights_only=True)
    return found["state"], found["columns"]


def row(name: str, options: argparse.Namespace, draw: random.Random) -> list[object]:
    """A line of the table: one family in peace and under kills."""
    with tempfile.TemporaryDirectory() as place:
        peace, war = Path(place) / "peace", Path(place) / "war"
        peace.mkdir()
        war.mkdir()
        counter, begun = Counter(), time.perf_counter()
        child = started(name, peace, counter, options)
        while not finished(child):
            time.sleep(1e-3)
        step = (time.perf_counter() - begun) / options.steps
        alone, counter, kills = counter.value, Counter(), 0
        child = started(name, war, counter, options)
        while kills < options.kills:
            after = draw.randint(
                0, 3 * options.steps // (2 * options.kills)
            )  # so that all find room
            if not killed(child, counter, after, draw.uniform(0, 2 * step)):
                break
            kills += 1
            child = started(name, war, counter, options)
        else:
            while not finished(child):
                time.sleep(1e-3)
        (state, columns), (other, others) = end_of(peace), end_of(war)
    weights = all(torch.equal(value, other[key]) for key, value in state.items())
    bound = alone + kills * options.interval
    return [
        name, kills, "yes" if weights else "NO", "yes" if columns == others else "NO",
        alone, counter.value, bound, "yes" if counter.value <= bound else "NO",
    ]  # fmt: skip


def main() -> None:
    """Run every family; write the table where asked."""
    parser = argparse.ArgumentParser(
        description=str(__doc__).splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--families", nargs="+", default=list(FAMILIES), choices=list(FAMILIES))
    add("--kills", type=int, default=20)
    add("--steps", type=int, default=240)
    add("--interval", type=int, default=5, help="steps between two checkpoints")
    add("--seed", type=int, default=0, help="of the moments")
    add("--core", type=int, default=0)
    add("--write", action="store_true", help="write results/kills.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    pin(options.core)
    # The first step of torch's first optimiser imports for seconds: here, and not in each child.
    torch.optim.AdamW([torch.zeros(1, requires_grad=True)]).step()
    draw = random.Random(options.seed)
    lines = []
    for name in options.families:
        lines.append(row(name, options, draw))
        print(*lines[-1], flush=True)
    header = [
        "family", "kills", "same weights", "same history", "steps in peace", "steps in all",
        "bound", "within it",
    ]  # fmt: skip
    facts = ", ".join(f"{key} {value}" for key, value in machine().items())
    text = (
        f"{options.steps} steps, a checkpoint every {options.interval}; weights and batch "
        f"statistics, and the history without its seconds, compared bit for bit\n\n"
        f"{table(header, lines)}\n{facts}"
    )
    print(text)
    if options.write:
        write_result("kills", text)


if __name__ == "__main__":
    main()
