"""What the pages share: colours, densities on a grid, repeated timings, tables."""

from __future__ import annotations

import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib_inline.backend_inline import set_matplotlib_formats

# Okabe and Ito's colours, as in the harness's pictures.
BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
YELLOW, BLUE, RED, PINK, GREY = "#F0E442", "#0072B2", "#D55E00", "#CC79A7", "#7F7F7F"

FOLDER = tempfile.TemporaryDirectory()
"""Where ``command`` runs, for the files that a page writes."""

torch.set_num_threads(1)
set_matplotlib_formats("retina")
plt.rcParams.update(
    {
        "figure.figsize": (6.4, 3.0),
        "figure.dpi": 110,
        "figure.constrained_layout.use": True,
        "figure.facecolor": "white",
        "font.size": 9,
        "axes.titlesize": 9.5,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.prop_cycle": plt.cycler(color=[BLUE, RED, GREEN, ORANGE, PINK, SKY, BLACK]),
        "grid.color": "#DDDDDD",
        "grid.linewidth": 0.6,
        "legend.frameon": False,
        "image.cmap": "magma",
    }
)


def plane(low: float = -4.0, high: float = 4.0, cells: int = 160) -> torch.Tensor:
    """Points (cells², 2) of a square, row by row from the top, as ``show`` wants them."""
    side = torch.linspace(low, high, cells)
    rows, columns = torch.meshgrid(side.flip(0), side, indexing="ij")
    return torch.stack([columns.flatten(), rows.flatten()], dim=-1)


def show(axes: Any, log_density: torch.Tensor, low: float = -4.0, high: float = 4.0) -> None:
    """Draw exp(log_density) at the points of ``plane`` as a picture."""
    side = round(len(log_density) ** 0.5)
    axes.imshow(log_density.detach().exp().view(side, side), extent=(low, high, low, high))
    axes.set(xticks=[], yticks=[])
    axes.grid(visible=False)


def panels(count: int, size: float = 2.1, **settings: Any) -> Any:
    """Axes of square panels beside each other."""
    _, axes = plt.subplots(1, count, figsize=(size * count, size * 1.12), **settings)
    return axes


def milliseconds(work: Callable[[], object], repeats: int = 7) -> np.ndarray:
    """This thread's processor time of some calls, after one that does not count.

    Not the clock's: pages are built on machines that are busy with other things as well.
    """
    work()
    found = []
    for _ in range(repeats):
        start = time.thread_time()
        work()
        found.append(1e3 * (time.thread_time() - start))
    return np.sort(found)


def spread(times: np.ndarray) -> str:
    """Median, and the least and the greatest in brackets."""
    return f"{np.median(times):.3g} ({times[0]:.3g} to {times[-1]:.3g})"


def lines(axes: Any, x: Sequence[float], times: Sequence[np.ndarray], **settings: Any) -> None:
    """Medians as a line, with bars from the least to the greatest."""
    middle = np.array([np.median(t) for t in times])
    below = middle - [t[0] for t in times]
    above = [t[-1] for t in times] - middle
    axes.errorbar(x, middle, [below, above], capsize=2, marker="o", markersize=4, **settings)


class Table:
    """A table that notebooks show as HTML."""

    def __init__(self, header: Sequence[object], rows: Sequence[Sequence[object]]) -> None:
        self.header, self.rows = header, rows

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{escape(str(name))}</th>" for name in self.header)
        body = "".join(
            "<tr>" + "".join(f"<td>{escape(str(value))}</td>" for value in row) + "</tr>"
            for row in self.rows
        )
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def command(line: str) -> None:
    """Run a ``cflows`` command in the folder of the page's files, and print it and what it says."""
    print(f"$ {line}")
    arguments = shlex.split(line)[1:]
    # The command itself may not be on the path of whoever builds these pages.
    done = subprocess.run(
        [sys.executable, "-m", "baselines.harness", *arguments],
        cwd=FOLDER.name,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    print(done.stdout, end="")
