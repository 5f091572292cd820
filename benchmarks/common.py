"""What the benchmark scripts share: how to time, how to compare, how to write it down.

A machine drifts: its clock, its neighbours, its temperature. So arms are timed in turns and
compared run by run, and what is reported is a median with its quartiles, never one number.
"""

from __future__ import annotations

import gc
import math
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from cflows.core.atomic_write import write_whole

__all__ = [
    "RESULTS",
    "Spread",
    "alternate",
    "comparison",
    "machine",
    "pin",
    "ratio",
    "spread",
    "table",
    "write_result",
]

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Spread:
    """The distribution of repeated measurements, in five numbers.

    Attributes:
        median: the middle.
        low: the lower quartile.
        high: the upper quartile.
        minimum: the least.
        maximum: the greatest.
        runs: how many measurements.
        unit: "x" for ratios, "s" for seconds (shown as s, ms or µs).

    """

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


def alternate(
    arms: Mapping[str, Callable[[], object]], *, runs: int = 7, warmup: int = 2
) -> dict[str, list[float]]:
    """Time every arm ``runs`` times in turns: A B C, then B C A, then C A B, ...

    On one thread of torch's, with garbage collected between the runs and never within one. Work
    queued on a CUDA device is waited for; an arm of another framework waits for its own, and keeps
    to one thread because ``pin`` leaves it one core.

    Args:
        arms: name -> what to time.
        runs: timed rounds.
        warmup: rounds before them, not timed.

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
    return "".join(
        "| " + " | ".join(map(str.ljust, row, widths)) + " |\n" for row in cells
    )  # fmt: skip


def machine() -> dict[str, str | int]:
    """What a number was measured on: processor, cores (all, usable), versions, threads, device."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cuda = torch.cuda.is_available()
    return {
        "processor": _processor(),
        "cores": os.cpu_count() or 1,
        "usable_cores": usable or 1,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def pin(core: int = 0) -> bool:
    """Hold the whole process, threads already running included, to one core.

    Args:
        core: which of the cores that the process may use now; counted on from the first where there
            are fewer.

    Returns:
        Whether it was done: not every system can.

    """
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
    _synchronise()
    start = time.perf_counter()
    arm()
    _synchronise()
    return time.perf_counter() - start


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _readable(seconds: float) -> tuple[float, str]:
    if seconds >= 1:
        return 1.0, " s"
    return (1e3, " ms") if seconds >= 1e-3 else (1e6, " µs")


def _digits(value: float) -> str:
    """Three significant digits, never an exponent."""
    magnitude = math.floor(math.log10(abs(value))) if value else 0
    return f"{value:.{max(0, 2 - magnitude)}f}"


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def comparison(
    command: str, name: str, argv: Sequence[str] | None = None, quick_models: Sequence[str] = ()
) -> int:
    """Run a command of ``cflows`` with what the scripts of its name have by default.

    Args:
        command: ``"likelihood"``, ``"sampling"`` or ``"depth"``.
        name: of the report's directory below results/.
        argv: the options; None for those of this process.
        quick_models: of a quick look that names none; by default those of the command.

    Returns:
        the command's exit status.

    """
    from baselines.harness.cli import main

    given = list(sys.argv[1:] if argv is None else argv)
    quick = "--quick" in given
    if "--out" not in given:
        given += ["--out", f"results/{name}" + ("-quick" if quick else "")]
    if quick and "--data" not in given:
        given += ["--data", "pinwheel"]
    if quick and quick_models and "--models" not in given:
        given += ["--models", *quick_models]
    if "--jobs" not in given and not quick:
        given += ["--jobs", "1"]
    return main([command, *given])
