"""MNIST and Fashion-MNIST from their idx files, fetched or the user's.

The format is that of LeCun, Cortes and Burges: two zero bytes, the type (8: unsigned byte), the
number of dimensions, each dimension as a big-endian 32-bit number, then the values.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from baselines.harness.data import store
from baselines.harness.data.dataset import CATALOGUE, DataError, Dataset
from baselines.harness.data.download import Archive
from baselines.harness.data.images import image_set
from baselines.harness.data.pixels import Pixels

__all__ = ["ARCHIVES", "FILES", "dataset", "file_in", "here", "is_folder", "read", "read_images"]

FILES = {"train": "train-images-idx3-ubyte", "test": "t10k-images-idx3-ubyte"}
HELD_OUT = 6  # one of so many training images validates: 10,000 of MNIST's 60,000, as in the paper
PIXELS = Pixels(levels=256, alpha=1e-6)
Images = npt.NDArray[np.uint8]
MOST = 2**31  # bytes of one file, against a header or an archive that claims more

_MNIST = "https://ossci-datasets.s3.amazonaws.com/mnist"
_FASHION = "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion"
ARCHIVES = {
    "mnist": (
        Archive(f"{_MNIST}/{FILES['train']}.gz", "f68b3c2dcbeaaa9fbdd348bbdeb94873", 10),
        Archive(f"{_MNIST}/{FILES['test']}.gz", "9fb629c4189551a2d022fa330f9573f3", 2),
    ),
    "fashion_mnist": (
        Archive(f"{_FASHION}/{FILES['train']}.gz", "8d4fb7e6c68d591d4c3dfef9ec88bf0d", 26),
        Archive(f"{_FASHION}/{FILES['test']}.gz", "bef4ecab320f06d8554ea6380940ec79", 4),
    ),
}


def dataset(name: str, seed: int = 0) -> Dataset:
    """Read a set that was fetched, or is in the folder of its name in CFLOWS_DATA, or DataError."""
    folder = here(name)
    if not folder:
        raise DataError(
            f"{name} is not here: run cflows data fetch {name}, add --from DIR for a copy of "
            f"yours; or put {FILES['train']} and {FILES['test']}, or these with .gz, into a folder "
            f"{name} of the folder that CFLOWS_DATA names"
        )
    return read(folder, name, seed=seed)


def here(name: str) -> str:
    """The folder that holds a set, in the cache or of CFLOWS_DATA; empty where there is none."""
    folders = (store.folder_of(name), store.read_only(name))
    return next((str(folder) for folder in folders if folder and is_folder(folder)), "")


def is_folder(folder: str | Path) -> bool:
    """Whether a folder holds the images of a set like MNIST."""
    return all(file_in(Path(folder), stem) is not None for stem in FILES.values())


def file_in(folder: Path, stem: str) -> Path | None:
    """The file of images of this name in a folder, as it is or with .gz."""
    paths = (folder / stem, folder / f"{stem}.gz")
    return next((path for path in paths if path.is_file()), None)


def read(folder: str | Path, name: str | None = None, *, seed: int = 0) -> Dataset:
    """Read the images of a folder, dequantised and on the logit scale; see ``pixels``.

    A sixth of the training file, drawn at random, validates.

    Args:
        folder: with the two files of images, each as it is or with .gz; labels are not read.
        name: in tables; by default the folder's.
        seed: of the validation images and of the noise.

    """
    folder = Path(folder)
    train, test = read_images(folder)
    _, height, width = train.shape
    source = (str(folder), "not stated: the user's own files")
    if name is not None and name in ARCHIVES:
        source = CATALOGUE[name][3:]
    return image_set(
        name or folder.resolve().name,
        PIXELS,
        train,
        test,
        len(train) // HELD_OUT,
        seed,
        tuple(f"p{i}_{j}" for i in range(height) for j in range(width)),
        *source,
    )


def read_images(folder: Path) -> tuple[Images, Images]:
    """The images of a folder to train and to test, (N, height, width) and (N', height, width).

    DataError where a file is missing or damaged.
    """
    images = []
    for stem in FILES.values():
        path = file_in(folder, stem)
        if path is None:
            raise DataError(f"{folder}: holds neither {stem} nor {stem}.gz")
        images.append(read_idx(path))
        if images[-1].ndim != 3 or not images[-1].size:
            raise DataError(f"{path}: has shape {images[-1].shape}; images have three sizes")
    train, test = images
    if train.shape[1:] != test.shape[1:] or len(train) < HELD_OUT:
        raise DataError(
            f"{folder}: images of training {train.shape} and of test {test.shape} do not go "
            "together"
        )
    return train, test


def read_idx(path: Path) -> Images:
    """Read a file of unsigned bytes, compressed or not; DataError where it is another, or cut."""
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rb") as file:
            content = file.read(MOST + 1)
    except FileNotFoundError:
        raise DataError(f"{path}: file not found") from None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: damaged, or cut off: {error}") from error
    dimensions = content[3] if len(content) > 3 else 0
    start = 4 + 4 * dimensions
    if content[:3] != b"\0\0\x08" or len(content) < start:
        raise DataError(f"{path}: not an idx file of unsigned bytes")
    shape = struct.unpack(f">{dimensions}I", content[4:start])
    if len(content) - start != math.prod(shape):
        raise DataError(
            f"{path}: holds {len(content) - start} values, its header says {math.prod(shape)}; "
            "get it again"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)
