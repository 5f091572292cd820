"""MNIST and Fashion-MNIST from their idx files, which the user has.

The format is that of LeCun, Cortes and Burges: two zero bytes, the type (8: unsigned byte), the
number of dimensions, each dimension as a big-endian 32-bit number, then the values.
"""

from __future__ import annotations

import gzip
import math
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .dataset import DataError, Dataset
from .dequantise import Pixels, image_rows

__all__ = ["FILES", "SETS", "dataset", "folder_of", "is_folder", "read", "read_idx"]

FILES = {"train": "train-images-idx3-ubyte", "test": "t10k-images-idx3-ubyte"}
HELD_OUT = 6  # one of so many training images validates: 10,000 of MNIST's 60,000, as in the paper
PIXELS = Pixels(levels=256, alpha=1e-6)
MOST = 2**31  # bytes of one file, against a header or an archive that claims more

SETS = {
    "mnist": (
        "MNIST, LeCun, Cortes and Burges, yann.lecun.com/exdb/mnist",
        "CC BY-SA 3.0, as commonly stated; the authors state none",
    ),
    "fashion_mnist": (
        "Fashion-MNIST, Xiao, Rasul and Vollgraf 2017, github.com/zalandoresearch/fashion-mnist",
        "MIT",
    ),
}


def dataset(name: str, seed: int = 0) -> Dataset:
    """Read a set from the folder of its name in CFLOWS_DATA.

    Raises:
        DataError: the folder or a file is not there, or damaged.

    """
    folder = folder_of(name)
    if folder is None:
        raise DataError(
            f"{name} is not here: put {FILES['train']} and {FILES['test']}, or these with .gz, "
            f"into a folder {name} of the folder that the variable CFLOWS_DATA names; or give "
            "--data the folder that holds them"
        )
    return read(folder, name, seed=seed)


def folder_of(name: str) -> Path | None:
    """The folder of CFLOWS_DATA that holds a set, if there is one."""
    given = os.environ.get("CFLOWS_DATA")
    folder = Path(given) / name if given else None
    return folder if folder is not None and is_folder(folder) else None


def is_folder(folder: str | Path) -> bool:
    """Whether a folder holds the images of a set like MNIST."""
    return all(_place(Path(folder), stem) is not None for stem in FILES.values())


def read(folder: str | Path, name: str | None = None, *, seed: int = 0) -> Dataset:
    """Read the images of a folder, dequantised and on the logit scale; see ``dequantise``.

    A sixth of the training file, drawn at random, validates.

    Args:
        folder: with the two files of images, each as it is or with .gz; labels are not read.
        name: in tables; by default the folder's.
        seed: of the validation images and of the noise.

    Raises:
        DataError: a file is missing or damaged.

    """
    folder = Path(folder)
    images = {}
    for split, stem in FILES.items():
        place = _place(folder, stem)
        if place is None:
            raise DataError(f"{folder}: holds neither {stem} nor {stem}.gz")
        images[split] = read_idx(place)
        if images[split].ndim != 3 or not images[split].size:
            raise DataError(f"{place}: has shape {images[split].shape}; images have three sizes")
    train, test = images["train"], images["test"]
    if train.shape[1:] != test.shape[1:] or len(train) < HELD_OUT:
        raise DataError(f"{folder}: images of training {train.shape} and of test {test.shape} do "
                        "not go together")  # fmt: skip
    rows = image_rows(PIXELS, train, test, len(train) // HELD_OUT, seed)
    source, licence = SETS.get(name or "", (str(folder), "not stated: the user's own files"))
    _, height, width = train.shape
    return Dataset(
        name or folder.resolve().name,
        *rows,
        columns=tuple(f"p{i}_{j}" for i in range(height) for j in range(width)),
        source=source,
        licence=licence,
        kind="image",
        pixels=PIXELS,
    )


def read_idx(path: Path) -> npt.NDArray[np.uint8]:
    """Read a file of unsigned bytes, compressed or not.

    Raises:
        DataError: no such file, another format, shorter or longer than its header says.

    """
    try:
        with _opened(path) as file:
            content: bytes = file.read(MOST + 1)
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
        raise DataError(f"{path}: holds {len(content) - start} values, its header says "
                        f"{math.prod(shape)}; get it again")  # fmt: skip
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _opened(path: Path) -> Any:
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")


def _place(folder: Path, stem: str) -> Path | None:
    places = (folder / stem, folder / f"{stem}.gz")
    return next((place for place in places if place.is_file()), None)
