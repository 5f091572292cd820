"""The picture of flows that were trained on densities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from baselines.harness.plots import style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["targets"]


def targets(results: Mapping[str, Sequence[tuple[str, Mapping[str, Any]]]]) -> Figure | None:
    """Return log Z less the truth, and the effective sample size, a row for each target.

    Args:
        results: by target, label and result of each cell, as its file has it.

    """
    if not results:
        return None
    labels = list(dict.fromkeys(label for own in results.values() for label, _ in own))
    with style.drawing():
        height = 0.7 + 0.24 * len(labels)
        figure, grid = style.grid_of(len(results), 2, 4.4, height)
        for row, (name, own) in zip(grid, results.items(), strict=True):
            errors, sizes = row
            for label, result in own:
                at = labels.index(label)
                colour = f"C{at % 8}"
                off = result["log_z"] - result["log_normaliser"]
                errors.errorbar(
                    off, at, xerr=2 * result["log_z_error"], fmt="o", ms=3.5, lw=1, color=colour
                )
                sizes.plot(100 * result["ess"], at, "o", ms=3.5, color=colour)
            errors.axvline(0, color="0.6", lw=1)
            errors.locator_params(axis="x", nbins=5)
            sizes.set(xscale="log", xlim=(0.01, 130))
            style.label_if_log(sizes.xaxis)
            for axes in (errors, sizes):
                axes.set(yticks=range(len(labels)), ylim=(len(labels) - 0.5, -0.5))
            errors.set_yticklabels(labels, fontsize=7)
            sizes.set_yticklabels([])
            style.plain(errors, f"{name}: log Z - truth")
            style.plain(sizes, f"{name}: effective size, %")
    return figure
