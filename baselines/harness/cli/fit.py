"""``cflows fit | score | sample``."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

from baselines.harness.cli import torchrun
from baselines.harness.cli.options import (
    add_device,
    add_table_options,
    device_for,
    refuse_numbers,
    refuse_seed,
)

__all__ = ["add_commands", "fit", "sample", "score"]


def add_commands(commands: Any) -> None:
    """Add the three commands to a parser's subcommands."""
    for name, add_options, run, help_text in (
        ("fit", _add_fit_options, fit, "train one model on a table, and keep it with its columns"),
        ("score", _add_score_options, score, "the log-density of each row of a file, in nats"),
        ("sample", _add_sample_options, sample, "rows drawn from a model, in its table's units"),
    ):
        command = commands.add_parser(name, help=help_text, description=help_text)
        add_options(command)
        add_device(command)
        command.set_defaults(run=run)


def _add_fit_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    number = partial(add, type=int, metavar="N")
    add(
        "--model",
        required=True,
        metavar="NAME",
        help="a name of compare's, or your own FILE.py:FUNCTION or MODULE:FUNCTION",
    )
    add(
        "--data",
        required=True,
        metavar="NAME|FILE",
        help="a data set, or a table: .csv, .tsv, .txt (also .gz), .parquet, .feather, .npy, "
        ".npz; - for standard input",
    )
    add(
        "--context",
        nargs="+",
        metavar="COLUMN",
        default=[],
        help="columns that are given to the model and not modelled",
    )
    add(
        "--weights",
        metavar="COLUMN",
        help="the column that says how much each row counts, not negative and not modelled; in "
        "training, validation and the figures",
    )
    add_table_options(command)
    add(
        "--out",
        required=True,
        type=_output,
        metavar="MODEL",
        help="the model's file; one that is there is replaced by the whole new one",
    )
    number("--depth", help="default: the model's deepest in a comparison")
    number(
        "--steps",
        help="default: the model's own, below 5000 rows fewer, or as many as --seconds allow",
    )
    add(
        "--seconds",
        type=float,
        metavar="S",
        help="training seconds at most, of which the choice that --preprocess auto makes takes "
        "about a fifth",
    )
    number("--seed", default=0, help="default: 0")
    add(
        "--preprocess",
        choices=["auto", "standardise", "whiten", "none"],
        default="auto",
        help="the map of the rows; auto (default) tries both on validation rows",
    )
    add(
        "--checkpoint",
        type=Path,
        metavar="PATH",
        help="kept while training, the choice of the map beside it in PATH.map; where they are, "
        "the same command goes on",
    )
    add("--quick", action="store_true", help="few steps: a first look")


def _add_score_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("model", metavar="MODEL", type=Path)
    add(
        "--data",
        required=True,
        type=Path,
        metavar="FILE",
        help="a table, as fit takes it; its columns are found by name",
    )
    add(
        "--context",
        type=Path,
        metavar="FILE",
        help="the context of a conditional model, a row for each row of --data or one for all, "
        "where --data does not hold it",
    )
    _add_out(command)


def _add_sample_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    number = partial(add, type=int, metavar="N")
    add("model", metavar="MODEL", type=Path)
    number("-n", required=True, help="how many rows, or how many for each row of --context")
    add("--context", type=Path, metavar="FILE", help="the context of a conditional model")
    _add_out(command)
    number("--seed", default=0, help="default: 0")


def _add_out(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--out",
        required=True,
        type=_output,
        metavar="FILE",
        help=".csv or .npy; - for standard output, as .csv",
    )


def _output(text: str) -> Path:
    return Path("/dev/stdout" if text == "-" else text)


def fit(options: argparse.Namespace, command: str) -> int:
    """Train a model on a table and write its file."""
    refuse_numbers(options, "--steps", "--seconds", "--depth")
    refuse_seed(options.seed)
    from baselines.harness.estimator import commands
    from baselines.harness.estimator.task import Task

    task = Task(
        model=options.model,
        data=options.data,
        out=options.out,
        depth=options.depth,
        steps=options.steps,
        seconds=options.seconds,
        seed=options.seed,
        preprocess=options.preprocess,
        device=device_for(options.device),
        checkpoint=options.checkpoint,
        quick=options.quick,
        context=tuple(options.context),
        weights=options.weights,
        dequantise=options.dequantise,
        bounds=dict(options.bounds),
        columns=options.columns and tuple(options.columns),
        drop=tuple(options.drop),
    )
    with torchrun.joined(task.device):
        commands.train(task)
    return 0


def score(options: argparse.Namespace, command: str) -> int:
    """Write the log-density of each row."""
    from baselines.harness.estimator import commands

    commands.score(
        options.model, options.data, options.out, device_for(options.device), options.context
    )
    return 0


def sample(options: argparse.Namespace, command: str) -> int:
    """Write rows drawn from a model."""
    refuse_numbers(options, "-n")
    refuse_seed(options.seed)
    from baselines.harness.estimator import commands

    commands.sample(
        options.model,
        options.n,
        options.out,
        options.seed,
        device_for(options.device),
        options.context,
    )
    return 0
