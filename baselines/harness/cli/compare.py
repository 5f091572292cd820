"""``cflows compare | likelihood | sampling | depth | report``."""

from __future__ import annotations

import argparse
import errno
import sys
from pathlib import Path

from baselines.harness.cli.errors import fail, one_line
from baselines.harness.cli.options import DEFAULT_DATA, DEFAULT_MODELS, filled, usual_jobs
from cflows.core.atomic_write import write_whole

__all__ = ["compare", "report"]


def compare(options: argparse.Namespace) -> int:
    """Train the cells of a comparison that are not there yet, and report; the exit status."""
    from baselines.harness.experiment.cell import PATIENCE
    from baselines.harness.experiment.plan import default_seeds
    from baselines.harness.experiment.run import Plan, execute

    data, models = options.data or DEFAULT_DATA, options.models or DEFAULT_MODELS
    bare = options.steps is not None or (data, models) == (DEFAULT_DATA, DEFAULT_MODELS)
    if options.name == "depth" and not options.models:
        models = [*models, "planar", "ffjord-time"]  # the depth of the latter is no block
    seeds = options.seeds or default_seeds(options.name, quick=options.quick, bare=bare)
    own_jobs = 0 if options.executor == "slurm" else usual_jobs(options.device)
    if options.slurm and options.executor != "slurm":
        fail("--slurm goes with --executor slurm")
    usual_out = Path("results") / (options.name + ("-quick" if options.quick else ""))
    plan = filled(
        Plan,
        options,
        comparison=options.name,
        data=list(dict.fromkeys(data)),
        models=list(dict.fromkeys(models)),
        seeds=list(dict.fromkeys(seeds)),
        depths=options.depths or None,
        jobs=options.jobs or own_jobs,
        out=options.out or usual_out,
        bounds=dict(options.bounds),
        columns=tuple(options.columns) or None,
        drop=tuple(options.drop),
        parameters="equal" if options.equal_parameters else options.parameters,
        patience=options.patience or PATIENCE,
        cluster=dict(options.slurm),
    )
    return execute(plan)


def report(options: argparse.Namespace) -> None:
    """Write the report of a directory again, or print two of them side by side.

    A file that may not be written to ends it, unless others could be: then the rest is written.
    """
    from baselines.harness.report import compare_runs, contents

    if options.other is not None:
        print(compare_runs.text(options.directory, options.other))
        return
    print(contents.summary(options.directory))
    written, refused = [], []
    for path, content in contents.files(options.directory):
        try:
            write_whole(path, content)
            written.append(path)
        except OSError as error:
            if not isinstance(error, PermissionError) and error.errno != errno.EROFS:
                raise
            refused.append(one_line(error))
            if not written:
                break
    if path in written:
        print(f"\nthe report, with pictures: {path}")
    if refused:
        others = "the other files are written" if written else "nothing is written"
        print(f"cflows: {'; '.join(refused)}; {others}", file=sys.stderr)
