"""Where rows lie on this machine: what was converted once, and the folder that is only read.

A converted set is a folder of the user's cache: ``train.npy``, ``validation.npy``, ``test.npy`` and
``manifest.json``. The arrays are float32, which is what the code of the published comparisons
rounds to and what models train in: a map of the file becomes a tensor without a copy, and takes
half of the disk. The manifest has the checksum of each file and of the rows as a whole, so that
hundreds of megabytes are not hashed again whenever they are loaded.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TypedDict

import numpy as np

from baselines.harness.data.dataset import SPLITS, DataError, Dataset, Kind, Part, SplitName
from baselines.harness.data.download import digest
from baselines.harness.data.statistics import moments
from cflows.core.atomic_write import WriteOnly, blaming

__all__ = ["cache_folder", "folder_of", "load", "manifest", "read_only", "save", "verify"]

FORMAT = 1


class _SplitFile(TypedDict):
    rows: int
    bytes: int
    sha256: str
    means: list[float]
    standard_deviations: list[float]


class Manifest(TypedDict):
    """What is written beside a converted set."""

    format: int
    name: str
    columns: list[str]
    source: str
    licence: str
    kind: Kind
    subset: bool
    origin: str
    checksum: str
    splits: dict[SplitName, _SplitFile]


def cache_folder() -> Path:
    """The user's folder for what can be had again: ``XDG_CACHE_HOME``, or the system's own."""
    if folder := os.environ.get("XDG_CACHE_HOME"):
        return Path(folder) / "cflows"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "cflows"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home())) / "cflows"
    return Path.home() / ".cache" / "cflows"


def read_only(name: str = "") -> Path | None:
    """The folder of a name in that of the variable CFLOWS_DATA, if set: it is never written to."""
    folder = os.environ.get("CFLOWS_DATA")
    return Path(folder, name) if folder else None


def folder_of(name: str) -> Path:
    """Where a converted set lies, or would."""
    return cache_folder() / "data" / name


def save(data: Dataset, origin: str) -> Path:
    """Write the rows as they will be loaded, and what they were converted from.

    An earlier set of this name goes when all is written. OSError where the cache takes nothing.
    """
    folder = folder_of(data.name)
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{data.name}.", dir=folder.parent))
    try:
        with blaming(folder):
            about = Manifest(
                format=FORMAT,
                name=data.name,
                columns=list(data.columns),
                source=data.source,
                licence=data.licence,
                kind=data.kind,
                subset=data.subset,
                origin=origin,
                checksum=data.checksum,
                splits={name: _save_split(beside, name, getattr(data, name)) for name in SPLITS},
            )
            (beside / "manifest.json").write_text(json.dumps(about, indent=1) + "\n")
        if folder.exists():
            folder.rename(beside / "earlier")
        beside.rename(folder)
        shutil.rmtree(folder / "earlier", ignore_errors=True)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    return folder


def manifest(name: str) -> Manifest | None:
    """What was written beside a converted set, None where there is none; DataError if damaged."""
    path = folder_of(name) / "manifest.json"
    if not path.is_file():
        return None
    try:
        about: Manifest = json.loads(path.read_text())
        if about["format"] != FORMAT:
            raise ValueError(f"format {about['format']}, not {FORMAT}")
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(name, f"{path} is damaged ({error})") from None
    return about


def load(name: str) -> Dataset | None:
    """Map a converted set into memory, without reading its rows; None where there is none.

    The maps are copy-on-write: writing to an array never changes the file. DataError where a file
    is missing, cut short, or not what the manifest says.
    """
    about = manifest(name)
    if about is None:
        return None
    train, validation, test = (_map(name, split, about["splits"][split]) for split in SPLITS)
    return Dataset(
        name,
        train,
        validation,
        test,
        columns=tuple(about["columns"]),
        source=about["source"],
        licence=about["licence"],
        kind=about["kind"],
        subset=about["subset"],
        known_checksum=about["checksum"],
    )


def verify(name: str) -> None:
    """Read all files of a converted set; DataError where a checksum is not that of the manifest."""
    about = manifest(name)
    for split, file in about["splits"].items() if about else ():
        path = folder_of(name) / f"{split}.npy"
        if digest(path, "sha256") != file["sha256"]:
            raise _damaged(name, f"{path} has changed since it was written (SHA-256)")


def _save_split(folder: Path, name: str, rows: Part) -> _SplitFile:
    path = folder / f"{name}.npy"
    with path.open("wb") as file:
        np.save(WriteOnly(file), np.asarray(rows, np.float32))
    mean, std = moments(rows)
    return {
        "rows": len(rows),
        "bytes": path.stat().st_size,
        "sha256": digest(path, "sha256"),
        "means": mean.tolist(),
        "standard_deviations": std.tolist(),
    }


def _map(name: str, split: str, about: _SplitFile) -> Part:
    path = folder_of(name) / f"{split}.npy"
    try:
        size = path.stat().st_size
        if size != about["bytes"]:
            raise ValueError(f"{size} bytes, not {about['bytes']}")
        rows: Part = np.load(path, mmap_mode="c", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise _damaged(name, f"{path} cannot be used ({error})") from None
    return rows


def _damaged(name: str, what: str) -> DataError:
    return DataError(f"{what}; remove {folder_of(name)} and run: cflows data fetch {name}")
