"""CIFAR-10 from its python archive, converted once; no pickle is executed.

The batches are pickles. They are read by an unpickler that knows the few names which an array of
bytes needs, makes them into parts of its own that hold bytes and do nothing, and refuses all else.
"""

from __future__ import annotations

import io
import pickle
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from baselines.harness.data import store
from baselines.harness.data.archive import Archive
from baselines.harness.data.dataset import DataError, Dataset
from baselines.harness.data.dequantise import Pixels, image_rows
from cflows.core.atomic_write import write_beside

__all__ = ["ARCHIVE", "DOWNLOAD", "FOLDER", "LICENCE", "SOURCE", "convert", "dataset", "here",
           "is_source", "place", "read", "read_batch"]  # fmt: skip

SOURCE = "CIFAR-10, Krizhevsky 2009, www.cs.toronto.edu/~kriz/cifar.html"
LICENCE = "none stated by the authors"
TRAIN = tuple(f"data_batch_{i}" for i in range(1, 6))
TEST = ("test_batch",)
FOLDER, ARCHIVE = "cifar-10-batches-py", "cifar-10-python.tar.gz"
DOWNLOAD = Archive(
    f"https://www.cs.toronto.edu/~kriz/{ARCHIVE}", "c58f30108f718f92721af3b95e74349a", 170
)
SIDE, CHANNELS = 32, 3
VALUES = CHANNELS * SIDE * SIDE
HELD_OUT = 10  # one of so many training images validates
PIXELS = Pixels(levels=256, alpha=0.05)
MOST = 2**28  # bytes of one batch

Images = npt.NDArray[np.uint8]


def dataset(seed: int = 0) -> Dataset:
    """Read what was converted before, or convert what CFLOWS_DATA/cifar10 holds.

    Raises:
        DataError: there is neither, or it is damaged.

    """
    if not place().is_file():
        found = _found()
        if found is None:
            raise DataError(
                "cifar10 is not here: run cflows data fetch cifar10, add --from FILE|DIR for a "
                f"copy of yours; or put {ARCHIVE}, or the folder {FOLDER} in it, into a folder "
                "cifar10 of the folder that CFLOWS_DATA names"
            )
        convert(found)
    return _dataset(_converted(), "cifar10", seed)


def read(source: str | Path, *, seed: int = 0) -> Dataset:
    """Read the archive, or its folder, without keeping a converted copy.

    Raises:
        DataError: a batch is missing, damaged or would execute code.

    """
    return _dataset(_batches(Path(source)), Path(source).name, seed)


def convert(source: str | Path) -> Path:
    """Write the images of the archive, or of its folder, as plain arrays; return the place.

    Raises:
        DataError: as ``read``.

    """
    train, test = _batches(Path(source))
    place().parent.mkdir(parents=True, exist_ok=True)

    def write(beside: Path) -> None:
        with beside.open("wb") as file:
            np.savez(file, train=train, test=test)

    write_beside(place(), write)
    return place()


def place() -> Path:
    """Where converted images lie: the user's cache folder."""
    return store.place_of("cifar10").with_suffix(".npz")


def here() -> str:
    """Where the images are, in a few words; empty where they are not."""
    if place().is_file():
        return f"converted, {place()}"
    found = _found()
    return "" if found is None else f"{found} (CFLOWS_DATA), converted when it is loaded"


def is_source(path: str | Path) -> bool:
    """Whether this is the folder of batches, or an archive by name."""
    path = Path(path)
    if path.is_dir():
        return (path / TEST[0]).is_file()
    return path.name.startswith("cifar-10") and path.is_file()


def read_batch(content: bytes, name: str) -> Images:
    """Read the images of one batch, (N, 3072), red, green and blue planes one after the other.

    Raises:
        DataError: the pickle asks for anything but an array of bytes, or is damaged.

    """
    try:
        batch = _Unpickler(io.BytesIO(content), encoding="bytes").load()
    except DataError as error:
        raise DataError(f"{name}: {error}") from None
    except Exception as error:  # a damaged pickle lets out anything
        raise DataError(f"{name}: damaged, or not a batch of CIFAR-10") from error
    found = batch.get(b"data") if isinstance(batch, dict) else None
    if not isinstance(found, _Array) or len(found.content) != VALUES * (found.rows or 0):
        raise DataError(f"{name}: holds no images of {VALUES} bytes")
    return np.frombuffer(found.content, np.uint8).reshape(-1, VALUES)


class _Array:
    """What a pickled array of unsigned bytes says of itself."""

    content, rows = b"", 0

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, content = state
        plain = isinstance(dtype, _Dtype) and dtype.name in ("u1", b"u1") and not fortran
        if not plain or not isinstance(content, bytes) or len(shape) != 2 or shape[1] != VALUES:
            raise DataError("holds an array that is no matrix of bytes")
        self.content, self.rows = content, int(shape[0])


class _Dtype:
    """What a pickled dtype says of itself."""

    def __init__(self, name: Any, *_: Any) -> None:
        self.name = name

    def __setstate__(self, state: Any) -> None:
        """Byte order and the like, which a single byte has not."""


def _reconstruct(*_: Any) -> _Array:
    return _Array()


def _bytes(text: str, _: Any) -> bytes:
    """Bytes, as Python 3 spells them where a pickle has text alone."""
    return text.encode("latin1")


_KNOWN = {
    ("_codecs", "encode"): _bytes,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _KNOWN:
            raise DataError(f"asks for {module}.{name}, which images do not need; it is not run")
        return _KNOWN[module, name]


def _found() -> Path | None:
    """What CFLOWS_DATA holds of it."""
    given = store.read_only_folder()
    if given is None:
        return None
    folder = given / "cifar10"
    return next((p for p in (folder, folder / FOLDER, folder / ARCHIVE) if is_source(p)), None)


def _batches(source: Path) -> tuple[Images, Images]:
    found = dict(_contents(source))
    if missing := [name for name in (*TRAIN, *TEST) if name not in found]:
        raise DataError(f"{source}: lacks {', '.join(missing)}; get {ARCHIVE} again")
    train, test = (
        np.concatenate([read_batch(found[name], f"{source}: {name}") for name in names])
        for names in (TRAIN, TEST)
    )
    return train, test


def _contents(source: Path) -> Iterator[tuple[str, bytes]]:
    """Each batch's bytes; nothing is extracted."""
    wanted = {*TRAIN, *TEST}
    if source.is_dir():
        for name in wanted:
            if (source / name).is_file():
                yield name, (source / name).read_bytes()
        return
    try:
        with tarfile.open(source) as archive:
            for member in archive:
                name = member.name.rsplit("/", 1)[-1]
                if name in wanted and member.isfile() and member.size < MOST:
                    file = archive.extractfile(member)
                    assert file is not None
                    yield name, file.read()
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DataError(f"{source}: not a whole archive: {error}; get {ARCHIVE} again") from error


def _converted() -> tuple[Images, Images]:
    try:
        with np.load(place(), allow_pickle=False) as arrays:
            return arrays["train"], arrays["test"]
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{place()}: damaged; remove it, and it is converted again") from error


def _dataset(images: tuple[Images, Images], name: str, seed: int) -> Dataset:
    train, test = images
    if len(train) < HELD_OUT:
        raise DataError(f"{name}: has {len(train)} training images; give at least {HELD_OUT}")
    rows = image_rows(PIXELS, train, test, len(train) // HELD_OUT, seed)
    return Dataset(
        name,
        *rows,
        columns=tuple(
            f"{colour}{i}_{j}" for colour in "rgb" for i in range(SIDE) for j in range(SIDE)
        ),
        source=SOURCE,
        licence=LICENCE,
        kind="image",
        pixels=PIXELS,
    )
