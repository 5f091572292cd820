"""POWER, GAS, HEPMASS, MINIBOONE and BSDS300: what they are, and how their files become rows.

The files are those of the archive of Papamakarios et al. 2017, Zenodo record 1161203. What
``fetching`` converted is loaded first, mapped into memory by ``store``; else the files are looked
for in the folder that CFLOWS_DATA names, and are prepared by the same code at each load.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from baselines.harness.data import store, tabular
from baselines.harness.data.dataset import CATALOGUE, SPLITS, DataError, Dataset, Entry, Matrix
from baselines.harness.data.download import Archive
from baselines.harness.data.pickles import read_frame
from baselines.harness.data.tabular import Splits

__all__ = ["ARCHIVE", "PUBLISHED", "Published", "find", "prepare", "refuse_without_h5py"]

ARCHIVE = Archive(
    "https://zenodo.org/records/1161203/files/data.tar.gz",
    "9b9c9b0375315ad270eba4ce80c093ab",
    857,
)


@dataclass(frozen=True)
class Published(Entry):
    """One of the five sets.

    Attributes:
        files: in the archive, a folder and a file each.
        gaussian: the published test log-likelihood of a Gaussian, in nats (the paper's table 1).
        read: the files, in this order, to splits.

    """

    files: tuple[str, ...]
    gaussian: float
    read: Callable[..., Splits]


def dataset(name: str, seed: int = 0) -> Dataset:
    """Return one of the five sets, in float32; whatever the seed, the rows are those published.

    Raises:
        DataError: it is not here, or its files cannot be used. One line says how to get it.

    """
    stored = store.load(name)
    if stored is not None:
        return stored
    if files := _unconverted(PUBLISHED[name]):
        return prepare(PUBLISHED[name], files)
    raise DataError(
        f"{name} is not here: run cflows data fetch {name} (once, {ARCHIVE.megabytes} MB for all "
        "five sets), add --from FILE|DIR for a copy of yours, or let CFLOWS_DATA name a folder "
        f"that holds {' and '.join(PUBLISHED[name].files)}"
    )


def here(name: str) -> str:
    """Where a set's rows are, in a few words; empty where they are not."""
    about, table = store.manifest(name), PUBLISHED[name]
    if about is not None:
        sizes = " / ".join(f"{about['splits'][split]['rows']:,}" for split in SPLITS)
        kind = f"a subset ({sizes} rows)" if about["subset"] else "the full set"
        return f"{kind}, in {store.folder_of(name)}"
    if files := _unconverted(table):
        return f"in {files[0].parent} (CFLOWS_DATA), {_size(table, files)}"
    return ""


def _unconverted(table: Published) -> list[Path] | None:
    """A set's files in CFLOWS_DATA."""
    folder = store.read_only()
    return None if folder is None else find(table, folder)


def _size(table: Published, files: Sequence[Path]) -> str:
    """Whether files in CFLOWS_DATA are the full set, as far as their headers tell."""
    try:
        if files[0].suffix == ".npy":
            rows = len(np.load(files[0], mmap_mode="r", allow_pickle=False))
        elif files[0].suffix == ".hdf5":
            rows = sum(len(part) for part in _hdf5(files[0]))
        else:
            return "rows are counted when it is loaded"
    except (DataError, OSError, ValueError) as error:
        return f"not readable: {error}"
    return "the full set" if rows == sum(table.sizes) else f"a subset ({rows:,} rows)"


def find(table: Published, folder: Path) -> list[Path] | None:
    """Return a set's files below a folder, or below its subfolder ``data`` as in the archive."""
    sets = [[base / file for file in table.files] for base in (folder, folder / "data")]
    return next((files for files in sets if all(file.is_file() for file in files)), None)


def prepare(table: Published, files: Sequence[Path]) -> Dataset:
    """Read the files of a set, and split and scale their rows; float32, or raise DataError."""
    try:
        splits = table.read(*files)
    except OSError as error:
        raise DataError(
            f"{table.name}: {files[0].parent} cannot be read: {error.strerror or error}"
        ) from None
    train, validation, test = (np.asarray(part, np.float32) for part in splits[:3])
    sizes = (len(train), len(validation), len(test))
    return Dataset(
        table.name,
        train,
        validation,
        test,
        columns=splits.columns,
        source=table.source,
        licence=table.licence,
        kind="table",
        subset=(len(splits.columns), sizes) != (table.columns, table.sizes),
    )


def refuse_without_h5py() -> None:
    """Raise DataError where the package that reads BSDS300 is not installed."""
    if importlib.util.find_spec("h5py") is None:
        raise DataError("bsds300 is an HDF5 file, which needs h5py: pip install 'cflows[data]'")


def _array(path: Path) -> Matrix:
    try:
        rows: Matrix = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise DataError(f"{path}: is no array of numbers ({error})") from None
    return rows


def _csv(path: Path) -> tuple[Matrix, tuple[str, ...]]:
    """The fields of a .csv that its header names, and the names; rows may have further fields."""
    try:
        with path.open(encoding="utf-8") as file:
            names = tuple(name.strip() for name in file.readline().rstrip().rstrip(",").split(","))
            rows = np.loadtxt(file, delimiter=",", usecols=range(len(names)), ndmin=2)
    except ValueError as error:
        raise DataError(f"{path}: is no table of numbers ({error})") from None
    return rows, names


def _hdf5(path: Path) -> tuple[Matrix, Matrix, Matrix]:
    refuse_without_h5py()
    import h5py

    with h5py.File(path) as file:
        if missing := [split for split in SPLITS if split not in file]:
            raise DataError(f"{path}: has no key {missing[0]!r}, only {', '.join(file)}")
        train, validation, test = (file[split][:] for split in SPLITS)
        return train, validation, test


def _read_power(path: Path) -> Splits:
    return tabular.power(_array(path))


def _read_miniboone(path: Path) -> Splits:
    return tabular.miniboone(_array(path))


def _read_hepmass(train: Path, test: Path) -> Splits:
    rows, names = _csv(train)
    return tabular.hepmass(rows, _csv(test)[0], names[1:])


def _read_bsds300(path: Path) -> Splits:
    splits = _hdf5(path)
    return Splits(*splits, tuple(f"p{i}" for i in range(splits[0].shape[1])))


PUBLISHED = {
    name: Published(
        name,
        *CATALOGUE[name],
        partial(dataset, name),
        partial(here, name),
        files=files,
        gaussian=gaussian,
        read=read,
    )
    for name, files, gaussian, read in (
        ("power", ("power/data.npy",), -7.74, _read_power),
        ("gas", ("gas/ethylene_CO.pickle",), -3.58, lambda path: tabular.gas(*read_frame(path))),
        ("hepmass", ("hepmass/1000_train.csv", "hepmass/1000_test.csv"), -27.93, _read_hepmass),
        ("miniboone", ("miniboone/data.npy",), -37.24, _read_miniboone),
        ("bsds300", ("BSDS300/BSDS300.hdf5",), 96.67, _read_bsds300),
    )
}
