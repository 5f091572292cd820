"""``cflows data list | fetch | check``."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from baselines.harness import data
from baselines.harness.data import fetching, statistics, store
from baselines.harness.data.fetching_images import IMAGES
from baselines.harness.data.published import PUBLISHED

__all__ = ["check", "fetch", "listing"]


def listing(names: Sequence[str] = ()) -> None:
    """Print what each data set is, its size, source and licence, and whether it is here.

    Nothing is loaded.

    Args:
        names: by default all that are registered.

    Raises:
        DataError: an unknown name, or a converted set that is damaged.

    """
    for name in names or data.names():
        about = data.entry(name)
        sizes = " / ".join(f"{size:,}" for size in about.sizes)
        print(f"{name:14}{about.about}")
        for line in (
            f"{about.columns} columns, {sizes} rows to train / validate / test",
            f"source: {about.source}",
            f"licence: {about.licence}",
            f"here: {about.here() or _how(name)}",
        ):
            print(textwrap.fill(line, 110, initial_indent=" " * 14, subsequent_indent=" " * 16,
                                break_long_words=False, break_on_hyphens=False))  # fmt: skip


def _how(name: str) -> str:
    """How a set comes here that is not."""
    if name in PUBLISHED or name in IMAGES:
        return f"no; cflows data fetch {name}"
    return "no; pip install 'cflows[bench]'"


def fetch(names: Sequence[str], given: Path | None = None) -> None:
    """Download the archive, or take a copy of it, and convert sets.

    Raises:
        DataError: see ``fetching.fetch``.

    """
    fetching.fetch(names, given, say=lambda line: print(line, flush=True))


def check(
    names: Sequence[str], columns: Sequence[str] | None = None, drop: Sequence[str] = ()
) -> None:
    """Print the checksum of rows, their statistics and a Gaussian's log-likelihood.

    A converted set is read as a whole, and compared with the checksums of its manifest.

    Args:
        names: of data sets, or files.
        columns: of files, the columns to use; None for all.
        drop: of files, columns to leave out.

    Raises:
        DataError: a name or file that cannot be loaded; rows that are not what was written, or
            have no Gaussian.

    """
    for name in names:
        _check(name, columns, drop)


def _check(name: str, columns: Sequence[str] | None, drop: Sequence[str]) -> None:
    rows = data.load(name, columns=columns, drop=drop)
    stored = bool(rows.known_checksum)
    if stored:
        store.verify(name)
    sizes = " / ".join(f"{size:,}" for size in rows.sizes)
    print(f"{rows.name}: {rows.features} columns, {sizes} rows to train / validate / test")
    print(f"source: {rows.source}\nlicence: {rows.licence}")
    place = f"; all files of {store.place_of(name)} are as they were written" if stored else ""
    print(f"checksum: {rows.checksum}{place}")
    for note in (*([rows.note] if rows.note else []), *rows.notes):
        print(note)
    _print_columns(rows)
    _print_gaussian(rows)


def _print_columns(rows: data.Dataset) -> None:
    width = max(12, *(len(column) for column in rows.columns))
    print(f"training rows: {'column':>{width}}       mean    std dev      least   greatest")
    mean, std = statistics.moments(rows.train)
    low, high = statistics.extremes(rows.train)
    for column, values in zip(rows.columns, np.stack([mean, std, low, high], 1), strict=True):
        print(f"               {column:>{width}} " + " ".join(f"{v:10.4g}" for v in values))


def _print_gaussian(rows: data.Dataset) -> None:
    found = statistics.gaussian_scores(rows.train, rows.validation, rows.test)
    print("log-likelihood of a Gaussian of full covariance, fitted to the training rows, in nats, "
          "± 2 standard errors:")  # fmt: skip
    for split, score in zip(("validation", "test"), found, strict=True):
        print(f"  {split:10} {score.mean:10.3f} ± {score.two_standard_errors:.3f}")
    if rows.name in PUBLISHED:
        figure = PUBLISHED[rows.name].gaussian
        remark = ", not comparable with a subset's" if rows.subset else ""
        print(f"  {'published':10} {figure:9.2f} on test, Papamakarios et al. 2017{remark}")
