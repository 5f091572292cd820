"""``cflows targets``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from baselines.harness.cli.errors import fail
from baselines.harness.cli.options import usual_jobs
from cflows.core.atomic_write import write_whole

__all__ = ["targets"]

MODELS = ["iaf", "realnvp", "spline", "ffjord-matching"]
DRAWS = 20_000
SECONDS = 60.0


def targets(options: argparse.Namespace) -> int:
    """Train the cells that are not there yet, print each as it ends, write table and picture."""
    from baselines.harness.data.targets import TARGETS
    from baselines.harness.experiment.progress import say
    from baselines.harness.experiment.targets import WAYS, finished, planned, trained
    from baselines.harness.plots import style
    from baselines.harness.plots import targets as pictures
    from baselines.harness.report import targets as tables

    names = options.data or list(TARGETS)
    models = options.models or MODELS
    seconds = options.budget or (5.0 if options.quick else SECONDS)
    draws = 2000 if options.quick else DRAWS
    seeds = options.seeds or ([0] if options.quick else [0, 1, 2])
    out = options.out or Path("results") / ("targets" + "-quick" * options.quick)
    cells = planned(names, models, options.by or WAYS, seeds, seconds, draws)
    if not cells:
        fail("nothing to train: a model that matching trains needs --by annealed")
    waiting = [cell for cell in cells if finished(cell, out) is None]
    jobs = options.jobs or usual_jobs()
    say(f"{len(cells)} cells on {jobs} process(es), one thread each, into {out}")
    if waiting:
        rounds = -(-len(waiting) // jobs)
        say(f"{len(waiting)} to train, about {max(1, round(rounds * seconds / 60))} min left")
    failed: list[dict[str, Any]] = []
    for cell, result in trained(cells, out, jobs):
        failed += [result] if "error" in result else []
        reached = result.get("error")
        if reached is None:
            off = result["log_z"] - result["log_normaliser"]
            reached = (
                f"log Z - truth {off:+.3f} ± {2 * result['log_z_error']:.3f}, "
                f"effective sample size {100 * result['ess']:.2g} %"
            )
        say(f"{cell.target}, {cell.model}, {cell.way}, seed {cell.seed}: {reached}")
    done = [told for cell in cells if (told := finished(cell, out)) is not None]
    table = tables.text([*done, *failed], options.command)
    write_whole(out / "targets.md", table)
    by_target = {
        name: [(tables.label(one), one) for one in done if one["target"] == name]
        for name in names
        if any(one["target"] == name for one in done)
    }
    figure = pictures.targets(by_target)
    if figure is not None:
        write_whole(out / "targets.png", style.encode(figure)[0])
    say("\n" + table)
    say(f"the table, and its picture beside it: {out / 'targets.md'}")
    return 1 if failed else 0
