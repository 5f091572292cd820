"""From a name, or the path of a file, to a ``Dataset``."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from functools import partial

from baselines.harness.data import cifar, files, idx, images, pictures, published, toys
from baselines.harness.data.columnar import is_frame
from baselines.harness.data.dataset import DataError, Dataset, Entry
from baselines.harness.data.files import Source
from baselines.harness.data.installed import entered, installed
from baselines.harness.data.quantised import Width
from cflows.core.messages import nearest

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
        dequantise: noise for the columns of a file, as ``files.read`` takes it; likewise spared.
        spared: the columns of a file that stay as they are.
        columns: of a file, as ``files.read`` takes them; likewise drop.
        drop: the columns of a file that are left out.

    Raises:
        DataError: neither a known name nor a file, a file that ``files.read`` refuses, or a set
            that has not been fetched.

    Example:
        >>> data = load("pinwheel", seed=3)
        >>> data.train.shape, data.validation.shape, data.test.shape
        ((50000, 2), (5000, 2), (10000, 2))

    """

    def read() -> Dataset:
        return files.read(name, seed=seed, dequantise=dequantise, spared=spared, columns=columns,
                          drop=drop)  # fmt: skip

    if is_frame(name) or files.is_once(name):
        return read()
    text = str(name)
    table = text not in names() and files.is_supported(text)
    if not table and (text in names() or os.path.exists(text)):
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
    # os.path.exists, unlike Path.exists, is False for a name too long to be a path.
    if os.path.exists(text) and idx.is_folder(text):
        return idx.read(text, seed=seed)
    if os.path.exists(text) and cifar.is_source(text):
        return cifar.read(text, seed=seed)
    if files.is_supported(text) or (text and os.path.exists(text)):
        return read()
    raise DataError(
        f"no data set or file is called {text!r}; {nearest(text, names())}"
        f"Known names: {', '.join(names())}; or give the path of a table, "
        "such as .csv, .parquet or .npy"
    )


def entry(name: str) -> Entry:
    """Return what is known of a registered data set without loading it.

    Raises:
        DataError: an unknown name.

    Example:
        >>> entry("power").columns
        6

    """
    if name in _ENTRIES:
        return _ENTRIES[name]
    if name in (others := installed()):
        return entered(others[name])
    raise DataError(
        f"no data set is called {name!r}; {nearest(name, names())}Known names: {', '.join(names())}"
    )


def names() -> tuple[str, ...]:
    """Return the registered names, in the order in which they are listed to users.

    Example:
        >>> names()[:3]
        ('8gaussians', '2spirals', 'checkerboard')

    """
    return (*_ENTRIES, *(name for name in installed() if name not in _ENTRIES))


def _scikit_learn() -> str:
    there = importlib.util.find_spec("sklearn") and importlib.util.find_spec("PIL")
    return "with scikit-learn" if there else ""


def _in_folder(name: str) -> str:
    return str(idx.folder_of(name) or "")


_ENTRIES: dict[str, Entry] = {
    entry.name: entry
    for entry in (
        *(
            Entry(
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
        ),
        Entry(
            "patches4",
            "4 x 4 grey patches of two photographs, their mean removed",
            15,
            (images.TRAIN_ROWS, 4240, 4240),
            "china.jpg and flower.jpg, sklearn.datasets.load_sample_images",
            "CC BY 2.0",
            images.patches4,
            _scikit_learn,
        ),
        Entry(
            "patches",
            "8 x 8 grey patches of the same, as BSDS300 is made: the mean and a pixel removed",
            63,
            (60_000, 1060, 1060),
            "china.jpg and flower.jpg, sklearn.datasets.load_sample_images",
            "CC BY 2.0",
            images.patches,
            _scikit_learn,
        ),
        Entry(
            "digits",
            "8 x 8 images of digits, dequantised, logit",
            64,
            (1439, 179, 179),
            "UCI optical recognition of handwritten digits, sklearn.datasets.load_digits",
            "CC BY 4.0",
            images.digits,
            _scikit_learn,
        ),
        *(
            Entry(
                name,
                "28 x 28 images, dequantised, logit",
                784,
                (50_000, 10_000, 10_000),
                *idx.SETS[name],
                partial(idx.dataset, name),
                partial(_in_folder, name),
            )
            for name in idx.SETS
        ),
        Entry(
            "cifar10",
            "32 x 32 colour images, dequantised, logit",
            3072,
            (45_000, 5_000, 10_000),
            cifar.SOURCE,
            cifar.LICENCE,
            cifar.dataset,
            cifar.here,
        ),
        *published.entries(),
    )
}
