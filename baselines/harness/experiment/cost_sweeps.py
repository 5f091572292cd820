"""What is measured after the cells, when nothing else runs: the sweeps of cost.

Each is kept beside what it is of, with the processor that it was measured on: a command that is
given again measures only what is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from baselines.harness.experiment import cells
from baselines.harness.experiment.cell import Cell
from baselines.harness.metrics import depth, scaling, timing
from baselines.harness.metrics.scaling import Made
from baselines.harness.results import layout
from baselines.models import registry
from baselines.models.model import CLOSED_FORM
from cflows import Flow, __version__

__all__ = ["measure"]

_SWEEPS = {"sampling": "features", "depth": "depth"}  # of the comparisons that have one


def measure(
    comparison: str,
    todo: Sequence[Cell],
    out: Path,
    chosen: Mapping[str, str],
    *,
    quick: bool,
    device: str,
    say: Callable[[str], object],
) -> None:
    """Measure what a comparison shows beside its cells, of the cells that are finished.

    ``sampling``: densities and samples of 1 row to many of every cell of the first seed,
    and the growth with the dimension. ``depth``: the solver's steps of every continuous cell at its
    deepest, and the growth with depth. Others: nothing. What cannot be measured is said, and stops
    nothing. ``chosen`` holds what ``registry.find`` knows each model by, under what tables call it.
    """
    if comparison not in _SWEEPS:
        return
    torch.set_num_threads(1)
    key = {"quick": quick, "processor": timing.processor(device), "version": __version__}

    def keep(cell: Cell, file: str, records_of: Callable[[Flow, Tensor, bool], list[Made]]) -> None:
        def make() -> list[Made]:
            return records_of(cells.flow_of(cell, out), cell.rows()[2], quick)

        try:
            scaling.kept_or_made(cell.folder(out) / file, key, make)
        except Exception as error:  # as in cells.run: it is this cell's, and stops no other
            say(f"{cell.data} {cell.model}: {file} failed: {' '.join(str(error).split())}")

    for cell in _chosen(todo, out):
        if comparison == "sampling":
            keep(cell, layout.ROWS, scaling.by_rows)
        elif cell.model not in CLOSED_FORM and registry.solvers(cell.located):
            keep(cell, layout.STEPS, depth.solver_steps)
    axis = _SWEEPS[comparison]
    say(f"timing untrained models against {'dimension' if axis == 'features' else 'depth'}")
    shown = {origin: model for model, origin in chosen.items() if origin != depth.END_TIME}
    known = {model: registry.configuration(origin, 2, 1) for origin, model in shown.items()}

    def swept() -> list[scaling.Sized]:
        records = scaling.sweep(axis, list(shown), quick, device)
        return [{**record, "model": shown[record["model"]]} for record in records]

    scaling.kept_or_made(
        out / layout.sweep(axis), {**key, "models": known, "device": device}, swept
    )


def _chosen(todo: Sequence[Cell], out: Path) -> list[Cell]:
    """The finished cells at their deepest, of the first seed of each data set, model and view."""
    first: dict[tuple[str, str, str], Cell] = {}
    for cell in sorted(todo, key=lambda cell: (-(cell.depth or 0), cell.seed)):
        if cells.finished(cell, out) is not None:
            first.setdefault((cell.data, cell.model, cell.view), cell)
    return list(first.values())
