"""From a name, or the path of a file, to a ``Dataset``.

Other packages bring data sets by an entry point each, in the group ``cflows.data``, that names an
``Entry``, as in a package's pyproject.toml:

    [project.entry-points."cflows.data"]
    clouds = "clouds.cflows:entry"
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from baselines.harness.data import cifar, files, mnist, pictures, published, sklearn_images, toys
from baselines.harness.data.dataset import CATALOGUE, DataError, Dataset, Entry
from baselines.harness.data.files import Source
from baselines.harness.data.frames import is_frame
from baselines.harness.data.quantised import Width
from baselines.harness.data.sources import is_once
from cflows.core.arguments import nearest

__all__ = ["entry", "load", "names"]


def load(
    name: Source,
    *,
    seed: int = 0,
    dequantise: Width | None = None,
    spared: Sequence[str] = (),
    columns: Sequence[str] | None = None,
    drop: Sequence[str] = (),
) -> Dataset:
    """Return the data set registered under a name, else the one in a file or a ``DataFrame``.

    A registered name has no suffix and no separator, so it never hides a file: ``./moons`` and
    ``moons.csv`` are always paths.

    Args:
        name: one of ``names()``, a path, ``-`` for standard input, or a ``pandas.DataFrame``.
        seed: fixes the rows of a toy, the training patches and dequantisation noise of images,
            and the split of a file.
        dequantise: noise for the columns of a file: ``"auto"`` for each column's own step, or a
            width; see ``files.read`` for this and what follows.
        spared: the columns of a file that stay as they are.
        columns: those of a file that are kept; None for all.
        drop: those that are left out.

    Raises:
        DataError: neither a known name nor a file, a file that ``files.read`` refuses, or a set
            that has not been fetched.

    Example:
        >>> data = load("pinwheel", seed=3)
        >>> data.train.shape, data.validation.shape, data.test.shape
        ((50000, 2), (5000, 2), (10000, 2))

    """

    def read() -> Dataset:
        return files.read(
            name, seed=seed, dequantise=dequantise, spared=spared, columns=columns, drop=drop
        )

    if is_frame(name) or is_once(name):
        return read()
    text = str(name)
    exists = os.path.exists(text)  # where Path.exists raises for a name too long to be a path
    if text in names() or (exists and not files.is_supported(text)):
        if dequantise is not None:
            raise DataError(
                f"--dequantise is for files of rows; {text} comes with what noise it needs"
            )
        if columns is not None or drop:
            raise DataError(f"--columns and --drop are for files of rows; {text} is used whole")
    if text in names():
        return entry(text).load(seed)
    if pictures.is_supported(text):
        return pictures.read(text, seed=seed)
    if exists and mnist.is_folder(text):
        return mnist.read(text, seed=seed)
    if exists and cifar.is_source(Path(text)):
        return cifar.read(text, seed=seed)
    if exists or files.is_supported(text):
        return read()
    raise DataError(
        f"no data set or file is called {text!r}; {nearest(text, names())}"
        f"Known names: {', '.join(names())}; or give the path of a table, "
        "such as .csv, .parquet or .npy"
    )


def entry(name: str) -> Entry:
    """Return what is known of a registered data set without loading it, or raise DataError.

    Example:
        >>> entry("power").columns
        6

    """
    if name in _ENTRIES:
        return _ENTRIES[name]
    if name in (others := _installed()):
        return _entered(others[name])
    raise DataError(
        f"no data set is called {name!r}; {nearest(name, names())}Known names: {', '.join(names())}"
    )


def names() -> tuple[str, ...]:
    """Return the registered names, in the order in which they are listed to users.

    Example:
        >>> names()[:3]
        ('8gaussians', '2spirals', 'checkerboard')

    """
    return (*_ENTRIES, *(name for name in _installed() if name not in _ENTRIES))


def _scikit_learn() -> str:
    there = importlib.util.find_spec("sklearn") and importlib.util.find_spec("PIL")
    return "with scikit-learn" if there else ""


def _installed() -> dict[str, EntryPoint]:
    """The entry points by name; nothing is imported for it."""
    return {point.name: point for point in entry_points(group="cflows.data")}


def _entered(point: EntryPoint) -> Entry:
    try:
        entry = point.load()
    except Exception as error:  # whatever a package does when it is imported
        raise DataError(
            f"the data set {point.name} ({point.value}) cannot be imported: "
            f"{type(error).__name__}: {error}"
        ) from error
    if not isinstance(entry, Entry):
        raise DataError(
            f"the data set {point.name} ({point.value}) is a {type(entry).__name__}; the entry "
            "point must name a baselines.harness.data.Entry"
        )
    return entry


_LOADERS: dict[str, tuple[Callable[[int], Dataset], Callable[[], str]]] = {
    "patches4": (sklearn_images.patches4, _scikit_learn),
    "patches": (sklearn_images.patches, _scikit_learn),
    "digits": (sklearn_images.digits, _scikit_learn),
    "mnist": (partial(mnist.dataset, "mnist"), partial(mnist.here, "mnist")),
    "fashion_mnist": (
        partial(mnist.dataset, "fashion_mnist"),
        partial(mnist.here, "fashion_mnist"),
    ),
    "cifar10": (cifar.dataset, cifar.here),
}
_ENTRIES = {
    **{
        name: Entry(
            name,
            "a density in the plane",
            2,
            toys.SIZES,
            toys.SOURCE,
            toys.LICENCE,
            partial(toys.dataset, name),
            lambda: "drawn when it is loaded",
        )
        for name in toys.TOYS
    },
    **{name: Entry(name, *CATALOGUE[name], *loaders) for name, loaders in _LOADERS.items()},
    **published.PUBLISHED,
}
