"""What a comparison prints as it goes: a line a cell, with the time that is left; a bar besides.

Lines go to standard output, whatever that is; the bar is for a terminal alone.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from baselines.harness.experiment.cell import Cell
from baselines.harness.experiment.forecast import Forecast
from baselines.harness.results.records import Failure, Result
from baselines.models import registry

if TYPE_CHECKING:
    from tqdm.auto import tqdm

__all__ = ["Progress", "left", "line", "say"]


class Progress:
    """Count cells as they end, and say how long the others will take.

    Args:
        total: how many cells there are.
        forecast: of those that are not done yet.

    """

    def __init__(self, total: int, forecast: Forecast) -> None:
        self._total, self._count = total, 0
        self._forecast = forecast
        self._bar: tqdm | None = None

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            from tqdm.auto import tqdm

            self._bar = tqdm(total=self._total, unit="cell", leave=False, dynamic_ncols=True)
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def ended(self, cell: Cell, result: Result | Failure, *, before: bool = False) -> None:
        """Print a cell's line; what was there `before` the command began has cost nothing."""
        self._count += 1
        if not before:
            self._forecast.ended(cell)
        width = len(str(self._total))
        self.say(f"[{self._count:{width}}/{self._total}] {line(cell, result)}{self._remaining()}")
        if self._bar is not None:
            self._bar.update()
            self._bar.refresh()  # cells that end within a tenth of a second are counted too

    def say(self, text: str) -> None:
        """Print a line, above the bar where there is one."""
        if self._bar is None:
            say(text)
        else:
            self._bar.write(text, file=sys.stdout)

    def _remaining(self) -> str:
        return "" if self._count == self._total else f", {left(self._forecast.left())}"


def left(seconds: float) -> str:
    """Return what is said of the time that is left."""
    return f"about {_duration(seconds)} left"


def line(cell: Cell, result: Result | Failure) -> str:
    """Return what is said of a cell."""
    name = f"{cell.data} {cell.model}"
    if cell.depth is not None:
        name += f" {registry.find(cell.located).counted(cell.depth)}"
    if cell.view != "default":
        name += f" {cell.view}"
    if cell.seed:
        name += f" seed {cell.seed}"
    if result["status"] == "failed":
        return f"{name:32} failed: {result['error']}"
    bits = f"  {result['bits_per_dim']:.3f} bits/dim" if "bits_per_dim" in result else ""
    return (
        f"{name:32} test log-likelihood {result['test_log_prob']:9.3f} "
        f"± {result['test_log_prob_2se']:.3f}{bits}  ({result['train_seconds']:.0f} s)"
    )


def say(text: str) -> None:
    """Print a line at once, into a pipe too."""
    print(text, file=sys.stdout, flush=True)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
