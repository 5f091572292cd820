"""``cflows fit | score | sample``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from baselines.harness.cli import torchrun
from baselines.harness.cli.options import (
    add_device,
    add_table_options,
    adder,
    device_for,
    refuse_numbers,
    refuse_seed,
)

__all__ = ["add_commands", "fit", "sample", "score"]

FIT = {
    "--model": "a name of compare's, or your own FILE.py:FUNCTION or MODULE:FUNCTION",
    "--data": "a data set, or a table: .csv, .tsv, .txt (also .gz), .parquet, .feather, .npy, "
    ".npz; - for standard input",
    "--context": "columns that are given to the model and not modelled",
    "--weights": "the column that says how much each row counts, not negative and not modelled; in "
    "training, validation and the figures",
    "--out": "the model's file; one that is there is replaced by the whole new one",
    "--depth": "default: the model's deepest in a comparison",
    "--steps": "default: the model's own, below 5000 rows fewer, or as many as --seconds allow",
    "--seconds": "training seconds at most, of which the choice that --preprocess auto makes takes "
    "about a fifth",
    "--seed": "default: 0",
    "--preprocess": "the map of the rows; auto (default) tries both on validation rows",
    "--checkpoint": "kept while training, the choice of the map beside it in PATH.map; where they "
    "are, the same command goes on",
    "--quick": "few steps: a first look",
}
SCORE = {
    "--data": "a table, as fit takes it; its columns are found by name",
    "--context": "the context of a conditional model, a row for each row of --data or one for all, "
    "where --data does not hold it",
    "--out": ".csv or .npy; - for standard output, as .csv",
}
SAMPLE = {
    "-n": "how many rows, or how many for each row of --context",
    "--context": "the context of a conditional model",
    "--out": SCORE["--out"],
    "--seed": FIT["--seed"],
}


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
    add = adder(command, FIT)
    add("--model", required=True, metavar="NAME")
    add("--data", required=True, metavar="NAME|FILE")
    add("--context", nargs="+", metavar="COLUMN", default=[])
    add("--weights", metavar="COLUMN")
    add_table_options(command)
    add("--out", required=True, type=_output, metavar="MODEL")
    add("--depth", type=int, metavar="N")
    add("--steps", type=int, metavar="N")
    add("--seconds", type=float, metavar="S")
    add("--seed", type=int, default=0, metavar="N")
    add("--preprocess", choices=["auto", "standardise", "whiten", "none"], default="auto")
    add("--checkpoint", type=Path, metavar="PATH")
    add("--quick", action="store_true")


def _add_score_options(command: argparse.ArgumentParser) -> None:
    add = adder(command, SCORE)
    add("model", metavar="MODEL", type=Path)
    add("--data", required=True, type=Path, metavar="FILE")
    add("--context", type=Path, metavar="FILE")
    add("--out", required=True, type=_output, metavar="FILE")


def _add_sample_options(command: argparse.ArgumentParser) -> None:
    add = adder(command, SAMPLE)
    add("model", metavar="MODEL", type=Path)
    add("-n", type=int, required=True, metavar="N")
    add("--context", type=Path, metavar="FILE")
    add("--out", required=True, type=_output, metavar="FILE")
    add("--seed", type=int, default=0, metavar="N")


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
