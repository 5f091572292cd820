"""CIFAR-10 from its python archive, converted once; no pickle is executed.

The batches are pickles, of which ``pickles`` takes an array of bytes and nothing else.
"""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from baselines.harness.data import store
from baselines.harness.data.dataset import CATALOGUE, DataError, Dataset
from baselines.harness.data.download import Archive
from baselines.harness.data.images import image_set
from baselines.harness.data.pickles import array_of, unpickle
from baselines.harness.data.pixels import Pixels
from cflows.core.atomic_write import write_beside

__all__ = ["ARCHIVE", "DOWNLOAD", "FOLDER", "convert", "converted", "dataset", "here", "read"]

TRAIN = tuple(f"data_batch_{i}" for i in range(1, 6))
TEST = ("test_batch",)
FOLDER, ARCHIVE = "cifar-10-batches-py", "cifar-10-python.tar.gz"
DOWNLOAD = Archive(
    f"https://www.cs.toronto.edu/~kriz/{ARCHIVE}", "c58f30108f718f92721af3b95e74349a", 170
)
SIDE = 32
VALUES = 3 * SIDE * SIDE
HELD_OUT = 10  # one of so many training images validates
PIXELS = Pixels(levels=256, alpha=0.05)
MOST = 2**28  # bytes of one batch

Images = npt.NDArray[np.uint8]


def dataset(seed: int = 0) -> Dataset:
    """Read what was converted before, or convert what CFLOWS_DATA/cifar10 holds, or DataError."""
    if not converted().is_file():
        source = source_in(store.read_only("cifar10"))
        if source is None:
            raise DataError(
                "cifar10 is not here: run cflows data fetch cifar10, add --from FILE|DIR for a "
                f"copy of yours; or put {ARCHIVE}, or the folder {FOLDER} in it, into a folder "
                "cifar10 of the folder that CFLOWS_DATA names"
            )
        convert(source)
    try:
        with np.load(converted(), allow_pickle=False) as arrays:
            return _dataset((arrays["train"], arrays["test"]), "cifar10", seed)
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{converted()}: damaged; remove it, and it is converted again") from error


def read(source: str | Path, *, seed: int = 0) -> Dataset:
    """Read the archive, or its folder, without keeping a converted copy.

    DataError where a batch is missing, damaged or would execute code.
    """
    return _dataset(_batches(Path(source)), Path(source).name, seed)


def convert(source: Path) -> None:
    """Write the images of what ``read`` takes as plain arrays."""
    train, test = _batches(source)
    converted().parent.mkdir(parents=True, exist_ok=True)

    def write(beside: Path) -> None:
        with beside.open("wb") as file:
            np.savez(file, train=train, test=test)

    write_beside(converted(), write)


def converted() -> Path:
    """Where converted images lie: the user's cache folder."""
    return store.folder_of("cifar10").with_suffix(".npz")


def here() -> str:
    """Where the images are, in a few words; empty where they are not."""
    if converted().is_file():
        return f"converted, {converted()}"
    source = source_in(store.read_only("cifar10"))
    return "" if source is None else f"{source} (CFLOWS_DATA), converted when it is loaded"


def is_source(path: Path) -> bool:
    """Whether this is the folder of batches, or an archive by name."""
    if path.is_dir():
        return (path / TEST[0]).is_file()
    return path.name.startswith("cifar-10") and path.is_file()


def source_in(folder: Path | None) -> Path | None:
    """The folder of batches, or the archive, that a folder is or holds."""
    paths = [] if folder is None else [folder, folder / FOLDER, folder / ARCHIVE]
    return next((path for path in paths if is_source(path)), None)


def read_batch(content: bytes, name: str) -> Images:
    """Read the images of one batch, (N, 3072), red, green and blue planes one after the other.

    DataError where the pickle is damaged, or asks for anything but an array of bytes.
    """
    try:
        batch = unpickle(io.BytesIO(content), "images")
    except DataError as error:
        raise DataError(f"{name}: {error}") from None
    except Exception as error:  # a damaged pickle lets out anything
        raise DataError(f"{name}: damaged, or not a batch of CIFAR-10") from error
    try:
        rows = array_of(batch.get("data", batch.get(b"data")))
    except Exception:
        rows = np.empty(0)
    if rows.dtype != np.uint8 or rows.shape[1:] != (VALUES,) or not rows.flags.c_contiguous:
        raise DataError(f"{name}: holds no images of {VALUES} bytes")
    return rows


def _batches(source: Path) -> tuple[Images, Images]:
    contents = dict(_contents(source))
    if missing := [name for name in (*TRAIN, *TEST) if name not in contents]:
        raise DataError(f"{source}: lacks {', '.join(missing)}; get {ARCHIVE} again")
    train, test = (
        np.concatenate([read_batch(contents[name], f"{source}: {name}") for name in names])
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


def _dataset(images: tuple[Images, Images], name: str, seed: int) -> Dataset:
    train, test = images
    if len(train) < HELD_OUT:
        raise DataError(f"{name}: has {len(train)} training images; give at least {HELD_OUT}")
    columns = (f"{colour}{i}_{j}" for colour in "rgb" for i in range(SIDE) for j in range(SIDE))
    held_out, about = len(train) // HELD_OUT, CATALOGUE["cifar10"]
    return image_set(name, PIXELS, train, test, held_out, seed, tuple(columns), *about[3:])
