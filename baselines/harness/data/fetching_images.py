"""MNIST, Fashion-MNIST and CIFAR-10 into the cache: downloaded or given, verified."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

from baselines.harness.data import cifar, idx, store
from baselines.harness.data.dataset import DataError
from baselines.harness.data.download import download, refuse_checksum
from cflows.core.atomic_write import write_beside

__all__ = ["IMAGES", "fetch_images"]

IMAGES = (*idx.SETS, "cifar10")


def fetch_images(
    name: str, given: Path | None, say: Callable[[str], object], *, pause: float = 1.0
) -> None:
    """Put one of ``IMAGES`` where ``load`` finds it.

    The idx files stay as they are, since they hold bytes and run nothing; CIFAR-10 is converted,
    and its archive removed.

    Args:
        name: of the set.
        given: a folder with its files, or for CIFAR-10 a copy of the archive, whose checksum must
            be right. By default it is downloaded, unless it is in the cache.
        say: takes a line on what is done.
        pause: see ``download``.

    Raises:
        DataError: no such file, a wrong checksum, a server that refuses, files that cannot be used.
        OSError: the cache cannot be written to.

    """
    if name == "cifar10":
        _fetch_cifar(given, say, pause)
    else:
        _fetch_idx(name, given, say, pause)


def _fetch_idx(name: str, given: Path | None, say: Callable[[str], object], pause: float) -> None:
    place = store.place_of(name)
    if given is not None:
        folder = next((f for f in (given, given / name) if idx.is_folder(f)), None)
        if folder is None:
            raise DataError(f"{given}: holds no {idx.FILES['train']} and {idx.FILES['test']} of "
                            f"{name}; --from takes the folder with these, or with .gz")  # fmt: skip
        _copy_idx(folder, place)
    elif idx.is_folder(place):
        say(f"{name} is here: {place}")
        return
    else:
        place.mkdir(parents=True, exist_ok=True)
        for archive in idx.ARCHIVES[name]:
            say(f"fetching {archive.url} ({archive.megabytes} MB)")
            file = archive.url.rsplit("/", 1)[-1]
            download(archive.url, place / file, md5=archive.md5, pause=pause)
    say(f"{name}: in {place}")


def _copy_idx(folder: Path, place: Path) -> None:
    """Copy the files of images, both read first: what is damaged replaces nothing."""
    idx.read_images(folder)
    place.mkdir(parents=True, exist_ok=True)
    for stem in idx.FILES.values():
        file = idx.place_in(folder, stem)
        assert file is not None
        write_beside(place / file.name, partial(shutil.copyfile, file))
        for other in {stem, f"{stem}.gz"} - {file.name}:
            (place / other).unlink(missing_ok=True)


def _fetch_cifar(given: Path | None, say: Callable[[str], object], pause: float) -> None:
    archive = cifar.DOWNLOAD
    if given is not None:
        places = (given, given / cifar.FOLDER, given / cifar.ARCHIVE)
        found = next((place for place in places if cifar.is_source(place)), None)
        if found is None and given.is_file():
            found = given
        if found is None:
            raise DataError(f"{given}: holds neither {cifar.FOLDER} nor {cifar.ARCHIVE}; name the "
                            "archive or its folder")  # fmt: skip
        if found.is_file():
            refuse_checksum(found, archive.md5)
        say(f"cifar10: in {cifar.convert(found)}")
        return
    if cifar.place().is_file():
        say(f"cifar10 is here: {cifar.place()}")
        return
    store.cache_folder().mkdir(parents=True, exist_ok=True)
    say(f"fetching {archive.url} ({archive.megabytes} MB)")
    received = download(
        archive.url, store.cache_folder() / cifar.ARCHIVE, md5=archive.md5, pause=pause
    )
    say(f"cifar10: in {cifar.convert(received)}")
    received.unlink()
