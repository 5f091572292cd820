"""``cflows data list | fetch | check``."""

from __future__ import annotations

import argparse
from pathlib import Path
from textwrap import TextWrapper
from typing import TYPE_CHECKING, Any

import numpy as np

from baselines.harness.cli.options import add_columns, adder

if TYPE_CHECKING:
    from baselines.harness.data import Dataset

__all__ = ["add_commands", "check", "fetch", "listing"]

HELP = {
    "list": "what there is, its size, source and licence, and whether it is here",
    "fetch": "download sets once; the five tables from one archive of 857 MB, converted into what "
    "is mapped into memory",
    "check": "checksums, statistics, the log-likelihood of a Gaussian",
    "--from": "data.tar.gz, or the folder that was unpacked from it, in place of a download; "
    "likewise the folder of a set of images",
}
NAMES = {
    "list": "data sets (default: all)",
    "fetch": "power, gas, hepmass, miniboone, bsds300, mnist, fashion_mnist, cifar10",
    "check": "data sets, or tables",
}
LINES = TextWrapper(110, " " * 14, " " * 16, break_long_words=False, break_on_hyphens=False)


def add_commands(commands: Any) -> None:
    """Add ``data`` and its actions to a parser's subcommands."""
    parser = commands.add_parser("data", help="the data sets: list, fetch, check")
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    for action, run in (("list", listing), ("fetch", fetch), ("check", check)):
        command = actions.add_parser(action, help=HELP[action], description=HELP[action])
        count = "*" if action == "list" else "+"
        command.add_argument("names", metavar="NAME", nargs=count, help=NAMES[action])
        command.set_defaults(run=run)
        if action == "fetch":
            adder(command, HELP)("--from", dest="given", type=Path, metavar="FILE|DIR")
        if action == "check":
            add_columns(command)


def listing(options: argparse.Namespace, command: str) -> int:
    """Print what each data set is, its size, source and licence, and whether it is here.

    Nothing is loaded.

    Raises:
        DataError: an unknown name, or a converted set that is damaged.

    """
    from baselines.harness import data

    for name in options.names or data.names():
        about = data.entry(name)
        sizes = " / ".join(f"{size:,}" for size in about.sizes)
        print(f"{name:14}{about.about}")
        for line in (
            f"{about.columns} columns, {sizes} rows to train / validate / test",
            f"source: {about.source}",
            f"licence: {about.licence}",
            f"here: {about.here() or _how(name)}",
        ):
            print(LINES.fill(line))
    return 0


def _how(name: str) -> str:
    """How a set comes here that is not."""
    from baselines.harness.data import fetching

    if name in fetching.NAMES:
        return f"no; cflows data fetch {name}"
    return "no; pip install 'cflows[bench]'"


def fetch(options: argparse.Namespace, command: str) -> int:
    """Download the archive, or take a copy of it, and convert sets.

    Raises:
        DataError: see ``fetching.fetch``.

    """
    from baselines.harness.data import fetching

    fetching.fetch(options.names, options.given, say=lambda line: print(line, flush=True))
    return 0


def check(options: argparse.Namespace, command: str) -> int:
    """Print the checksum of rows, their statistics and a Gaussian's log-likelihood.

    A converted set is read as a whole, and compared with the checksums of its manifest.

    Raises:
        DataError: a name or file that cannot be loaded; rows that are not what was written, or
            have no Gaussian.

    """
    from baselines.harness import data

    for name in options.names:
        _check(name, data.load(name, columns=options.columns, drop=options.drop))
    return 0


def _check(name: str, rows: Dataset) -> None:
    from baselines.harness.data import store

    stored = bool(rows.known_checksum)
    if stored:
        store.verify(name)
    sizes = " / ".join(f"{size:,}" for size in rows.sizes)
    print(f"{rows.name}: {rows.features} columns, {sizes} rows to train / validate / test")
    print(f"source: {rows.source}\nlicence: {rows.licence}")
    place = f"; all files of {store.folder_of(name)} are as they were written" if stored else ""
    print(f"checksum: {rows.checksum}{place}")
    for note in (*([rows.note] if rows.note else []), *rows.notes):
        print(note)
    _print_columns(rows)
    _print_gaussian(rows)


def _print_columns(rows: Dataset) -> None:
    from baselines.harness.data import statistics

    width = max(12, *(len(column) for column in rows.columns))
    print(f"training rows: {'column':>{width}}       mean    std dev      least   greatest")
    mean, std = statistics.moments(rows.train)
    low, high = statistics.extremes(rows.train)
    for column, values in zip(rows.columns, np.stack([mean, std, low, high], 1), strict=True):
        print(f"               {column:>{width}} " + " ".join(f"{v:10.4g}" for v in values))


def _print_gaussian(rows: Dataset) -> None:
    from baselines.harness.data import statistics
    from baselines.harness.data.published import PUBLISHED

    found = statistics.gaussian_scores(rows.train, rows.validation, rows.test)
    print(
        "log-likelihood of a Gaussian of full covariance, fitted to the training rows, in nats, "
        "± 2 standard errors:"
    )
    for split, score in zip(("validation", "test"), found, strict=True):
        print(f"  {split:10} {score.mean:10.3f} ± {score.two_standard_errors:.3f}")
    if rows.name in PUBLISHED:
        figure = PUBLISHED[rows.name].gaussian
        remark = ", not comparable with a subset's" if rows.subset else ""
        print(f"  {'published':10} {figure:9.2f} on test, Papamakarios et al. 2017{remark}")
