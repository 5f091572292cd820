"""What the benchmark scripts share: how to time, how to compare, how to write it down.

A machine drifts: its clock, its neighbours, its temperature. So arms are timed in turns and
compared run by run, and what is reported is a median with its quartiles, never one number.
"""

from __future__ import annotations

import argparse
import gc
import math
import os
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.benchmark.utils.timer import timer  # waits for a CUDA device

from baselines.harness.metrics.timing import processor
from cflows import Flow
from cflows.core.atomic_write import write_beside, write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RESULTS = Path(__file__).parent / "results"
WORKS = ("iteration", "density", "sample")

Calls = dict[str, Callable[[], object]]
"""What is timed, by name."""


def parser_of(script: str | None) -> argparse.ArgumentParser:
    """A parser with the first line of a script's docstring, and defaults in its help."""
    return argparse.ArgumentParser(
        description=(script or "").partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )


def begun(parser: argparse.ArgumentParser, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The options, ``--core`` among them; from here the process keeps to one thread and core."""
    parser.add_argument("--core", type=int, default=0, help="that the process is held to")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    pin(options.core)
    return options


def report(
    name: str | None,
    header: Sequence[str],
    rows: Iterable[Sequence[object]],
    notes: Iterable[object] = (),
) -> None:
    """Print each row as it comes, then table, notes and machine, and write these where named.

    Rows are taken one by one, from what measures them; notes when the last row is there.
    """
    done = []
    for row in rows:
        print(*row, sep=" | ", flush=True)
        done.append(row)
    text = "\n".join([table(header, done), *map(str, notes), facts()])
    print("\n" + text)
    if name:
        write_result(name, text)


class Arm(NamedTuple):
    """A model to be timed: its parameters, its log-density, and how to draw so many rows."""

    model: nn.Module
    log_prob: Callable[[Tensor], Tensor]
    sample: Callable[[int], object]


def work(what: str, arm: Arm, x: Tensor) -> Callable[[], object]:
    """An iteration on rows x (N, D), their density or N draws; the last two without gradient."""
    if what == "iteration":
        return iteration(arm.model, lambda: -arm.log_prob(x).mean())
    return torch.no_grad()(
        (lambda: arm.log_prob(x)) if what == "density" else (lambda: arm.sample(len(x)))
    )


def iteration(
    model: nn.Module, loss: Callable[[], Tensor], rate: float = 0.0
) -> Callable[[], Tensor]:
    """A training iteration, with the review of a flow of ours; it returns the loss."""
    # At a rate of zero the step costs what it costs, and the weights stay.
    optimizer = torch.optim.Adam(model.parameters(), rate)
    review = getattr(model, "review", lambda: True)

    def iterate() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        review()
        optimizer.step()
        return value.detach()

    return iterate


def update(flow: Flow, optimizer: torch.optim.Optimizer, loss: Callable[[], Tensor]) -> Tensor:
    """One step as ``fit`` takes it; the loss of the batch."""
    for _ in range(3):  # again where a solve's error was far above its tolerance
        optimizer.zero_grad()
        value = loss()
        value.backward()
        if flow.review():
            break
    nn.utils.clip_grad_norm_(flow.parameters(), 5.0)
    optimizer.step()
    return value.detach()


def stir(model: nn.Module, std: float = 0.01) -> None:
    """Draw the parameters that are zero: at the identity there is little to do."""
    for part in model.parameters():
        if not part.any():
            nn.init.normal_(part, std=std)


@dataclass(frozen=True)
class Spread:
    """Repeated measurements: median, quartiles and extremes; the unit is "x" or "s"."""

    median: float
    low: float
    high: float
    minimum: float
    maximum: float
    runs: int
    unit: str = ""

    def __str__(self) -> str:
        scale, unit = _readable(self.median) if self.unit == "s" else (1.0, self.unit)
        median, low, high = (_digits(scale * v) for v in (self.median, self.low, self.high))
        return f"{median}{unit} ({low}-{high}, {self.runs} runs)"


def alternate(arms: Calls, *, runs: int = 7, warmup: int = 2) -> dict[str, list[float]]:
    """Time every arm ``runs`` times in turns: A B C, then B C A, then C A B, ...

    After ``warmup`` rounds that are not timed, on one thread of torch's, with garbage collected
    between the runs and never within one. Work queued on a CUDA device is waited for; an arm of
    another framework waits for its own, and keeps to one thread because ``pin`` leaves it one core.

    Returns:
        Name -> seconds, ``runs`` of them, in the order of the rounds.

    """
    names = list(arms)
    times: dict[str, list[float]] = {name: [] for name in names}
    with _one_quiet_thread():
        for turn in range(-warmup, runs):
            start = turn % len(names)
            for name in names[start:] + names[:start]:
                seconds = _seconds(arms[name])
                if turn >= 0:
                    times[name].append(seconds)
    return times


def ratio(times: Mapping[str, Sequence[float]], arm: str, against: str) -> Spread:
    """How many times as long ``arm`` takes as ``against``: run i over run i, then the spread.

    Neighbours in time share the machine's state, so the ratios spread less than the times do.

    Raises:
        ValueError: the arms were not run equally often.

    """
    return spread([a / b for a, b in zip(times[arm], times[against], strict=True)], unit="x")


def spread(values: Sequence[float], unit: str = "s") -> Spread:
    """Median, quartiles (linear interpolation), minimum and maximum of measurements."""
    minimum, low, median, high, maximum = np.quantile(values, (0, 0.25, 0.5, 0.75, 1)).tolist()
    return Spread(median, low, high, minimum, maximum, len(values), unit)


def table(header: Sequence[object], rows: Sequence[Sequence[object]]) -> str:
    """Render a Markdown table, its columns aligned in plain text too."""
    cells = [[str(cell).replace("|", "\\|") for cell in row] for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    cells.insert(1, ["-" * width for width in widths])
    return "".join(f"| {' | '.join(map(str.ljust, row, widths))} |\n" for row in cells)


def machine() -> dict[str, str | int]:
    """What a number was measured on: processor, cores (all, usable), versions, threads, device."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cuda = torch.cuda.is_available()
    return {
        "processor": processor(),
        "cores": os.cpu_count() or 1,
        "usable_cores": usable or 1,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def facts() -> str:
    """The machine in one line."""
    return ", ".join(f"{key} {value}" for key, value in machine().items())


def pin(core: int = 0) -> bool:
    """Hold the process, running threads included, to a usable core; False where none can be."""
    if not hasattr(os, "sched_setaffinity"):
        return False
    usable = sorted(os.sched_getaffinity(0))
    # The call moves one thread, and those that it starts later.
    for thread in os.listdir("/proc/self/task"):
        os.sched_setaffinity(int(thread), {usable[core % len(usable)]})
    return True


def write_result(name: str, text: str) -> Path:
    """Write ``results/NAME.md``, whole or not at all, and return its path."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.md"
    write_whole(path, text.rstrip() + "\n")
    return path


def save_picture(name: str, figure: Figure) -> None:
    """Write ``results/NAME.png``, whole or not at all."""
    path = RESULTS / f"{name}.png"
    write_beside(path, lambda beside: figure.savefig(beside, format="png", dpi=150))


@contextmanager
def _one_quiet_thread() -> Iterator[None]:
    threads, collecting = torch.get_num_threads(), gc.isenabled()
    torch.set_num_threads(1)
    gc.disable()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        if collecting:
            gc.enable()


def _seconds(arm: Callable[[], object]) -> float:
    gc.collect()
    start = timer()
    arm()
    return timer() - start


def _readable(seconds: float) -> tuple[float, str]:
    if seconds >= 1:
        return 1.0, " s"
    return (1e3, " ms") if seconds >= 1e-3 else (1e6, " µs")


def _digits(value: float) -> str:
    """Three significant digits, never an exponent."""
    magnitude = math.floor(math.log10(abs(value))) if value else 0
    return f"{value:.{max(0, 2 - magnitude)}f}"
