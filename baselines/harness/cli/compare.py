"""``cflows compare | likelihood | sampling | depth | report``."""

from __future__ import annotations

import argparse
import errno
import os
import sys
from pathlib import Path
from typing import Any

from baselines.harness.cli.errors import fail, one_line
from baselines.harness.cli.options import (
    SEEDS,
    add_device,
    add_table_options,
    adder,
    device_for,
    refuse_numbers,
)

__all__ = ["add_commands", "compare", "report"]

DEFAULT_DATA = ("pinwheel", "patches4")
DEFAULT_MODELS = ("ffjord", "ffjord-matching", "maf", "iaf", "realnvp", "nice")
COMPARISONS = {
    "compare": "likelihood, sampling cost and depth of several flows, in one report",
    "likelihood": "only the likelihood, each model at its deepest setting",
    "sampling": "only the cost of samples and densities, each model at its deepest setting",
    "depth": "only what depth buys",
}
EXECUTORS = ("local", "slurm", "submitit-local", "submitit-debug")
HELP = {
    "--data": "data sets, or tables: .csv, .tsv, .txt (also .gz), .parquet, .feather, .npy, .npz "
    f"(default: {' '.join(DEFAULT_DATA)})",
    "--models": "names, the papers' presets such as maf-power among them, or functions of your "
    f"own, FILE.py:FUNCTION or MODULE:FUNCTION (default: {' '.join(DEFAULT_MODELS)})",
    "--seeds": "default: 0 1 2; 0 with --quick, and for a compare of the default data and models "
    "or of --steps",
    "--depths": "layers of discrete flows, blocks of continuous ones",
    "--budget": "training seconds a cell: models compared at equal wall-clock",
    "--parameters": "models compared at equal size: widths are solved for so that each has N "
    "parameters; beside --budget a second view of the same models",
    "--equal-parameters": "likewise, N the median of the models' own",
    "--steps": "training steps a cell (default: each model's own; likelihood: until --patience "
    "ends it)",
    "--patience": "validations without a better one that end a training (default: 30)",
    "--preprocess": "the map behind each model; auto (default) tries both on validation rows, and "
    "whitens with --quick",
    "--out": "default: results/COMMAND, with -quick for --quick",
    "--quick": "few steps: a first look in about two minutes",
    "--jobs": "cells trained at a time, one thread each (default: the processors)",
    "--executor": "slurm: each cell a job of a cluster, by submitit",
    "--slurm": "of its jobs: partition=gpu time=600 account=...",
    "report": "write tables and pictures again from DIR, or lay two directories side by side",
    "other": "laid beside the first one; nothing is written",
}


def add_commands(commands: Any) -> None:
    """Add the comparisons, and the report of one, to a parser's subcommands."""
    for name, help_text in COMPARISONS.items():
        command = commands.add_parser(name, help=help_text, description=help_text)
        _add_options(command)
        command.set_defaults(run=compare, comparison=name)
        if name == "depth":  # planar maps, and the one depth of a continuous flow that is no block
            command.set_defaults(models=[*DEFAULT_MODELS, "planar", "ffjord-time"])
    command = commands.add_parser("report", help=HELP["report"])
    add = adder(command, HELP)
    add("directory", metavar="DIR", type=Path)
    add("other", metavar="DIR", type=Path, nargs="?")
    command.set_defaults(run=report)


def _add_options(command: argparse.ArgumentParser) -> None:
    add = adder(command, HELP)
    add("--data", nargs="+", metavar="NAME|FILE", default=list(DEFAULT_DATA))
    add_table_options(command)
    add("--models", nargs="+", metavar="NAME", default=list(DEFAULT_MODELS))
    add("--seeds", nargs="+", type=int, metavar="N")
    add("--depths", nargs="+", type=int, metavar="N")
    add("--budget", type=float, metavar="SECONDS")
    size = adder(command.add_mutually_exclusive_group(), HELP)
    size("--parameters", type=int, metavar="N")
    size("--equal-parameters", action="store_const", dest="parameters", const="equal")
    add("--steps", type=int, metavar="N")
    add("--patience", type=int, metavar="N")
    add("--preprocess", choices=["auto", "standardise", "whiten"], default="auto")
    add("--out", type=Path, metavar="DIR")
    add("--quick", action="store_true")
    add("--jobs", type=int, metavar="N")
    add("--executor", choices=EXECUTORS, default="local", metavar="local|slurm")
    add("--slurm", nargs="+", type=_setting, metavar="KEY=VALUE", default=[])
    add_device(command)


def _setting(text: str) -> tuple[str, str | int]:
    name, equals, value = text.partition("=")
    if not (name.isidentifier() and equals and value):
        raise argparse.ArgumentTypeError(f"write KEY=VALUE, as in partition=gpu; got {text}")
    return f"slurm_{name}", int(value) if value.isdigit() else value


def compare(options: argparse.Namespace, command: str) -> int:
    """Train the cells of a comparison that are not there yet, and report; the exit status."""
    refuse_numbers(options, "--steps", "--budget", "--jobs", "--patience")
    if options.parameters != "equal":
        refuse_numbers(options, "--parameters")
    if not all(0 <= seed < SEEDS for seed in options.seeds or ()):
        fail(f"--seeds must lie between 0 and 2**63 - 1, got {options.seeds}")
    from baselines.harness.experiment.cell import PATIENCE
    from baselines.harness.experiment.plan import default_seeds
    from baselines.harness.experiment.run import Plan, execute

    chosen = (options.data, options.models) != (list(DEFAULT_DATA), list(DEFAULT_MODELS))
    bare = options.steps is not None or not chosen
    seeds = options.seeds or default_seeds(options.comparison, quick=options.quick, bare=bare)

    device = device_for(options.device)
    jobs = options.jobs or (1 if device == "cuda" else _processors())
    if options.executor == "slurm":
        jobs = options.jobs or 0
    elif options.slurm:
        fail("--slurm goes with --executor slurm")
    default = Path("results") / (options.comparison + ("-quick" if options.quick else ""))
    return execute(
        Plan(
            comparison=options.comparison,
            data=list(dict.fromkeys(options.data)),
            models=list(dict.fromkeys(options.models)),
            seeds=list(dict.fromkeys(seeds)),
            depths=options.depths,
            steps=options.steps,
            budget=options.budget,
            quick=options.quick,
            device=device,
            jobs=jobs,
            out=options.out or default,
            command=command,
            preprocess=options.preprocess,
            dequantise=options.dequantise,
            bounds=dict(options.bounds),
            columns=options.columns and tuple(options.columns),
            drop=tuple(options.drop),
            parameters=options.parameters,
            patience=options.patience or PATIENCE,
            executor=options.executor,
            cluster=dict(options.slurm),
        )
    )


def report(options: argparse.Namespace, command: str) -> int:
    """Write the report of a directory again, or print two of them side by side."""
    from baselines.harness.report import compare_runs, contents

    if options.other is not None:
        print(compare_runs.text(options.directory, options.other))
        return 0
    print(contents.summary(options.directory))
    try:
        page = contents.write(options.directory)
    except OSError as error:
        if not isinstance(error, PermissionError) and error.errno != errno.EROFS:
            raise
        print(f"cflows: {one_line(error)}; nothing is written", file=sys.stderr)
    else:
        print(f"\nthe report, with pictures: {page}")
    return 0


def _processors() -> int:
    """Processors that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1
