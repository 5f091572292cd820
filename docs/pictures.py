"""What the pages share: colours, densities on a grid, repeated timings, tables."""

from __future__ import annotations

import shlex
import sys
import tempfile
import time
import timeit
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, suppress
from html import escape
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib_inline.backend_inline import set_matplotlib_formats

from baselines.harness.cli import main

# Okabe and Ito's colours, as in the harness's pictures.
BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
YELLOW, BLUE, RED, PINK, GREY = "#F0E442", "#0072B2", "#D55E00", "#CC79A7", "#7F7F7F"

FOLDER = tempfile.TemporaryDirectory()
"""For the files that a page writes."""
EDGE = 4.0  # of the square that ``plane`` covers, from its middle

torch.set_num_threads(1)
set_matplotlib_formats("retina")
plt.style.use(Path(__file__).with_suffix(".mplstyle"))
plt.rc("axes", prop_cycle=plt.cycler(color=[BLUE, RED, GREEN, ORANGE, PINK, SKY, BLACK]))


def plane(cells: int = 160) -> torch.Tensor:
    """Points (cells², 2) of a square, row by row from the top, as ``show`` wants them."""
    side = torch.linspace(-EDGE, EDGE, cells)
    return torch.cartesian_prod(side.flip(0), side).flip(1)


def show(axes: Axes, log_density: torch.Tensor) -> None:
    """Draw exp(log_density) at the points of ``plane`` as a picture."""
    side = round(len(log_density) ** 0.5)
    density = log_density.detach().exp().view(side, side)
    axes.imshow(density, extent=(-EDGE, EDGE, -EDGE, EDGE))
    axes.set(xticks=[], yticks=[])
    axes.grid(visible=False)


def panels(count: int, size: float = 2.1) -> Axes | np.ndarray:
    """Axes of square panels beside each other, or those of a single one."""
    return plt.subplots(1, count, figsize=(size * count, size * 1.12))[1]


def milliseconds(work: Callable[[], object], repeats: int = 7) -> np.ndarray:
    """This thread's processor time of some calls, after one that does not count.

    Not the clock's: pages are built on machines that are busy with other things as well.
    """
    work()
    return 1e3 * np.sort(timeit.repeat(work, timer=time.thread_time, number=1, repeat=repeats))


def spread(times: np.ndarray) -> str:
    """Median, and the least and the greatest in brackets."""
    return f"{np.median(times):.3g} ({times[0]:.3g} to {times[-1]:.3g})"


def lines(
    axes: Axes, x: Sequence[float], times: Sequence[np.ndarray], label: str, color: str
) -> None:
    """Medians as a line, with bars from the least to the greatest."""
    low, middle, high = np.quantile(times, [0, 0.5, 1], axis=1)
    bars = [middle - low, high - middle]
    axes.errorbar(x, middle, bars, capsize=2, marker="o", markersize=4, label=label, color=color)


class Table:
    """A table that notebooks show as HTML."""

    def __init__(self, header: Sequence[object], rows: Sequence[Sequence[object]]) -> None:
        self.header, self.rows = header, rows

    def _repr_html_(self) -> str:
        head, *body = (
            "".join(f"<{tag}>{escape(str(value))}</{tag}>" for value in row)
            for tag, row in [("th", self.header), *(("td", row) for row in self.rows)]
        )
        rows = "".join(f"<tr>{row}</tr>" for row in body)
        return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def command(line: str) -> None:
    """Run a ``cflows`` command, and print it and what it says.

    Within this process: another one would import again what is here already.
    """
    print(f"$ {line}")
    with suppress(SystemExit), redirect_stderr(sys.stdout):
        main(shlex.split(line)[1:])
