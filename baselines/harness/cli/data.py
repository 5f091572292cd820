"""``cflows data list | fetch | check``."""

from __future__ import annotations

import argparse
from textwrap import TextWrapper
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from baselines.harness.data import Dataset

__all__ = ["check", "fetch", "listing"]

LINES = TextWrapper(110, " " * 14, " " * 16, break_long_words=False, break_on_hyphens=False)


def listing(options: argparse.Namespace) -> None:
    """Print what each data set is, its size, source and licence, and whether it is here.

    Nothing is loaded.

    Raises:
        DataError: an unknown name, or a converted set that is damaged.

    """
    from baselines.harness import data
    from baselines.harness.data.fetching import NAMES

    for name in options.names or data.names():
        remedy = f"cflows data fetch {name}" if name in NAMES else "pip install 'cflows[bench]'"
        about = data.entry(name)
        sizes = " / ".join(f"{size:,}" for size in about.sizes)
        print(f"{name:14}{about.about}")
        for line in (
            f"{about.columns} columns, {sizes} rows to train / validate / test",
            f"source: {about.source}",
            f"licence: {about.licence}",
            f"here: {about.here() or f'no; {remedy}'}",
        ):
            print(LINES.fill(line))


def fetch(options: argparse.Namespace) -> None:
    """Download the archive, or take a copy of it, and convert sets.

    Raises:
        DataError: see ``fetching.fetch``.

    """
    from baselines.harness.data import fetching

    fetching.fetch(
        options.names, getattr(options, "from"), say=lambda line: print(line, flush=True)
    )


def check(options: argparse.Namespace) -> None:
    """Print the checksum of rows, their statistics and a Gaussian's log-likelihood.

    A converted set is read as a whole, and compared with the checksums of its manifest.

    Raises:
        DataError: a name or file that cannot be loaded; rows that are not what was written, or
            have no Gaussian.

    """
    from baselines.harness import data

    for name in options.names:
        rows = data.load(name, columns=options.columns or None, drop=options.drop)
        _print_origin(name, rows)
        _print_statistics(rows)


def _print_origin(name: str, rows: Dataset) -> None:
    from baselines.harness.data import store

    checked = ""
    if rows.known_checksum:
        store.verify(name)
        checked = f"; all files of {store.folder_of(name)} are as they were written"
    sizes = " / ".join(f"{size:,}" for size in rows.sizes)
    print(f"{rows.name}: {rows.features} columns, {sizes} rows to train / validate / test")
    print(f"source: {rows.source}\nlicence: {rows.licence}")
    print(f"checksum: {rows.checksum}{checked}")
    for note in filter(None, (rows.note, *rows.notes)):
        print(note)


def _print_statistics(rows: Dataset) -> None:
    from baselines.harness.data import statistics
    from baselines.harness.data.published import PUBLISHED

    width = max(12, *(len(column) for column in rows.columns))
    print(f"training rows: {'column':>{width}}       mean    std dev      least   greatest")
    mean, std = statistics.moments(rows.train)
    low, high = statistics.extremes(rows.train)
    for column, values in zip(rows.columns, np.stack([mean, std, low, high], 1), strict=True):
        print(f"               {column:>{width}} " + " ".join(f"{v:10.4g}" for v in values))
    scores = statistics.gaussian_scores(rows.train, rows.validation, rows.test)
    print(
        "log-likelihood of a Gaussian of full covariance, fitted to the training rows, in nats, "
        "± 2 standard errors:"
    )
    for split, score in zip(("validation", "test"), scores, strict=True):
        print(f"  {split:10} {score.mean:10.3f} ± {score.two_standard_errors:.3f}")
    if rows.name in PUBLISHED:
        figure = PUBLISHED[rows.name].gaussian
        remark = ", not comparable with a subset's" if rows.subset else ""
        print(f"  {'published':10} {figure:9.2f} on test, Papamakarios et al. 2017{remark}")
